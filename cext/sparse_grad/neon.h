/* NEON: see serial.h. */
#include "lanes/neon.h"
#include "quads.h"

#define LANE(name) NAME(name)
#define INTS uint32x4_t
#define VECTORS 2
#define VECTORS_OF_ONE 4
#define BYTES 24576
#define BYTES_OF_ONE 24576

FE_INLINE INTS NAME(all)(int32_t value) { return vdupq_n_u32((uint32_t)value); }
FE_INLINE INTS NAME(count_up)(void) { return (INTS){0, 1, 2, 3}; }
FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return vaddq_u32(a, b); }
FE_INLINE INTS NAME(times)(INTS a, INTS b) { return vmulq_u32(a, b); }
FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return veorq_u32(a, b); }
FE_INLINE INTS NAME(shift_left)(INTS a, int bits) { return vshlq_u32(a, vdupq_n_s32(bits)); }
#define shift_right_neon(a, bits) vshrq_n_u32(a, bits)

FE_INLINE VEC NAME(magnitude)(VEC a) { return vabsq_f32(a); }
FE_INLINE uint32_t NAME(bits_of)(uint32x4_t lanes) { return vaddvq_u32(vandq_u32(lanes, (uint32x4_t){1, 2, 4, 8})); }
FE_INLINE uint32_t NAME(negative)(VEC a) { return NAME(bits_of)(vcltzq_f32(a)); }
FE_INLINE VEC NAME(signs)(const uint8_t *row, int64_t c, VEC plus, VEC minus) {
    uint32x4_t bits = vdupq_n_u32((uint32_t)row[c / 8] >> c % 8);
    return vbslq_f32(vtstq_u32(bits, (uint32x4_t){1, 2, 4, 8}), minus, plus);
}
FE_INLINE INTS NAME(chance)(INTS bits) { return vorrq_u32(vandq_u32(bits, vdupq_n_u32(CHANCE_BITS)), vdupq_n_u32(CHANCE_REST)); }
FE_INLINE int64_t NAME(append)(uint32_t *places, float *values, VEC x, INTS bits, INTS place, VEC threshold) {
    VEC chance = vmulq_f32(vsubq_f32(vreinterpretq_f32_u32(bits), vdupq_n_f32(1.0f)), threshold);
    VEC magnitude = vabsq_f32(x);
    VEC cut = vbslq_f32(vdupq_n_u32(0x80000000u), x, threshold);
    VEC value = vbslq_f32(vcltq_f32(magnitude, threshold), cut, x);
    uint32_t left = NAME(bits_of)(vmvnq_u32(vcleq_f32(magnitude, chance)));
    uint8x16_t front = vld1q_u8(quads[left]);
    vst1q_u8((uint8_t *)values, vqtbl1q_u8(vreinterpretq_u8_f32(value), front));
    vst1q_u8((uint8_t *)places, vqtbl1q_u8(vreinterpretq_u8_u32(place), front));
    return __builtin_popcount(left);
}

#include "prune.h"

#include "products.h"

#include "end.h"
