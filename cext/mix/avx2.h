#include <immintrin.h>

__attribute__((target("avx2,fma"))) static void mix_avx2(fe_float *out, const fe_float *const *x, const float *w,
                                                         size_t count, size_t length, unsigned how) {
    size_t i = 0;
    for (; i + 32 <= length; i += 32) {
        for (size_t k = 0; how & MIX_PREFETCH && k < count; k++) {
            _mm_prefetch((const char *)(x[k] + i + MIX_AHEAD), _MM_HINT_T1);
            _mm_prefetch((const char *)(x[k] + i + MIX_AHEAD + 16), _MM_HINT_T1);
        }
        __m256 weight = _mm256_set1_ps(w[0]);
        __m256 a = _mm256_mul_ps(weight, _mm256_loadu_ps(x[0] + i));
        __m256 b = _mm256_mul_ps(weight, _mm256_loadu_ps(x[0] + i + 8));
        __m256 c = _mm256_mul_ps(weight, _mm256_loadu_ps(x[0] + i + 16));
        __m256 d = _mm256_mul_ps(weight, _mm256_loadu_ps(x[0] + i + 24));
        for (size_t k = 1; k < count; k++) {
            weight = _mm256_set1_ps(w[k]);
            a = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x[k] + i), a);
            b = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x[k] + i + 8), b);
            c = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x[k] + i + 16), c);
            d = _mm256_fmadd_ps(weight, _mm256_loadu_ps(x[k] + i + 24), d);
        }
        if (how & MIX_STREAM) {
            _mm256_stream_ps((float *)(out + i), a);
            _mm256_stream_ps((float *)(out + i + 8), b);
            _mm256_stream_ps((float *)(out + i + 16), c);
            _mm256_stream_ps((float *)(out + i + 24), d);
        } else {
            _mm256_storeu_ps(out + i, a);
            _mm256_storeu_ps(out + i + 8, b);
            _mm256_storeu_ps(out + i + 16, c);
            _mm256_storeu_ps(out + i + 24, d);
        }
    }
    /* Fused here too: an element's bits must not depend on whether it falls into the tail. */
    for (; i < length; i++) {
        float sum = w[0] * x[0][i];
        for (size_t k = 1; k < count; k++)
            sum = __builtin_fmaf(w[k], x[k][i], sum);
        out[i] = sum;
    }
    if (how & MIX_STREAM)
        _mm_sfence();
}
