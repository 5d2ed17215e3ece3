/* Vectors of AVX-512: see serial.h. */
#include <immintrin.h>
#include <string.h>

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
TARGET FE_INLINE VEC NAME(add)(VEC a, VEC b) { return _mm512_add_ps(a, b); }
TARGET FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return _mm512_sub_ps(a, b); }
TARGET FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return _mm512_fmadd_ps(a, b, c); }
TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm512_mul_ps(a, b); }
TARGET FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return _mm512_max_ps(a, b); }
TARGET FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return _mm512_min_ps(a, b); }
TARGET FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    __mmask16 above = _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, a, _mm512_set1_ps(1.0f), _CMP_LT_OQ), value);
}
TARGET FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), value);
}
TARGET FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    __m128i bytes = _mm_setzero_si128();
    if (n == LANES) {
        bytes = _mm_loadu_si128((const __m128i *)from);
    } else {
        uint8_t few[LANES] = {0};
        memcpy(few, from, (size_t)n);
        bytes = _mm_loadu_si128((const __m128i *)few);
    }
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
TARGET FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    VEC inside = _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), _mm512_set1_ps(255.0f));
    __m512i words = _mm512_cvtps_epi32(inside);
    if (n == LANES)
        _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(words));
    else
        _mm512_mask_cvtepi32_storeu_epi8(to, NAME(first)(n), words);
}
