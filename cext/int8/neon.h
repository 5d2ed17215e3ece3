/* Integers for lanes/neon.h, and products of plain NEON: see avx2.h. */
#define INTS int32x4_t
#define CELL int8_t
#define GROUP 2
#define FLIP 0x80
#define VECTORS 4
#define ROWS_OF(vectors) ((vectors) <= 2 ? 8 : (vectors) == 3 ? 6 : 5)
#define CHUNK_OF(vectors) ((vectors) <= 2 ? 2 : 1)

FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return vmulq_f32(a, b); }
FE_INLINE VEC NAME(least)(VEC a, VEC b) { return vminq_f32(a, b); }
FE_INLINE VEC NAME(greatest)(VEC a, VEC b) { return vmaxq_f32(a, b); }
FE_INLINE INTS NAME(nearest)(VEC a) { return vcvtnq_s32_f32(a); }
FE_INLINE INTS NAME(below)(VEC a) { return vcvtmq_s32_f32(a); }
FE_INLINE VEC NAME(floats)(INTS a) { return vcvtq_f32_s32(a); }
FE_INLINE void NAME(store_past)(float *to, VEC value) { vst1q_f32(to, value); }
FE_INLINE INTS NAME(all)(int32_t value) { return vdupq_n_s32(value); }
FE_INLINE INTS NAME(count_up)(void) { return (INTS){0, 1, 2, 3}; }
FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return vaddq_s32(a, b); }
FE_INLINE INTS NAME(minus)(INTS a, INTS b) { return vsubq_s32(a, b); }
FE_INLINE INTS NAME(times)(INTS a, INTS b) { return vmulq_s32(a, b); }
FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return veorq_s32(a, b); }
FE_INLINE INTS NAME(both)(INTS a, INTS b) { return vandq_s32(a, b); }
#define shift_right_neon(a, bits) vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), bits))
FE_INLINE INTS NAME(load_ints)(const int32_t *from) { return vld1q_s32(from); }
FE_INLINE void NAME(store_ints)(int32_t *to, INTS value) { vst1q_s32(to, value); }
FE_INLINE INTS NAME(load_bytes)(const uint8_t *from) {
    uint32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    uint16x8_t words = vmovl_u8(vcreate_u8(bytes));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
}
FE_INLINE void NAME(store_bytes)(uint8_t *to, INTS value) {
    uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(value));
    uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(to, &bytes, sizeof bytes);
}

FE_INLINE uint8x16_t NAME(row_of)(const uint8_t *from) { return veorq_u8(vld1q_u8(from), vdupq_n_u8(0x80)); }

FE_INLINE int8x8_t NAME(broadcast)(const CELL *from) {
    int16_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return vreinterpret_s8_s16(vdup_n_s16(bytes));
}
FE_INLINE int8x8_t NAME(operand)(const int8_t *from) { return vld1_s8(from); }
FE_INLINE INTS NAME(dot)(INTS sum, int8x8_t a, int8x8_t b) { return vpadalq_s16(sum, vmull_s8(a, b)); }
FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    uint8x16x2_t rows = {{NAME(row_of)(from), NAME(row_of)(from + step)}};
    vst2q_u8((uint8_t *)to, rows);
}
FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    int8x16_t rows[16], next[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        rows[i] = vld1q_s8(from + i * step);
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            next[2 * i] = vzip1q_s8(rows[i], rows[i + 8]);
            next[2 * i + 1] = vzip2q_s8(rows[i], rows[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        vst1q_s8(to + i * pitch, rows[i]);
}
