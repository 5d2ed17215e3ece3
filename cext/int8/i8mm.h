/* SMMLA, on the vectors of neon.h: ARMv8.6. A vector of sums holds those of two rows and two columns. */
#undef TARGET
#undef NAME
#undef GROUP
#undef ROWS_OF
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#define NAME(name) name##_i8mm
#define GROUP 8
#define ROWS_OF(vectors) ((vectors) <= 2 ? 8 : (vectors) == 3 ? 6 : 4)
#define PRODUCTS_OF_PAIRS

TARGET FE_INLINE INTS NAME(dot)(INTS sum, int8x16_t a, int8x16_t b) { return vmmlaq_s32(sum, a, b); }
TARGET FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    uint8x16_t even[4], odd[4];
    for (int i = 0; i < 4; i++) {
        even[i] = vzip1q_u8(row_of_neon(from + 2 * i * step), row_of_neon(from + (2 * i + 1) * step));
        odd[i] = vzip2q_u8(row_of_neon(from + 2 * i * step), row_of_neon(from + (2 * i + 1) * step));
    }
    uint16x8x4_t low = {{vreinterpretq_u16_u8(even[0]), vreinterpretq_u16_u8(even[1]), vreinterpretq_u16_u8(even[2]),
                         vreinterpretq_u16_u8(even[3])}};
    uint16x8x4_t high = {{vreinterpretq_u16_u8(odd[0]), vreinterpretq_u16_u8(odd[1]), vreinterpretq_u16_u8(odd[2]),
                          vreinterpretq_u16_u8(odd[3])}};
    vst4q_u16((uint16_t *)(void *)to, low);
    vst4q_u16((uint16_t *)(void *)(to + 64), high);
}
TARGET FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    transpose_16_neon(to, pitch, from, step);
}
