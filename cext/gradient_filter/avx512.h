#include <immintrin.h>

#define VEC __m512
#define LANES 16
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
TARGET FE_INLINE void NAME(stream)(float *to, VEC value) { _mm512_stream_ps(to, value); }
TARGET FE_INLINE void NAME(fence)(void) { _mm_sfence(); }
TARGET FE_INLINE VEC NAME(add)(VEC a, VEC b) { return _mm512_add_ps(a, b); }
TARGET FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return _mm512_sub_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm512_mul_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return _mm512_fmadd_ps(a, b, c); }

/* Lane i of a permutation of two vectors: i counts through a, then b. */
TARGET FE_INLINE VEC NAME(even)(VEC a, VEC b) {
    const __m512i from = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, from, b);
}
TARGET FE_INLINE VEC NAME(odd)(VEC a, VEC b) {
    const __m512i from = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, from, b);
}
TARGET FE_INLINE VEC NAME(zip_low)(VEC a, VEC b) {
    const __m512i from = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, from, b);
}
TARGET FE_INLINE VEC NAME(zip_high)(VEC a, VEC b) {
    const __m512i from = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, from, b);
}

#include "rows.h"

#include "planes.h"

static const filter_version NAME(version) = {NAME(pool_row),   NAME(fill_row),   NAME(depthwise_row),
                                             NAME(pool_plane), NAME(fill_plane), NAME(depthwise_plane)};

#undef VEC
#undef LANES
#undef TARGET
#undef NAME
