/* Plain C: one float a vector. Beside the primitives of lanes/: `within` keeps values where 0 < a < 1 and puts 0 elsewhere. */
#include "lanes/serial.h"
#include "lanes/serial_bytes.h"

FE_INLINE VEC NAME(within)(VEC a, VEC value) { return a > 0.0f && a < 1.0f ? value : 0.0f; }
FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) { return a == b ? value : other; }

#define BOUND bound_serial
#define BYTE_VERSION NULL
#include "rows.h"

#include "lanes/end.h"
