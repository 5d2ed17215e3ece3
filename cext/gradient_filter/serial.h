/* Plain C: one float a vector, so patches and channels are taken one by one. */
#include "lanes/serial.h"

FE_INLINE void NAME(stream)(float *to, VEC value) { *to = value; }
FE_INLINE void NAME(fence)(void) {}
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return a * b; }

#define CELL_BY_CELL 0
#include "means.h"

#include "rows.h"

#include "taps.h"

#include "lanes/products.h"

static const filter_version NAME(version) = {NAME(pool_row), NAME(fill_row), NAME(depthwise_row), NULL, NULL, NULL,
                                             NAME(pack),     NAME(multiply_packed),
                                             NAME(collapse), NAME(spread)};

#include "lanes/end.h"
