/* Integers for lanes/avx2.h, one for each lane of floats. In terms of them and of these kernels are written:
 *
 * CELL is how a number of a feature map lies in memory when it is multiplied, GROUP how many of them a lane multiplies at a
 * time. `broadcast` reads a group into all lanes, `operand` a group of weights for each lane; `dot` adds their products.
 * VECTORS are as many as a full block of weights has, ROWS_OF the rows of a tile that fits into registers beside it, and
 * CHUNK_OF the groups whose weights do. */
#include "x86.h"

#define INTS __m256i
#define CELL uint16_t
#define GROUP 2
#define FLIP 0
#define VECTORS 2
#define ROWS_OF(vectors) ((vectors) == 1 ? 8 : 5)
#define CHUNK_OF(vectors) ((vectors) == 1 ? 2 : 1)

TARGET FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return _mm256_mul_ps(a, b); }
TARGET FE_INLINE VEC NAME(least)(VEC a, VEC b) { return _mm256_min_ps(a, b); }
TARGET FE_INLINE VEC NAME(greatest)(VEC a, VEC b) { return _mm256_max_ps(a, b); }
TARGET FE_INLINE INTS NAME(nearest)(VEC a) { return _mm256_cvtps_epi32(a); }
TARGET FE_INLINE INTS NAME(below)(VEC a) { return _mm256_cvttps_epi32(_mm256_floor_ps(a)); }
TARGET FE_INLINE VEC NAME(floats)(INTS a) { return _mm256_cvtepi32_ps(a); }
TARGET FE_INLINE void NAME(store_past)(float *to, VEC value) { _mm256_stream_ps(to, value); }
TARGET FE_INLINE INTS NAME(all)(int32_t value) { return _mm256_set1_epi32(value); }
TARGET FE_INLINE INTS NAME(count_up)(void) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
TARGET FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return _mm256_add_epi32(a, b); }
TARGET FE_INLINE INTS NAME(minus)(INTS a, INTS b) { return _mm256_sub_epi32(a, b); }
TARGET FE_INLINE INTS NAME(times)(INTS a, INTS b) { return _mm256_mullo_epi32(a, b); }
TARGET FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return _mm256_xor_si256(a, b); }
TARGET FE_INLINE INTS NAME(both)(INTS a, INTS b) { return _mm256_and_si256(a, b); }
#define shift_right_avx2(a, bits) _mm256_srli_epi32(a, bits)
TARGET FE_INLINE INTS NAME(load_ints)(const int32_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
TARGET FE_INLINE void NAME(store_ints)(int32_t *to, INTS value) { _mm256_storeu_si256((__m256i *)to, value); }
TARGET FE_INLINE INTS NAME(load_bytes)(const uint8_t *from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
TARGET FE_INLINE void NAME(store_bytes)(uint8_t *to, INTS value) {
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}

/* Words, since the sum of two products of bytes that maddubs forms overflows its 16 bits. */
TARGET FE_INLINE INTS NAME(broadcast)(const CELL *from) {
    int32_t words;
    memcpy(&words, from, sizeof words);
    return _mm256_set1_epi32(words);
}
TARGET FE_INLINE INTS NAME(operand)(const int8_t *from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
}
TARGET FE_INLINE INTS NAME(dot)(INTS sum, INTS a, INTS b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
TARGET FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    interleave_pairs(to, from, step);
}
TARGET FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    transpose_words(to, pitch, from, step);
}
