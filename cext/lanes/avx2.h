/* Vectors of AVX2 with FMA: see serial.h. */
#include <immintrin.h>

#define VEC __m256
#define LANES 8
#define REGISTERS 16
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(name) name##_avx2

/* The first n of 8 lanes: a window of 8 words that begins 8 - n before the zeros. */
static const int32_t lanes_avx2[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

TARGET FE_INLINE __m256i NAME(first)(int64_t n) {
    return _mm256_loadu_si256((const __m256i *)(lanes_avx2 + LANES - n));
}
TARGET FE_INLINE VEC NAME(set)(float value) { return _mm256_set1_ps(value); }
TARGET FE_INLINE VEC NAME(load)(const float *from, int64_t n) {
    return n == LANES ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, NAME(first)(n));
}
TARGET FE_INLINE void NAME(store)(float *to, VEC value, int64_t n) {
    if (n == LANES)
        _mm256_storeu_ps(to, value);
    else
        _mm256_maskstore_ps(to, NAME(first)(n), value);
}
TARGET FE_INLINE VEC NAME(add)(VEC a, VEC b) { return _mm256_add_ps(a, b); }
TARGET FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return _mm256_sub_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return _mm256_fmadd_ps(a, b, c); }
