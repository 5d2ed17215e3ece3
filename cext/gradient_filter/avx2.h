#include <immintrin.h>

#define VEC __m256
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(name) name##_avx2

/* The first n of 8 lanes, for 0 <= n <= 8: a window of 8 words that begins 8 - n before the zeros. */
static const int32_t first_lanes_avx2[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

TARGET FE_INLINE __m256i NAME(first)(int64_t n) {
    return _mm256_loadu_si256((const __m256i *)(first_lanes_avx2 + LANES - n));
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
TARGET FE_INLINE void NAME(stream)(float *to, VEC value) { _mm256_stream_ps(to, value); }
TARGET FE_INLINE void NAME(fence)(void) { _mm_sfence(); }
TARGET FE_INLINE VEC NAME(add)(VEC a, VEC b) { return _mm256_add_ps(a, b); }
TARGET FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return _mm256_sub_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm256_mul_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return _mm256_fmadd_ps(a, b, c); }

/* Shuffles stay inside halves of 128 bits; exchanging the inner quarters puts the lanes in order. */
TARGET FE_INLINE VEC NAME(in_order)(VEC a) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), _MM_SHUFFLE(3, 1, 2, 0)));
}
TARGET FE_INLINE VEC NAME(even)(VEC a, VEC b) { return NAME(in_order)(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0))); }
TARGET FE_INLINE VEC NAME(odd)(VEC a, VEC b) { return NAME(in_order)(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1))); }
TARGET FE_INLINE VEC NAME(zip_low)(VEC a, VEC b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
TARGET FE_INLINE VEC NAME(zip_high)(VEC a, VEC b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

#include "rows.h"

#include "planes.h"

static const filter_version NAME(version) = {NAME(pool_row),   NAME(fill_row),   NAME(depthwise_row),
                                             NAME(pool_plane), NAME(fill_plane), NAME(depthwise_plane)};

#undef VEC
#undef LANES
#undef TARGET
#undef NAME
