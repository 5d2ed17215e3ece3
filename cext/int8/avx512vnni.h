/* Integers for lanes/avx512.h, and products of AVX-512-VNNI: see avx2.h. */
#include "x86.h"

#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")))
#define NAME(name) name##_avx512vnni
#define INTS __m512i
#define CELL uint8_t
#define GROUP 4
#define FLIP 0
#define VECTORS 4
#define ROWS_OF(vectors) ((vectors) == 1 ? 16 : (vectors) == 2 ? 12 : (vectors) == 3 ? 8 : 6)
#define CHUNK_OF(vectors) ((vectors) == 1 ? 4 : (vectors) == 4 ? 1 : 2)

TARGET FE_INLINE VEC LANE(multiply)(VEC a, VEC b) { return _mm512_mul_ps(a, b); }
TARGET FE_INLINE VEC LANE(least)(VEC a, VEC b) { return _mm512_min_ps(a, b); }
TARGET FE_INLINE VEC LANE(greatest)(VEC a, VEC b) { return _mm512_max_ps(a, b); }
TARGET FE_INLINE INTS LANE(nearest)(VEC a) { return _mm512_cvtps_epi32(a); }
TARGET FE_INLINE INTS LANE(below)(VEC a) { return _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
TARGET FE_INLINE VEC LANE(floats)(INTS a) { return _mm512_cvtepi32_ps(a); }
TARGET FE_INLINE void LANE(store_past)(float *to, VEC value) { _mm512_stream_ps(to, value); }
TARGET FE_INLINE INTS LANE(all)(int32_t value) { return _mm512_set1_epi32(value); }
TARGET FE_INLINE INTS LANE(count_up)(void) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
TARGET FE_INLINE INTS LANE(plus)(INTS a, INTS b) { return _mm512_add_epi32(a, b); }
TARGET FE_INLINE INTS LANE(minus)(INTS a, INTS b) { return _mm512_sub_epi32(a, b); }
TARGET FE_INLINE INTS LANE(times)(INTS a, INTS b) { return _mm512_mullo_epi32(a, b); }
TARGET FE_INLINE INTS LANE(exclusive)(INTS a, INTS b) { return _mm512_xor_si512(a, b); }
TARGET FE_INLINE INTS LANE(both)(INTS a, INTS b) { return _mm512_and_si512(a, b); }
#define shift_right_avx512(a, bits) _mm512_srli_epi32(a, bits)
TARGET FE_INLINE INTS LANE(load_ints)(const int32_t *from) { return _mm512_loadu_si512(from); }
TARGET FE_INLINE void LANE(store_ints)(int32_t *to, INTS value) { _mm512_storeu_si512(to, value); }
TARGET FE_INLINE INTS LANE(load_bytes)(const uint8_t *from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
TARGET FE_INLINE void LANE(store_bytes)(uint8_t *to, INTS value) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(value));
}

TARGET FE_INLINE INTS NAME(broadcast)(const CELL *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}
TARGET FE_INLINE INTS NAME(operand)(const int8_t *from) { return _mm512_loadu_si512(from); }
TARGET FE_INLINE INTS NAME(dot)(INTS sum, INTS a, INTS b) { return _mm512_dpbusd_epi32(sum, a, b); }
TARGET FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    interleave_fours(to, from, step);
}
TARGET FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    transpose_bytes(to, pitch, from, step);
}
