/* Vectors of sixteen floats, each in four registers of NEON: see serial.h; and bytes as such vectors, a whole register of them at a
 * time: see serial_bytes.h. */
#include <arm_neon.h>

typedef struct {
    float32x4_t quarters[4];
} sixteen_floats;

#define VEC sixteen_floats
#define LANES 16
#define REGISTERS 8
#define TARGET
#define NAME(name) name##_neon

#define QUARTER_BY_QUARTER(operation, a, b)                                                                             \
    ((VEC){{operation(a.quarters[0], b.quarters[0]), operation(a.quarters[1], b.quarters[1]),                           \
            operation(a.quarters[2], b.quarters[2]), operation(a.quarters[3], b.quarters[3])}})

FE_INLINE VEC NAME(set)(float value) {
    float32x4_t all = vdupq_n_f32(value);
    return (VEC){{all, all, all, all}};
}
FE_INLINE VEC NAME(load)(const float *from, int64_t n) {
    float few[LANES] = {0};
    if (n < LANES)
        from = memcpy(few, from, (size_t)n * sizeof *from);
    return (VEC){{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
FE_INLINE void NAME(store)(float *to, VEC value, int64_t n) {
    float few[LANES], *whole = n < LANES ? few : to;
    for (int i = 0; i < 4; i++)
        vst1q_f32(whole + 4 * i, value.quarters[i]);
    if (n < LANES)
        memcpy(to, few, (size_t)n * sizeof *to);
}
FE_INLINE VEC NAME(add)(VEC a, VEC b) { return QUARTER_BY_QUARTER(vaddq_f32, a, b); }
FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return QUARTER_BY_QUARTER(vsubq_f32, a, b); }
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return QUARTER_BY_QUARTER(vmulq_f32, a, b); }
FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return QUARTER_BY_QUARTER(vmaxnmq_f32, a, b); }
FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return QUARTER_BY_QUARTER(vminnmq_f32, a, b); }
FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    uint8_t few[LANES] = {0};
    if (n < LANES)
        from = memcpy(few, from, (size_t)n);
    uint8x16_t bytes = vld1q_u8(from);
    uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    return (VEC){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
                  vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))}};
}
/* Conversions and these moves saturate, which cuts; a NaN converts to 0. */
FE_INLINE uint16x8_t NAME(halves_of)(float32x4_t low, float32x4_t high) {
    return vqmovn_high_u32(vqmovn_u32(vcvtnq_u32_f32(low)), vcvtnq_u32_f32(high));
}
FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    uint16x8_t low = NAME(halves_of)(value.quarters[0], value.quarters[1]);
    uint16x8_t high = NAME(halves_of)(value.quarters[2], value.quarters[3]);
    uint8x16_t bytes = vqmovn_high_u16(vqmovn_u16(low), high);
    uint8_t few[LANES], *whole = n < LANES ? few : to;
    vst1q_u8(whole, bytes);
    if (n < LANES)
        memcpy(to, few, (size_t)n);
}
