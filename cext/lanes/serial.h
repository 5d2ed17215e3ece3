/* Vectors of floats and what kernels do with them, for one instruction set: a header of kernels is included after it, then
 * end.h. `load` and `store` take the first n lanes, 0 <= n <= LANES; a loaded vector's other lanes are 0. `store_bytes` rounds
 * to the nearest, halves to even, and cuts to 0..255, a NaN to 0; `maximum` and `minimum` are b where a is NaN; `within` keeps
 * values where 0 < a < 1 and puts 0 elsewhere. Here, plain C: one lane, which is always taken. */
#include <stdint.h>
#include <string.h>

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
FE_INLINE VEC NAME(add)(VEC a, VEC b) { return a + b; }
FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return a - b; }
FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return a * b + c; }
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return a * b; }
FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return a > b ? a : b; }
FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return a < b ? a : b; }
FE_INLINE VEC NAME(within)(VEC a, VEC value) { return a > 0.0f && a < 1.0f ? value : 0.0f; }
FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) { return a == b ? value : other; }
FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    (void)n;
    return (float)*from;
}
FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    (void)n;
    value = value > 0.0f ? value : 0.0f;
    /* Beside 2^23, floats are whole numbers: the addition rounds. */
    float shifted = (value < 255.0f ? value : 255.0f) + 8388608.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    *to = (uint8_t)bits;
}
