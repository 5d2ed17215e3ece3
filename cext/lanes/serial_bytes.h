/* Bytes as vectors of floats, beside lanes/serial.h. `store_bytes` rounds to the nearest, halves to even, and cuts to 0..255, a NaN
 * to 0; `maximum` and `minimum` are b where a is NaN. Lanes that are not loaded are 0. */
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return a * b; }
FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return a > b ? a : b; }
FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return a < b ? a : b; }
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
