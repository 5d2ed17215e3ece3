/* Whole passes of layers against the kernels that they are made of, which have tests of their own, on every instruction set
 * that this CPU offers: the same bits. Exits 1 on a mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "chain/chain.h"
#include "check.h"
#include "check_conv.h"

#include <math.h>
#include <string.h>

enum { MOST = 1 << 16, MOST_CHANNELS = 128 };

static const fe_conv shapes[] = {
    {2, 16, 16, 8, 8, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, {1, 1, 1, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {3, 7, 15, 5, 7, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},  {1, 31, 33, 6, 5, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1},
    {1, 97, 7, 4, 4, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},  {2, 16, 16, 7, 7, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 16},
};

/* samples, pixels, channels, groups */
static const int64_t norms[][4] = {{1, 2, 1, 1}, {2, 7, 7, 7}, {3, 16, 15, 5}, {2, 33, 33, 3}, {3, 64, 64, 8}, {2, 31, 97, 1}};

static float weight[MOST], bias[MOST_CHANNELS], v[MOST_CHANNELS], floats[MOST], grad[MOST];
static float out[2][MOST], sums[2][3][MOST_CHANNELS];
static uint8_t x[2][MOST], y[2][MOST], extremes[2][MOST], bytes[2][3][MOST];
static int8_t packed_bytes[4 * MOST];
static int32_t packed_sums[MOST];
static float scales[MOST];

static void expect(int holds, const char *what, fe_isa isa, const fe_conv *conv) {
    if (!holds)
        fail(what, isa, conv);
}

static int equal(const void *a, const void *b, int64_t bytes_of_it) { return memcmp(a, b, (size_t)bytes_of_it) == 0; }

static void check_conv(fe_isa isa, const fe_conv *conv) {
    const fe_packed packed = {packed_bytes, packed_sums, scales};
    const fe_meaning means = {0.03, 17};
    const int64_t inputs = conv->images * conv->inputs * conv->height * conv->width;
    const int64_t outputs = conv->images * conv->outputs * side(conv, 0) * side(conv, 1);
    const int64_t weights = conv->outputs * conv->inputs / conv->groups * conv->kernel[0] * conv->kernel[1];

    fe_conv_out found = {.floats = out[0]}, expected = {.floats = out[1]};
    fe_int8_pack(isa, &packed, weight, conv, 0);
    fe_int8_conv(isa, &expected, x[0], means.zero, (float)means.scale, &packed, bias, conv, 0);
    expect(!fe_chain_conv(isa, &found, x[0], means, weight, bias, conv), "convolves", isa, conv);
    expect(equal(out[0], out[1], 4 * outputs) && found.low == expected.low && found.high == expected.high, "a convolution", isa,
           conv);

    for (int halves = 0; halves < 2; halves++) {
        const fe_error error = {bytes[0][0], halves ? bytes[0][1] : NULL, halves ? bytes[0][2] : NULL, 0.01, 0.002, 0, 0};
        expected = (fe_conv_out){.floats = out[1]};
        fe_int8_pack(isa, &packed, weight, conv, 1);
        fe_int8_conv(isa, &expected, error.bytes, FE_ERROR_ZERO, 0.01f, &packed, NULL, conv, 1);
        fe_int8_grad_weight(isa, out[1] + inputs, x[0], means.zero, (float)(0.03 * (halves ? 0.002 : 0.01)),
                            halves ? error.high : error.bytes, error.low, conv, 2);
        fe_chain_conv_backward(isa, out[0], out[0] + inputs, x[0], means, &error, weight, conv, 2);
        expect(equal(out[0], out[1], 4 * (inputs + weights)), "gradients of a convolution", isa, conv);
    }
    weight[0] = NAN;
    expect(fe_chain_conv(isa, &found, x[0], means, weight, bias, conv) == FE_NOT_FINITE, "a NaN is refused", isa, conv);
    weight[0] = 0.5f;
    const int64_t last = conv->outputs - 1;
    const float before = bias[last];
    bias[last] = NAN;
    expect(!fe_chain_conv(isa, &found, x[0], means, weight, bias, conv) && isnan(found.low) && isnan(found.high),
           "ends do not hide a NaN", isa, conv);
    bias[last] = before;
}

static fe_norm_map map_of(uint8_t *of, fe_meaning means) {
    return (fe_norm_map){.bytes = of, .scale = (float)means.scale, .zero = (float)means.zero};
}

static void check_norm(fe_isa isa, const int64_t s[4]) {
    const int64_t count = s[0] * s[1] * s[2];
    const double factor = 0.11, eps = 1e-5;
    float ends[2], dx_ends[2];
    fe_range(isa, &ends[0], &ends[1], floats, count);
    const fe_meaning x_means = fe_levels_between((double)ends[0], (double)ends[1]);
    const fe_rounding rounding = {.inverse = (float)(1.0 / x_means.scale), .zero = x_means.zero, .most = 255};
    fe_quantise(isa, x[1], floats, count, &rounding);
    fe_range_evonorm norm = {s[0], s[1], s[2], s[3], (float)factor, (float)(eps + x_means.scale * factor), weight, bias, v};
    const fe_norm_map from = map_of(x[1], x_means);
    fe_range_evonorm_extremes(isa, &norm, &from, extremes[1], ends);
    const fe_meaning y_means = fe_levels_between((double)ends[0], (double)ends[1]);
    const fe_norm_map to = map_of(y[1], y_means);
    fe_range_evonorm_normalise(isa, &norm, &from, &to, extremes[1]);

    fe_range_evonorm own = {s[0], s[1], s[2], s[3], 0.0f, 0.0f, weight, bias, v};
    fe_chain_maps maps = {.floats = floats, .x = x[0], .y = y[0], .extremes = extremes[0]};
    fe_range(isa, &maps.ends[0], &maps.ends[1], floats, count);
    expect(!fe_chain_norm(isa, &own, factor, eps, &maps), "normalises", isa, NULL);
    expect(maps.x_means.scale == x_means.scale && maps.y_means.scale == y_means.scale, "scales", isa, NULL);
    expect(equal(x[0], x[1], count) && equal(y[0], y[1], count), "a norm", isa, NULL);

    const fe_norm_map of_y = {.floats = grad, .scale = 1.0f};
    fe_range_evonorm_backward(isa, &norm, &from, extremes[1], &of_y, out[1], sums[1][0], sums[1][1], sums[1][2], dx_ends);
    fe_error error = {bytes[0][0], bytes[0][1], bytes[0][2], 0.0, 0.0, 1, 77};
    expect(!fe_chain_norm_backward(isa, &own, factor, eps, &maps, grad, out[0], &error, sums[0][0], sums[0][1], sums[0][2]),
           "differentiates", isa, NULL);
    const fe_rounding by = {(float)(1.0 / error.scale), FE_ERROR_ZERO, 1, 255, 1, 77};
    fe_quantise_error(isa, bytes[1][0], bytes[1][1], bytes[1][2], out[1], count, &by, (float)(1.0 / error.half_scale));
    expect(fmax(-(double)dx_ends[0], (double)dx_ends[1]) == error.scale * 127.0, "the largest gradient is 127 steps", isa,
           NULL);
    for (int k = 0; k < 3; k++)
        expect(equal(bytes[0][k], bytes[1][k], count) && equal(sums[0][k], sums[1][k], 4 * s[2]), "gradients of a norm", isa,
               NULL);

    grad[0] = NAN;
    expect(fe_chain_norm_backward(isa, &own, factor, eps, &maps, grad, out[0], &error, sums[0][0], NULL, NULL) == FE_NOT_FINITE,
           "a NaN among gradients is refused", isa, NULL);
    grad[0] = 0.5f;
    maps.ends[1] = INFINITY;
    expect(fe_chain_norm(isa, &own, factor, eps, &maps) == FE_NOT_FINITE, "an infinity is refused", isa, NULL);
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("int8: %s\nrange_evonorm: %s\n", fe_isa_name(fe_int8_isa(ceiling)), fe_isa_name(fe_range_evonorm_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < MOST; i++) {
        weight[i] = check_random(&state);
        floats[i] = 3.0f * check_random(&state);
        grad[i] = check_random(&state);
        x[0][i] = (uint8_t)(128.0f + 127.0f * check_random(&state));
    }
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; i < MOST; i++)
            bytes[0][k][i] = (uint8_t)(128.0f + 127.0f * check_random(&state));
    for (int64_t i = 0; i < MOST_CHANNELS; i++) {
        bias[i] = check_random(&state);
        v[i] = 1.0f + 0.3f * check_random(&state);
    }
    for (int run = 0; run < 2 * FE_ISA_COUNT; run++) {
        const int isa = run / 2;
        if (isa > (int)ceiling || !fe_isa_available((fe_isa)isa))
            continue;
        fe_set_parallel_for(run % 2 ? backwards : NULL);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_conv((fe_isa)isa, &shapes[i]);
        for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
            check_norm((fe_isa)isa, norms[i]);
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
