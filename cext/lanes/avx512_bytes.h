/* Bytes as vectors of floats, beside lanes/avx512.h: see serial_bytes.h. */
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm512_mul_ps(a, b); }
TARGET FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return _mm512_max_ps(a, b); }
TARGET FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return _mm512_min_ps(a, b); }
TARGET FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    __m128i bytes = _mm_setzero_si128();
    if (n == LANES) {
        bytes = _mm_loadu_si128((const __m128i *)from);
    } else {
        uint8_t few[LANES] = {0};
        memcpy(few, from, (size_t)n);
        bytes = _mm_loadu_si128((const __m128i *)few);
    }
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
TARGET FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    /* A NaN, and what is far below 0, becomes the least integer. */
    __m512i words = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(255.0f), value));
    words = _mm512_max_epi32(words, _mm512_setzero_si512());
    if (n == LANES)
        _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(words));
    else
        _mm512_mask_cvtepi32_storeu_epi8(to, NAME(first)(n), words);
}
