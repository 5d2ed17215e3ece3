/* Vectors of AVX-512: see serial.h. */
#include <immintrin.h>

#define VEC __m512
#define LANES 16
#define REGISTERS 32
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(name) name##_avx512

TARGET FE_INLINE __mmask16 NAME(first)(int64_t n) { return (__mmask16)((1u << n) - 1); }
TARGET FE_INLINE VEC NAME(set)(float value) { return _mm512_set1_ps(value); }
TARGET FE_INLINE VEC NAME(load)(const float *from, int64_t n) {
    return n == LANES ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(NAME(first)(n), from);
}
TARGET FE_INLINE void NAME(store)(float *to, VEC value, int64_t n) {
    if (n == LANES)
        _mm512_storeu_ps(to, value);
    else
        _mm512_mask_storeu_ps(to, NAME(first)(n), value);
}
TARGET FE_INLINE VEC NAME(add)(VEC a, VEC b) { return _mm512_add_ps(a, b); }
TARGET FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return _mm512_sub_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return _mm512_fmadd_ps(a, b, c); }
