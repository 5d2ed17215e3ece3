#include <arm_neon.h>

/* Neither hint is heeded: ARM cores see a run of whole lines being written and stop allocating them by themselves, and
 * prefetching would have to be measured on the boards first. */
static void mix_neon(fe_float *out, const fe_float *const *x, const float *w, size_t count, size_t length,
                     unsigned how) {
    (void)how;
    size_t i = 0;
    for (; i + 16 <= length; i += 16) {
        float32x4_t a = vmulq_n_f32(vld1q_f32(x[0] + i), w[0]);
        float32x4_t b = vmulq_n_f32(vld1q_f32(x[0] + i + 4), w[0]);
        float32x4_t c = vmulq_n_f32(vld1q_f32(x[0] + i + 8), w[0]);
        float32x4_t d = vmulq_n_f32(vld1q_f32(x[0] + i + 12), w[0]);
        for (size_t k = 1; k < count; k++) {
            a = vfmaq_n_f32(a, vld1q_f32(x[k] + i), w[k]);
            b = vfmaq_n_f32(b, vld1q_f32(x[k] + i + 4), w[k]);
            c = vfmaq_n_f32(c, vld1q_f32(x[k] + i + 8), w[k]);
            d = vfmaq_n_f32(d, vld1q_f32(x[k] + i + 12), w[k]);
        }
        vst1q_f32(out + i, a);
        vst1q_f32(out + i + 4, b);
        vst1q_f32(out + i + 8, c);
        vst1q_f32(out + i + 12, d);
    }
    /* Fused here too: an element's bits must not depend on whether it falls into the tail. */
    for (; i < length; i++) {
        float sum = w[0] * x[0][i];
        for (size_t k = 1; k < count; k++)
            sum = __builtin_fmaf(w[k], x[k][i], sum);
        out[i] = sum;
    }
}
