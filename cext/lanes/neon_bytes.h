/* Bytes as vectors of floats, beside lanes/neon.h: see serial_bytes.h. */
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return vmulq_f32(a, b); }
FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return vmaxnmq_f32(a, b); }
FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return vminnmq_f32(a, b); }
FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    uint32_t bytes = 0;
    if (n == LANES)
        memcpy(&bytes, from, LANES);
    else
        memcpy(&bytes, from, (size_t)n);
    uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves)));
}
/* Conversions and these moves saturate, which cuts; a NaN converts to 0. */
FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    uint16x4_t halves = vqmovn_u32(vcvtnq_u32_f32(value));
    uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(halves, halves))), 0);
    if (n == LANES)
        memcpy(to, &bytes, LANES);
    else
        memcpy(to, &bytes, (size_t)n);
}
