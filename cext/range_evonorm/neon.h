#include "lanes/neon.h"
#include "lanes/neon_bytes.h"

FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    uint32x4_t inside = vandq_u32(vcgtq_f32(a, vdupq_n_f32(0.0f)), vcltq_f32(a, vdupq_n_f32(1.0f)));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), inside));
}
FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) { return vbslq_f32(vceqq_f32(a, b), value, other); }

#include "rows.h"

#include "lanes/end.h"
