#include <arm_neon.h>

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
/* ARM cores see a run of whole lines being written and stop allocating them by themselves. */
FE_INLINE void NAME(stream)(float *to, VEC value) { vst1q_f32(to, value); }
FE_INLINE void NAME(fence)(void) {}
FE_INLINE VEC NAME(add)(VEC a, VEC b) { return vaddq_f32(a, b); }
FE_INLINE VEC NAME(subtract)(VEC a, VEC b) { return vsubq_f32(a, b); }
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return vmulq_f32(a, b); }
FE_INLINE VEC NAME(multiply_add)(VEC a, VEC b, VEC c) { return vfmaq_f32(c, a, b); }
FE_INLINE VEC NAME(even)(VEC a, VEC b) { return vuzp1q_f32(a, b); }
FE_INLINE VEC NAME(odd)(VEC a, VEC b) { return vuzp2q_f32(a, b); }
FE_INLINE VEC NAME(zip_low)(VEC a, VEC b) { return vzip1q_f32(a, b); }
FE_INLINE VEC NAME(zip_high)(VEC a, VEC b) { return vzip2q_f32(a, b); }

#include "rows.h"

#include "planes.h"

static const filter_version NAME(version) = {NAME(pool_row),   NAME(fill_row),   NAME(depthwise_row),
                                             NAME(pool_plane), NAME(fill_plane), NAME(depthwise_plane)};

#undef VEC
#undef LANES
#undef TARGET
#undef NAME
