#include "lanes/neon.h"
#include "lanes/neon_bytes.h"

FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    uint32x4_t inside = vandq_u32(vcgtq_f32(a, vdupq_n_f32(0.0f)), vcltq_f32(a, vdupq_n_f32(1.0f)));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), inside));
}
FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) { return vbslq_f32(vceqq_f32(a, b), value, other); }

#define BYTES uint8x16_t
#define WIDE 16
FE_INLINE BYTES NAME(splat)(uint8_t value) { return vdupq_n_u8(value); }
FE_INLINE BYTES NAME(load_wide)(const uint8_t *from) { return vld1q_u8(from); }
FE_INLINE void NAME(store_wide)(uint8_t *to, BYTES value) { vst1q_u8(to, value); }
FE_INLINE BYTES NAME(greatest)(BYTES a, BYTES b) { return vmaxq_u8(a, b); }
FE_INLINE BYTES NAME(smallest)(BYTES a, BYTES b) { return vminq_u8(a, b); }
FE_INLINE BYTES NAME(without)(BYTES a, BYTES b) { return vsubq_u8(a, b); }
FE_INLINE BYTES NAME(differing)(BYTES a, BYTES b) { return veorq_u8(a, b); }
FE_INLINE BYTES NAME(where_same)(BYTES a, BYTES b, BYTES value) { return vandq_u8(vceqq_u8(a, b), value); }
/* The greatest of lanes that lie a multiple of `channels` apart, in the first of them. */
FE_INLINE BYTES NAME(fold)(BYTES value, int64_t channels) {
    value = channels <= 8 ? vmaxq_u8(value, vextq_u8(value, value, 8)) : value;
    value = channels <= 4 ? vmaxq_u8(value, vextq_u8(value, value, 4)) : value;
    value = channels <= 2 ? vmaxq_u8(value, vextq_u8(value, value, 2)) : value;
    return channels <= 1 ? vmaxq_u8(value, vextq_u8(value, value, 1)) : value;
}

#include "bytes.h"

#define BOUND bound_neon
#define BYTE_VERSION &bytes_neon
#include "rows.h"

#include "lanes/end.h"
