#include <immintrin.h>

/* NaN as in avx2.h. */
__attribute__((target("avx512f"))) static void relu_bits_avx512(fe_float *out, uint8_t *bits, const fe_float *x,
                                                                size_t length, float cap) {
    const __m512 zero = _mm512_setzero_ps(), top = _mm512_set1_ps(cap);
    size_t i = 0;
    for (; i + 64 <= length; i += 64) {
        uint64_t passes = 0;
        for (int k = 0; k < 4; k++) {
            __m512 value = _mm512_loadu_ps(x + i + 16 * k);
            __mmask16 positive = _mm512_cmp_ps_mask(value, zero, _CMP_NLE_UQ);
            passes |= (uint64_t)_mm512_mask_cmp_ps_mask(positive, value, top, _CMP_NGE_UQ) << 16 * k;
            _mm512_storeu_ps(out + i + 16 * k, _mm512_min_ps(top, _mm512_max_ps(zero, value)));
        }
        memcpy(bits + i / 8, &passes, sizeof passes);
    }
    relu_bits_serial(out + i, bits + i / 8, x + i, length - i, cap);
}

__attribute__((target("avx512f"))) static void mask_by_bits_avx512(fe_float *out, const fe_float *x, const uint8_t *bits,
                                                                   size_t length) {
    size_t i = 0;
    for (; i + 64 <= length; i += 64) {
        uint64_t passes;
        memcpy(&passes, bits + i / 8, sizeof passes);
        for (int k = 0; k < 4; k++)
            _mm512_storeu_ps(out + i + 16 * k, _mm512_maskz_loadu_ps((__mmask16)(passes >> 16 * k), x + i + 16 * k));
    }
    mask_by_bits_serial(out + i, x + i, bits + i / 8, length - i);
}
