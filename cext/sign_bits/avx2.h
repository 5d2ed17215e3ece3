#include <immintrin.h>

/* Maximum and minimum return their second operand where one is a NaN: a NaN in x stays, one in cap cuts nothing. */
__attribute__((target("avx2,fma"))) static void relu_bits_avx2(fe_float *out, uint8_t *bits, const fe_float *x,
                                                               size_t length, float cap) {
    const __m256 zero = _mm256_setzero_ps(), top = _mm256_set1_ps(cap);
    size_t i = 0;
    for (; i + 32 <= length; i += 32) {
        uint32_t passes = 0;
        for (int k = 0; k < 4; k++) {
            __m256 value = _mm256_loadu_ps(x + i + 8 * k);
            __m256 inside = _mm256_and_ps(_mm256_cmp_ps(value, zero, _CMP_NLE_UQ), _mm256_cmp_ps(value, top, _CMP_NGE_UQ));
            passes |= (uint32_t)_mm256_movemask_ps(inside) << 8 * k;
            _mm256_storeu_ps(out + i + 8 * k, _mm256_min_ps(top, _mm256_max_ps(zero, value)));
        }
        memcpy(bits + i / 8, &passes, sizeof passes);
    }
    relu_bits_serial(out + i, bits + i / 8, x + i, length - i, cap);
}

__attribute__((target("avx2,fma"))) static void mask_by_bits_avx2(fe_float *out, const fe_float *x, const uint8_t *bits,
                                                                  size_t length) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    size_t i = 0;
    for (; i + 32 <= length; i += 32)
        for (int k = 0; k < 4; k++) {
            __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits[i / 8 + (size_t)k]), lanes);
            __m256 passes = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes));
            _mm256_storeu_ps(out + i + 8 * k, _mm256_and_ps(passes, _mm256_loadu_ps(x + i + 8 * k)));
        }
    mask_by_bits_serial(out + i, x + i, bits + i / 8, length - i);
}
