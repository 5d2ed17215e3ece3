#include "lanes/neon.h"

/* Selects by comparison: NEON's maximum and minimum would turn a NaN in cap into one in every lane. */
FE_INLINE uint32_t NAME(activate)(VEC *value, VEC cap) {
    const uint32x4_t lanes = {1, 2, 4, 8};
    uint32x4_t low = vcleq_f32(*value, vdupq_n_f32(0.0f)), high = vcgeq_f32(*value, cap);
    *value = vbslq_f32(low, vdupq_n_f32(0.0f), vbslq_f32(high, cap, *value));
    return vaddvq_u32(vbicq_u32(lanes, vorrq_u32(low, high)));
}
FE_INLINE VEC NAME(passed)(VEC value, uint32_t bits) {
    const uint32x4_t lanes = {1, 2, 4, 8};
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), vtstq_u32(vdupq_n_u32(bits), lanes)));
}
FE_INLINE void NAME(stream)(float *to, VEC value) { vst1q_f32(to, value); }
FE_INLINE void NAME(fence)(void) {}

#include "rows.h"

#include "lanes/end.h"
