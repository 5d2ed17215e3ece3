#include "lanes/avx2.h"

TARGET FE_INLINE void NAME(stream)(float *to, VEC value) { _mm256_stream_ps(to, value); }
TARGET FE_INLINE void NAME(fence)(void) { _mm_sfence(); }
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm256_mul_ps(a, b); }

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

#define CELL_BY_CELL 1
#include "means.h"

/* Bound by memory: half as large, these are as fast. */
#pragma GCC push_options
#pragma GCC optimize("Os")
#include "rows.h"

#include "planes.h"
#pragma GCC pop_options

#include "taps.h"

#include "lanes/products.h"

static const filter_version NAME(version) = {NAME(pool_row),   NAME(fill_row),   NAME(depthwise_row),
                                             NAME(pool_plane), NAME(fill_plane), NAME(depthwise_plane),
                                             NAME(pack),       NAME(multiply_packed),
                                             NAME(collapse), NAME(spread)};

#include "lanes/end.h"
