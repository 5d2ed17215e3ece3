/* Vectors of NEON: see serial.h. */
#include <arm_neon.h>
#include <string.h>

#define VEC float32x4_t
#define LANES 4
#define TARGET
#define NAME(name) name##_neon

FE_INLINE VEC NAME(set)(float value) { return vdupq_n_f32(value); }
FE_INLINE VEC NAME(load)(const float *from, int64_t n) {
    if (n == LANES)
        return vld1q_f32(from);
    float lanes[LANES] = {0};
    for (int64_t i = 0; i < n; i++)
        lanes[i] = from[i];
    return vld1q_f32(lanes);
}
FE_INLINE void NAME(store)(float *to, VEC value, int64_t n) {
    if (n == LANES) {
        vst1q_f32(to, value);
        return;
    }
    float lanes[LANES];
    vst1q_f32(lanes, value);
    for (int64_t i = 0; i < n; i++)
        to[i] = lanes[i];
}
FE_INLINE VEC NAME(add)(VEC a, VEC b) { return vaddq_f32(a, b); }
FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return vsubq_f32(a, b); }
FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return vfmaq_f32(c, a, b); }
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return vmulq_f32(a, b); }
FE_INLINE VEC NAME(maximum)(VEC a, VEC b) { return vmaxnmq_f32(a, b); }
FE_INLINE VEC NAME(minimum)(VEC a, VEC b) { return vminnmq_f32(a, b); }
FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    uint32x4_t inside = vandq_u32(vcgtq_f32(a, vdupq_n_f32(0.0f)), vcltq_f32(a, vdupq_n_f32(1.0f)));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), inside));
}
FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) { return vbslq_f32(vceqq_f32(a, b), value, other); }
FE_INLINE VEC NAME(load_bytes)(const uint8_t *from, int64_t n) {
    uint32_t bytes = 0;
    memcpy(&bytes, from, (size_t)n);
    uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves)));
}
FE_INLINE void NAME(store_bytes)(uint8_t *to, VEC value, int64_t n) {
    VEC inside = vminq_f32(vmaxq_f32(value, vdupq_n_f32(0.0f)), vdupq_n_f32(255.0f));
    uint16x4_t halves = vmovn_u32(vcvtnq_u32_f32(inside));
    uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
    memcpy(to, &bytes, (size_t)n);
}
