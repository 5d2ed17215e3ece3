#include "lanes/avx512.h"

TARGET FE_INLINE void NAME(stream)(float *to, VEC value) { _mm512_stream_ps(to, value); }
TARGET FE_INLINE void NAME(fence)(void) { _mm_sfence(); }
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm512_mul_ps(a, b); }

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
