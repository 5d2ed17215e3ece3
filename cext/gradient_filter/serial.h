/* Plain C: one float a vector, so patches and channels are taken one by one. */
#define VEC float
#define LANES 1
#define TARGET
#define NAME(name) name##_serial

FE_INLINE VEC NAME(set)(float value) { return value; }
FE_INLINE VEC NAME(load)(const float *from, int64_t n) {
    (void)n;
    return *from;
}
FE_INLINE void NAME(store)(float *to, VEC value, int64_t n) {
    (void)n;
    *to = value;
}
FE_INLINE void NAME(stream)(float *to, VEC value) { *to = value; }
FE_INLINE void NAME(fence)(void) {}
FE_INLINE VEC NAME(add)(VEC a, VEC b) { return a + b; }
FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return a - b; }
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return a * b; }
FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return a * b + c; }

#include "rows.h"

static const filter_version NAME(version) = {NAME(pool_row), NAME(fill_row), NAME(depthwise_row), NULL, NULL, NULL};

#undef VEC
#undef LANES
#undef TARGET
#undef NAME
