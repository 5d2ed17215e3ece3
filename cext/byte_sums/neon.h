#include "lanes/neon_by_16.h"

TARGET FE_INLINE VEC NAME(where_above)(VEC a, VEC b, VEC value) {
    for (int i = 0; i < 4; i++) {
        uint32x4_t above = vcgtq_f32(a.quarters[i], b.quarters[i]);
        value.quarters[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value.quarters[i]), above));
    }
    return value;
}

#include "rows.h"

#include "lanes/end.h"
