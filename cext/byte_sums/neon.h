#include "lanes/neon.h"
#include "lanes/neon_bytes.h"

FE_INLINE VEC NAME(where_above)(VEC a, VEC b, VEC value) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), vcgtq_f32(a, b)));
}

#include "rows.h"

#include "lanes/end.h"
