/* SDOT, on the vectors of neon.h: ARMv8.2 with dot products. */
#undef TARGET
#undef NAME
#undef GROUP
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define NAME(name) name##_dotprod
#define GROUP 4

TARGET FE_INLINE int8x16_t NAME(broadcast)(const CELL *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
}
TARGET FE_INLINE int8x16_t NAME(operand)(const int8_t *from) { return vld1q_s8(from); }
TARGET FE_INLINE INTS NAME(dot)(INTS sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
TARGET FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    uint8x16x4_t rows = {{row_of_neon(from), row_of_neon(from + step), row_of_neon(from + 2 * step),
                          row_of_neon(from + 3 * step)}};
    vst4q_u8((uint8_t *)to, rows);
}
TARGET FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    transpose_16_neon(to, pitch, from, step);
}
