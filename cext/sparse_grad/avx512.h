/* AVX-512: see serial.h. */
#include "lanes/avx512.h"

#define LANE(name) NAME(name)
#define INTS __m512i
#define VECTORS 2
#define VECTORS_OF_ONE 4
#define BYTES 65536
#define BYTES_OF_ONE 65536

TARGET FE_INLINE INTS NAME(all)(int32_t value) { return _mm512_set1_epi32(value); }
TARGET FE_INLINE INTS NAME(count_up)(void) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
TARGET FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return _mm512_add_epi32(a, b); }
TARGET FE_INLINE INTS NAME(times)(INTS a, INTS b) { return _mm512_mullo_epi32(a, b); }
TARGET FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return _mm512_xor_si512(a, b); }
TARGET FE_INLINE INTS NAME(shift_left)(INTS a, unsigned bits) { return _mm512_slli_epi32(a, bits); }
#define shift_right_avx512(a, bits) _mm512_srli_epi32(a, bits)

TARGET FE_INLINE VEC NAME(magnitude)(VEC a) { return _mm512_abs_ps(a); }
TARGET FE_INLINE uint32_t NAME(negative)(VEC a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_LT_OQ); }
TARGET FE_INLINE VEC NAME(signs)(const uint8_t *row, int64_t c, VEC plus, VEC minus) {
    uint16_t bits;
    memcpy(&bits, row + c / 8, sizeof bits);
    return _mm512_mask_mov_ps(plus, bits, minus);
}
TARGET FE_INLINE INTS NAME(chance)(INTS bits) {
    /* (bits & CHANCE_BITS) | CHANCE_REST */
    return _mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(CHANCE_BITS), _mm512_set1_epi32(CHANCE_REST), 0xea);
}
TARGET FE_INLINE int64_t NAME(append)(uint32_t *places, float *values, VEC x, INTS bits, INTS place, VEC threshold) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    VEC chance = _mm512_mul_ps(_mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(1.0f)), threshold);
    VEC magnitude = _mm512_abs_ps(x);
    __mmask16 small = _mm512_cmp_ps_mask(magnitude, threshold, _CMP_LT_OQ);
    __mmask16 left = _mm512_cmp_ps_mask(magnitude, chance, _CMP_NLE_UQ);
    /* Bit for bit: the sign of x, everything else of the threshold. */
    __m512i cut = _mm512_mask_ternarylogic_epi32(_mm512_castps_si512(x), small, sign, _mm512_castps_si512(threshold), 0xe2);
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(left, _mm512_castsi512_ps(cut)));
    _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(left, place));
    return __builtin_popcount(left);
}

#include "prune.h"

#include "products.h"

#include "end.h"
