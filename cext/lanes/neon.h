/* Vectors of NEON: see serial.h. */
#include <arm_neon.h>

#define VEC float32x4_t
#define LANES 4
#define REGISTERS 32
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
