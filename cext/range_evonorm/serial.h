/* Plain C: one float a vector. Beside the primitives of lanes/serial.h: `store_bytes` rounds to the nearest, halves to even, and
 * cuts to 0..255, a NaN to 0; `maximum` and `minimum` are b where a is NaN; `within` keeps values where 0 < a < 1 and puts 0
 * elsewhere. */
#include "lanes/serial.h"

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

#include "rows.h"

#include "lanes/end.h"
