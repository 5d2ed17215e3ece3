/* Bytes as vectors of floats, beside lanes/avx2.h: see serial_bytes.h. */
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm256_mul_ps(a, b); }
TARGET FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return _mm256_max_ps(a, b); }
TARGET FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return _mm256_min_ps(a, b); }
TARGET FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    uint64_t bytes = 0;
    if (n == LANES)
        memcpy(&bytes, from, LANES);
    else
        for (int64_t i = 0; i < n; i++)
            bytes |= (uint64_t)from[i] << 8 * i;
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)));
}
TARGET FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    VEC inside = _mm256_min_ps(_mm256_max_ps(value, _mm256_setzero_ps()), _mm256_set1_ps(255.0f));
    __m256i words = _mm256_cvtps_epi32(inside);
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    uint64_t bytes = (uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(halves, halves));
    if (n == LANES)
        memcpy(to, &bytes, LANES);
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = (uint8_t)(bytes >> 8 * i);
}
