#include <immintrin.h>

__attribute__((target("avx512f"))) static void mix_avx512(fe_float *out, const fe_float *const *x, const float *w,
                                                          size_t count, size_t length, unsigned how) {
    size_t i = 0;
    for (; i + 64 <= length; i += 64) {
        for (size_t k = 0; how & MIX_PREFETCH && k < count; k++) {
            _mm_prefetch((const char *)(x[k] + i + MIX_AHEAD), _MM_HINT_T1);
            _mm_prefetch((const char *)(x[k] + i + MIX_AHEAD + 16), _MM_HINT_T1);
            _mm_prefetch((const char *)(x[k] + i + MIX_AHEAD + 32), _MM_HINT_T1);
            _mm_prefetch((const char *)(x[k] + i + MIX_AHEAD + 48), _MM_HINT_T1);
        }
        __m512 weight = _mm512_set1_ps(w[0]);
        __m512 a = _mm512_mul_ps(weight, _mm512_loadu_ps(x[0] + i));
        __m512 b = _mm512_mul_ps(weight, _mm512_loadu_ps(x[0] + i + 16));
        __m512 c = _mm512_mul_ps(weight, _mm512_loadu_ps(x[0] + i + 32));
        __m512 d = _mm512_mul_ps(weight, _mm512_loadu_ps(x[0] + i + 48));
        for (size_t k = 1; k < count; k++) {
            weight = _mm512_set1_ps(w[k]);
            a = _mm512_fmadd_ps(weight, _mm512_loadu_ps(x[k] + i), a);
            b = _mm512_fmadd_ps(weight, _mm512_loadu_ps(x[k] + i + 16), b);
            c = _mm512_fmadd_ps(weight, _mm512_loadu_ps(x[k] + i + 32), c);
            d = _mm512_fmadd_ps(weight, _mm512_loadu_ps(x[k] + i + 48), d);
        }
        if (how & MIX_STREAM) {
            _mm512_stream_ps((float *)(out + i), a);
            _mm512_stream_ps((float *)(out + i + 16), b);
            _mm512_stream_ps((float *)(out + i + 32), c);
            _mm512_stream_ps((float *)(out + i + 48), d);
        } else {
            _mm512_storeu_ps(out + i, a);
            _mm512_storeu_ps(out + i + 16, b);
            _mm512_storeu_ps(out + i + 32, c);
            _mm512_storeu_ps(out + i + 48, d);
        }
    }
    for (; i < length; i += 16) {
        __mmask16 lanes = length - i < 16 ? (__mmask16)((1u << (length - i)) - 1) : (__mmask16)0xffff;
        __m512 sum = _mm512_mul_ps(_mm512_set1_ps(w[0]), _mm512_maskz_loadu_ps(lanes, x[0] + i));
        for (size_t k = 1; k < count; k++)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(w[k]), _mm512_maskz_loadu_ps(lanes, x[k] + i), sum);
        _mm512_mask_storeu_ps(out + i, lanes, sum);
    }
    if (how & MIX_STREAM)
        _mm_sfence();
}
