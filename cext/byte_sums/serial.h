/* Plain C: one float a vector. */
#include "lanes/serial.h"
#include "lanes/serial_bytes.h"

FE_INLINE VEC NAME(where_above)(VEC a, VEC b, VEC value) { return a > b ? value : 0.0f; }

#include "rows.h"

#include "lanes/end.h"
