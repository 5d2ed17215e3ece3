/* Vectors of floats and what kernels do with them, for one instruction set: a header of kernels is included after it, then
 * end.h. `load` and `store` take the first n lanes, 0 <= n <= LANES; a loaded vector's other lanes are 0. A CPU
 * holds REGISTERS of them. Here, plain C: one lane, which is always taken. */
#define VEC float
#define LANES 1
#define REGISTERS 16
#define TARGET
#define NAME(name) name##_serial

#include "small.h"

/* x86 CPUs have had AVX2 for a dozen years: there, these had better be small. */
#if defined(__x86_64__)
#define IS_SMALL
#undef UNROLL
#undef IS_USUAL
#define UNROLL(times) FE_PRAGMA(GCC unroll 1)
#define IS_USUAL(condition) ((condition) && 0)
#pragma GCC push_options
#pragma GCC optimize("Os")
#endif

FE_INLINE VEC NAME(set)(float value) { return value; }
FE_INLINE VEC NAME(load)(const float *from, int64_t n) {
    (void)n;
    return *from;
}
FE_INLINE void NAME(store)(float *to, VEC value, int64_t n) {
    (void)n;
    *to = value;
}
FE_INLINE VEC NAME(add)(VEC a, VEC b) { return a + b; }
FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return a - b; }
FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return a * b + c; }
