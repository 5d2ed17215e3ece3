/* Products of AVX-VNNI, on the vectors of avx2.h. */
#undef TARGET
#undef NAME
#undef CELL
#undef GROUP
#undef ROWS_OF
#define TARGET __attribute__((target("avx2,fma,avxvnni")))
#define NAME(name) name##_avxvnni
#define CELL uint8_t
#define GROUP 4
#define ROWS_OF(vectors) ((vectors) == 1 ? 8 : 6)

TARGET FE_INLINE INTS NAME(broadcast)(const CELL *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}
TARGET FE_INLINE INTS NAME(operand)(const int8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
TARGET FE_INLINE INTS NAME(dot)(INTS sum, INTS a, INTS b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
TARGET FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    interleave_fours(to, from, step);
}
TARGET FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    transpose_bytes(to, pitch, from, step);
}
