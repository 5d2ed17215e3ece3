#include <arm_neon.h>

static const uint16_t lane_bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};

/* Selects by comparison: NEON's maximum and minimum would turn a NaN in cap into one in every element. */
static float32x4_t relu_neon(float32x4_t value, float32x4_t top, uint32x4_t *passes) {
    uint32x4_t low = vcleq_f32(value, vdupq_n_f32(0.0f)), high = vcgeq_f32(value, top);
    *passes = vmvnq_u32(vorrq_u32(low, high));
    return vbslq_f32(low, vdupq_n_f32(0.0f), vbslq_f32(high, top, value));
}

static void relu_bits_neon(fe_float *out, uint8_t *bits, const fe_float *x, size_t length, float cap) {
    const float32x4_t top = vdupq_n_f32(cap);
    const uint16x8_t weights = vld1q_u16(lane_bits);
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint32x4_t first, second;
        float32x4_t a = relu_neon(vld1q_f32(x + i), top, &first);
        float32x4_t b = relu_neon(vld1q_f32(x + i + 4), top, &second);
        vst1q_f32(out + i, a);
        vst1q_f32(out + i + 4, b);
        uint16x8_t passes = vcombine_u16(vmovn_u32(first), vmovn_u32(second));
        bits[i / 8] = (uint8_t)vaddvq_u16(vandq_u16(passes, weights));
    }
    relu_bits_serial(out + i, bits + i / 8, x + i, length - i, cap);
}

static float32x4_t masked_neon(const fe_float *x, uint32x4_t passes) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x)), passes));
}

static void mask_by_bits_neon(fe_float *out, const fe_float *x, const uint8_t *bits, size_t length) {
    const uint32x4_t low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint32x4_t byte = vdupq_n_u32(bits[i / 8]);
        float32x4_t a = masked_neon(x + i, vtstq_u32(byte, low));
        float32x4_t b = masked_neon(x + i + 4, vtstq_u32(byte, high));
        vst1q_f32(out + i, a);
        vst1q_f32(out + i + 4, b);
    }
    mask_by_bits_serial(out + i, x + i, bits + i / 8, length - i);
}
