/* AVX2 with FMA: see serial.h. */
#include "lanes/avx2.h"
#include "quads.h"

#define LANE(name) NAME(name)
#define INTS __m256i
#define VECTORS 1
#define VECTORS_OF_ONE 4
#define BYTES 24576
#define BYTES_OF_ONE 49152

TARGET FE_INLINE INTS NAME(all)(int32_t value) { return _mm256_set1_epi32(value); }
TARGET FE_INLINE INTS NAME(count_up)(void) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
TARGET FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return _mm256_add_epi32(a, b); }
TARGET FE_INLINE INTS NAME(times)(INTS a, INTS b) { return _mm256_mullo_epi32(a, b); }
TARGET FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return _mm256_xor_si256(a, b); }
TARGET FE_INLINE INTS NAME(shift_left)(INTS a, int bits) { return _mm256_slli_epi32(a, bits); }
#define shift_right_avx2(a, bits) _mm256_srli_epi32(a, bits)

TARGET FE_INLINE VEC NAME(magnitude)(VEC a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
TARGET FE_INLINE uint32_t NAME(negative)(VEC a) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_LT_OQ));
}
TARGET FE_INLINE VEC NAME(signs)(const uint8_t *row, int64_t c, VEC plus, VEC minus) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(row[c / 8]), lanes), lanes);
    return _mm256_blendv_ps(plus, minus, _mm256_castsi256_ps(set));
}
TARGET FE_INLINE void NAME(append_quad)(uint32_t *places, float *values, __m128 value, __m128i place, uint32_t left) {
    __m128i front = _mm_loadu_si128((const __m128i *)quads[left]);
    _mm_storeu_si128((__m128i *)values, _mm_shuffle_epi8(_mm_castps_si128(value), front));
    _mm_storeu_si128((__m128i *)places, _mm_shuffle_epi8(place, front));
}
TARGET FE_INLINE INTS NAME(chance)(INTS bits) {
    return _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(CHANCE_BITS)), _mm256_set1_epi32(CHANCE_REST));
}
TARGET FE_INLINE int64_t NAME(append)(uint32_t *places, float *values, VEC x, INTS bits, INTS place, VEC threshold) {
    const VEC sign = _mm256_set1_ps(-0.0f);
    VEC chance = _mm256_mul_ps(_mm256_sub_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(1.0f)), threshold);
    VEC magnitude = _mm256_andnot_ps(sign, x);
    VEC small = _mm256_cmp_ps(magnitude, threshold, _CMP_LT_OQ);
    uint32_t left = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(magnitude, chance, _CMP_NLE_UQ));
    VEC value = _mm256_blendv_ps(x, _mm256_or_ps(_mm256_and_ps(sign, x), threshold), small);
    int64_t low = __builtin_popcount(left & 15);
    NAME(append_quad)(places, values, _mm256_castps256_ps128(value), _mm256_castsi256_si128(place), left & 15);
    NAME(append_quad)
    (places + low, values + low, _mm256_extractf128_ps(value, 1), _mm256_extracti128_si256(place, 1), left >> 4);
    return low + __builtin_popcount(left >> 4);
}

#include "prune.h"

#include "products.h"

#include "end.h"
