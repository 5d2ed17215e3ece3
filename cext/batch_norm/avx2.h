#include "lanes/avx2.h"

TARGET FE_INLINE uint32_t NAME(activate)(VEC *value, VEC cap) {
    const VEC zero = _mm256_setzero_ps(), given = *value;
    /* Maximum and minimum return their second operand where one is a NaN. */
    *value = _mm256_min_ps(cap, _mm256_max_ps(zero, given));
    VEC inside = _mm256_and_ps(_mm256_cmp_ps(given, zero, _CMP_NLE_UQ), _mm256_cmp_ps(given, cap, _CMP_NGE_UQ));
    return (uint32_t)_mm256_movemask_ps(inside);
}
TARGET FE_INLINE VEC NAME(passed)(VEC value, uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_and_si256(_mm256_set1_epi32((int32_t)bits), lanes);
    return _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes)));
}
TARGET FE_INLINE void NAME(stream)(float *to, VEC value) { _mm256_stream_ps(to, value); }
TARGET FE_INLINE void NAME(fence)(void) { _mm_sfence(); }

#include "rows.h"

#include "lanes/end.h"
