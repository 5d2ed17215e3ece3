/* Every version of the 8-bit kernels that this CPU offers, against sums in 64-bit integers that are written down from
 * their definition. Exits 1 on a mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "check.h"
#include "check_conv.h"
#include "int8/int8.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

enum { MOST = 1 << 17, MARGIN = 64 };

/* Awkward numbers of channels and cells, strides, dilations, groups, kernels that reach over the map, taps that a phase of a
 * transposed convolution lacks; many inputs, and many pixels. */
static const fe_conv shapes[] = {
    {2, 16, 16, 8, 8, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    {1, 1, 1, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {3, 7, 15, 5, 7, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},     {1, 31, 33, 6, 5, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1},
    {2, 3, 97, 9, 9, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1},     {1, 97, 7, 4, 4, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {5, 64, 64, 4, 4, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    {2, 12, 20, 7, 6, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1},
    {1, 8, 48, 11, 3, {5, 3}, {3, 2}, {2, 0}, {1, 1}, 1},    {2, 6, 9, 8, 8, {3, 3}, {1, 1}, {2, 2}, {2, 2}, 3},
    {2, 16, 16, 7, 7, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 16},   {1, 33, 33, 9, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 33},
    {1, 4, 4, 3, 3, {5, 5}, {1, 1}, {2, 2}, {1, 1}, 1},      {1, 5, 3, 12, 13, {2, 4}, {2, 3}, {1, 2}, {3, 1}, 1},
    {40, 24, 40, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},   {1, 2, 3, 1, 300, {1, 7}, {1, 1}, {0, 3}, {1, 1}, 1},
    {1, 7000, 2, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},   {1, 1, 1, 300, 260, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {1, 66311, 1, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},  {1, 20, 130, 5, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},
    {3, 32, 32, 16, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},  {2, 5, 6, 3, 1, {3, 1}, {2, 2}, {1, 1}, {2, 1}, 1},
    {1, 40, 40, 9, 8, {5, 5}, {2, 1}, {2, 2}, {1, 1}, 40}, {1, 5, 5, 1, 600, {1, 3}, {1, 1}, {0, 1}, {1, 1}, 5},
    {3, 2, 2, 9, 9, {3, 3}, {1, 1}, {1, 1}, {2, 2}, 2},      {1, 48, 48, 13, 7, {3, 3}, {3, 2}, {1, 0}, {1, 1}, 48},
    {3, 20, 24, 6, 20, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},   {2, 9, 40, 16, 8, {3, 3}, {1, 1}, {2, 2}, {2, 2}, 1},
    {3, 80, 70, 6, 6, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    {1, 16, 96, 7, 20, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {1, 1, 1, 1, 1, {1, 1}, {1, 2}, {0, 1}, {1, 1}, 1},      {2, 64, 160, 3, 3, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},
    {1, 2, 2, 1, 16382, {1, 3}, {1, 1}, {0, 1}, {1, 1}, 2},
};

static uint8_t x[MOST], errors[2][MOST], bytes[MOST + MARGIN], again[MOST + MARGIN];
static uint8_t other[MOST], bytes_alone[MOST];
static int8_t packed_bytes[16 * MOST];
static int32_t packed_sums[4 * MOST];
static float weight[MOST], bias[MOST], scales[MOST], out[MOST + MARGIN], out_again[MOST + MARGIN];
static int8_t quantised[MOST];

/* Calls `visit` for each tap of each pixel that lies in the map. */
typedef void (*visitor)(int64_t in_cell, int64_t out_cell, int64_t tap, const fe_conv *s);

static void visit_taps(const fe_conv *s, visitor visit) {
    int64_t rows = side(s, 0), columns = side(s, 1);
    for (int64_t n = 0; n < s->images; n++)
        for (int64_t p = 0; p < rows; p++)
            for (int64_t q = 0; q < columns; q++)
                for (int64_t i = 0; i < s->kernel[0]; i++)
                    for (int64_t j = 0; j < s->kernel[1]; j++) {
                        int64_t h = p * s->stride[0] - s->padding[0] + i * s->dilation[0];
                        int64_t w = q * s->stride[1] - s->padding[1] + j * s->dilation[1];
                        if (h >= 0 && h < s->height && w >= 0 && w < s->width)
                            visit((n * s->height + h) * s->width + w, (n * rows + p) * columns + q,
                                  i * s->kernel[1] + j, s);
                    }
}

static int64_t sums[MOST];
static int zero;

static int64_t at_weight(const fe_conv *s, int64_t o, int64_t tap, int64_t i) {
    return (o * s->kernel[0] * s->kernel[1] + tap) * (s->inputs / s->groups) + i;
}

static void add_forward(int64_t in_cell, int64_t out_cell, int64_t tap, const fe_conv *s) {
    int64_t inputs = s->inputs / s->groups, outputs = s->outputs / s->groups;
    for (int64_t o = 0; o < s->outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            sums[out_cell * s->outputs + o] += (int64_t)(x[in_cell * s->inputs + o / outputs * inputs + i] - zero) *
                                               quantised[at_weight(s, o, tap, i)];
}

static void add_transposed(int64_t in_cell, int64_t out_cell, int64_t tap, const fe_conv *s) {
    int64_t inputs = s->inputs / s->groups, outputs = s->outputs / s->groups;
    for (int64_t o = 0; o < s->outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            sums[in_cell * s->inputs + o / outputs * inputs + i] +=
                (int64_t)(errors[0][out_cell * s->outputs + o] - FE_ERROR_ZERO) * quantised[at_weight(s, o, tap, i)];
}

static int halves;

static void add_gradient(int64_t in_cell, int64_t out_cell, int64_t tap, const fe_conv *s) {
    int64_t inputs = s->inputs / s->groups, outputs = s->outputs / s->groups;
    for (int64_t o = 0; o < s->outputs; o++) {
        int64_t error = errors[0][out_cell * s->outputs + o] - FE_ERROR_ZERO;
        if (halves == 2)
            error = FE_HALF * error + errors[1][out_cell * s->outputs + o] - FE_ERROR_ZERO;
        for (int64_t i = 0; i < inputs; i++)
            sums[at_weight(s, o, tap, i)] += (int64_t)(x[in_cell * s->inputs + o / outputs * inputs + i] - zero) * error;
    }
}

/* Scales and bytes of the weight as fe_int8_pack should find them, for the convolution or its transpose. */
static void quantise_weight(const fe_conv *s, int transposed) {
    int64_t inputs = s->inputs / s->groups, outputs = s->outputs / s->groups, taps = s->kernel[0] * s->kernel[1];
    int64_t channels = transposed ? s->inputs : s->outputs;
    for (int64_t c = 0; c < channels; c++)
        scales[c] = 0.0f;
    for (int round = 0; round < 2; round++)
        for (int64_t o = 0; o < s->outputs; o++)
            for (int64_t t = 0; t < taps; t++)
                for (int64_t i = 0; i < inputs; i++) {
                    float *scale = scales + (transposed ? o / outputs * inputs + i : o);
                    float value = weight[at_weight(s, o, t, i)];
                    if (round)
                        quantised[at_weight(s, o, t, i)] =
                            (int8_t)lrintf(value * (1.0f / (*scale > 0.0f ? *scale / 127.0f : 1.0f)));
                    else if (fabsf(value) > *scale)
                        *scale = fabsf(value);
                }
    for (int64_t c = 0; c < channels; c++)
        scales[c] = scales[c] > 0.0f ? scales[c] / 127.0f : 1.0f;
}

static int64_t map_in(const fe_conv *s) { return s->images * s->height * s->width * s->inputs; }
static int64_t map_out(const fe_conv *s) { return s->images * side(s, 0) * side(s, 1) * s->outputs; }

static void check_convolution(fe_isa isa, const fe_conv *s, int transposed, int with_bias) {
    fe_packed_sizes sizes = fe_int8_packed(isa, s, transposed);
    fe_packed packed = {packed_bytes, packed_sums, scales};
    int64_t count = transposed ? map_in(s) : map_out(s), channels = transposed ? s->inputs : s->outputs;
    const int here = transposed ? FE_ERROR_ZERO : zero;
    const float scale = 0.013f;
    if (sizes.bytes > 16 * MOST || sizes.sums > 4 * MOST || sizes.scales != channels) {
        fail("sizes", isa, s);
        return;
    }
    memset(packed_bytes, 77, sizeof packed_bytes);
    if (fe_int8_pack(isa, &packed, weight, s, transposed) != 0)
        fail("pack", isa, s);
    float found[MARGIN];
    memcpy(found, scales, sizeof found);
    quantise_weight(s, transposed);
    if (memcmp(found, scales, (size_t)(channels < MARGIN ? channels : MARGIN) * sizeof *found) != 0)
        fail("scales", isa, s);
    memset(sums, 0, sizeof sums);
    visit_taps(s, transposed ? add_transposed : add_forward);
    for (int64_t i = 0; i < count + MARGIN; i++)
        out[i] = 99.0f;
    fe_conv_out to = {.floats = out};
    const uint8_t *from = transposed ? errors[0] : x;
    if (fe_int8_conv(isa, &to, from, here, scale, &packed, with_bias ? bias : NULL, s, transposed) != 0)
        fail("convolution", isa, s);
    float low = 0.0f, high = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        float expected = (float)sums[i] * (scale * scales[i % channels]) + (with_bias ? bias[i % channels] : 0.0f);
        low = expected < low ? expected : low;
        high = expected > high ? expected : high;
        if (memcmp(&out[i], &expected, sizeof expected) != 0 && (out[i] != 0.0f || expected != 0.0f)) {
            fail(transposed ? "transposed" : "forward", isa, s);
            return;
        }
    }
    if (to.low != low || to.high != high)
        fail("range of a result", isa, s);
    for (int64_t i = count; i < count + MARGIN; i++)
        if (out[i] != 99.0f)
            fail("memory behind", isa, s);
    float step = (high - low) / 255.0f + 1e-20f;
    fe_conv_out short_to = {
        .bytes = bytes, .rounding = {.inverse = 1.0f / step, .zero = (int)lrintf(-low / step), .least = 0, .most = 255}};
    memset(bytes, 99, (size_t)count + MARGIN);
    if (fe_int8_conv(isa, &short_to, from, here, scale, &packed, with_bias ? bias : NULL, s, transposed) != 0 ||
        short_to.low != low || short_to.high != high)
        fail("convolution to bytes", isa, s);
    fe_quantise(isa, again, out, count, &short_to.rounding);
    if (memcmp(bytes, again, (size_t)count) != 0)
        fail("bytes", isa, s);
    for (int64_t i = count; i < count + MARGIN; i++)
        if (bytes[i] != 99)
            fail("memory behind bytes", isa, s);
}

static void check_gradient(fe_isa isa, const fe_conv *s) {
    int64_t count = s->outputs * s->kernel[0] * s->kernel[1] * (s->inputs / s->groups);
    for (halves = 1; halves <= 2; halves++) {
        memset(sums, 0, sizeof sums);
        visit_taps(s, add_gradient);
        for (int64_t pieces = 1; pieces <= 5; pieces += 4) {
            for (int64_t i = 0; i < count + MARGIN; i++)
                out[i] = 99.0f;
            if (fe_int8_grad_weight(isa, out, x, zero, 0.25f, errors[0], halves == 2 ? errors[1] : NULL, s, pieces) != 0)
                fail("gradient", isa, s);
            for (int64_t i = 0; i < count; i++)
                if (out[i] != (float)((double)sums[i] * 0.25)) {
                    fail(halves == 2 ? "gradient of 16 bits" : "gradient of the weight", isa, s);
                    break;
                }
            for (int64_t i = count; i < count + MARGIN; i++)
                if (out[i] != 99.0f)
                    fail("memory behind a gradient", isa, s);
        }
    }
}

static void draw(uint64_t *state, const fe_conv *s, int extreme) {
    for (int64_t i = 0; i < map_in(s); i++)
        x[i] = extreme ? 255 : (uint8_t)(int)(128.0f + 128.0f * check_random(state));
    for (int64_t i = 0; i < map_out(s); i++)
        for (int half = 0; half < 2; half++)
            errors[half][i] = extreme ? 0 : (uint8_t)(int)(128.0f + 128.0f * check_random(state));
    for (int64_t i = 0; i < s->outputs * s->kernel[0] * s->kernel[1] * (s->inputs / s->groups); i++)
        weight[i] = extreme ? 1.0f : check_random(state);
    for (int64_t i = 0; i < (s->inputs > s->outputs ? s->inputs : s->outputs); i++)
        bias[i] = check_random(state);
}

static void check_shapes(fe_isa isa) {
    uint64_t state = 88172645463325252u;
    static const int zeros[] = {0, 77, 255};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int extreme = 0; extreme < 2; extreme++) {
            zero = extreme ? 0 : zeros[i % 3];
            if (!fe_conv_is_valid(&shapes[i]))
                fail("validity", isa, &shapes[i]);
            draw(&state, &shapes[i], extreme);
            for (int transposed = 0; transposed < 2; transposed++)
                check_convolution(isa, &shapes[i], transposed, (int)(i + (size_t)extreme) % 2);
            check_gradient(isa, &shapes[i]);
        }
}

/* Results that go past the caches where groups are whole cache lines, and that must not where they are others. */
static void check_large(fe_isa ceiling) {
    enum { MOST_LARGE = 4 * 64 * 64 * 80 };
    static const fe_conv large[] = {
        {2, 8, 128, 64, 64, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 2},
        {2, 8, 144, 64, 64, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 2},
        {4, 8, 80, 64, 64, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 4},
        {1, 32, 256, 64, 64, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 32},
    };
    static float expected[MOST_LARGE], found[MOST_LARGE] __attribute__((aligned(64)));
    uint64_t state = 362436069;
    const fe_packed packed = {packed_bytes, packed_sums, scales};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        const fe_conv *s = &large[i];
        for (int64_t k = 0; k < map_in(s); k++)
            x[k] = (uint8_t)(int)(128.0f + 128.0f * check_random(&state));
        for (int64_t k = 0; k < s->outputs * s->inputs / s->groups; k++)
            weight[k] = check_random(&state);
        for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
            fe_conv_out to = {.floats = isa == FE_SERIAL ? expected : found};
            if (!fe_isa_available((fe_isa)isa) || fe_int8_isa((fe_isa)isa) != (fe_isa)isa)
                continue;
            if (fe_int8_pack((fe_isa)isa, &packed, weight, s, 0) != 0 ||
                fe_int8_conv((fe_isa)isa, &to, x, 77, 0.013f, &packed, NULL, s, 0) != 0 ||
                memcmp(to.floats, expected, (size_t)map_out(s) * sizeof *expected) != 0)
                fail("a large result", (fe_isa)isa, s);
        }
    }
}

/* All versions round alike, bit for bit; and as they should. */
static void check_bytes(fe_isa isa) {
    uint64_t state = 1234567;
    enum { COUNT = 9973 };
    for (int i = 0; i < COUNT; i++)
        out[i] = 3.0f * check_random(&state);
    out[5] = 0.5f, out[6] = 1.5f, out[7] = -2.5f;
    float low, high;
    if (fe_range(isa, &low, &high, out, COUNT) != 0 || low > -2.9f || high < 2.9f)
        fail("range", isa, NULL);
    static const int64_t lengths[] = {0, 1, 7, 15, 31, 33, 97, 4097, COUNT};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++)
        for (int stochastic = 0; stochastic < 2; stochastic++) {
            fe_rounding rounding = {1.0f, 128, 127, 129, stochastic, 42};
            rounding.least = k % 2 ? 1 : 127, rounding.most = k % 2 ? 255 : 129;
            rounding.inverse = k % 2 ? 40.0f : 1.0f;
            memset(bytes, 7, sizeof bytes);
            memset(again, 7, sizeof again);
            fe_quantise(isa, bytes, out, lengths[k], &rounding);
            fe_quantise(FE_SERIAL, again, out, lengths[k], &rounding);
            if (memcmp(bytes, again, sizeof bytes) != 0)
                fail(stochastic ? "stochastic rounding" : "rounding", isa, NULL);
            for (int64_t i = 0; i < lengths[k]; i++) {
                float exact = fminf(fmaxf(out[i] * rounding.inverse, (float)rounding.least - 128.0f),
                                    (float)rounding.most - 128.0f);
                float off = (float)(bytes[i] - 128) - exact;
                if (stochastic ? fabsf(off) >= 1.0f : bytes[i] - 128 != lrintf(exact)) {
                    fail("a rounded number", isa, NULL);
                    break;
                }
            }
            fe_quantise_error(isa, other, bytes, again, out, lengths[k], &rounding, 32512.0f / 3.0f);
            fe_quantise(isa, bytes_alone, out, lengths[k], &rounding);
            if (memcmp(other, bytes_alone, (size_t)lengths[k]) != 0)
                fail("bytes beside halves", isa, NULL);
            for (int64_t i = 0; i < lengths[k]; i++)
                if (FE_HALF * (bytes[i] - 128) + again[i] - 128 != lrintf(out[i] * (32512.0f / 3.0f)) || !bytes[i] ||
                    !again[i]) {
                    fail("halves", isa, NULL);
                    break;
                }
            fe_dequantise(isa, out_again, bytes, lengths[k], 0.3f, 9);
            for (int64_t i = 0; i < lengths[k]; i++)
                if (out_again[i] != (float)(bytes[i] - 9) * 0.3f) {
                    fail("dequantise", isa, NULL);
                    break;
                }
        }
    const float strange[] = {NAN, INFINITY, -INFINITY};
    static const int64_t places[] = {0, 17, 4096, COUNT - 1};
    const fe_conv pointwise = {1, 16, 16, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1};
    for (int i = 0; i < 12; i++) {
        int64_t place = places[i % 4];
        float before = out[place];
        out[place] = strange[i / 4];
        if (fe_range(isa, &low, &high, out, COUNT) != FE_NOT_FINITE)
            fail("range of what is not finite", isa, NULL);
        fe_packed packed = {packed_bytes, packed_sums, scales};
        if (place < 256 && fe_int8_pack(isa, &packed, out, &pointwise, i % 2) != FE_NOT_FINITE)
            fail("weights that are not finite", isa, NULL);
        out[place] = before;
    }
}

static void check_what_is_refused(void) {
    fe_conv one = shapes[0];
    one.inputs = 15, one.groups = 2;
    int accepted = fe_conv_is_valid(&one);
    one = shapes[0], one.kernel[0] = 16;
    accepted |= fe_conv_is_valid(&one);
    one = shapes[0], one.images = INT64_MAX / 4;
    accepted |= fe_conv_is_valid(&one);
    one = shapes[0], one.inputs = FE_MOST_PRODUCTS / 9 + 1;
    accepted |= fe_conv_is_valid(&one);
    one = shapes[0], one.height = 1, one.padding[0] = 0;
    accepted |= fe_conv_is_valid(&one);
    one = shapes[0], one.width = FE_LONGEST_SIDE - 2;
    const int is_longest = fe_conv_is_valid(&one);
    one.width++;
    accepted |= fe_conv_is_valid(&one);
    one.width = one.padding[1] = FE_LONGEST_SIDE;
    accepted |= fe_conv_is_valid(&one);
    one.width = 8, one.padding[1] = INT64_MAX;
    accepted |= fe_conv_is_valid(&one);
    if (!is_longest)
        fail("the longest side", FE_SERIAL, &one);
    if (accepted)
        fail("what should be refused", FE_SERIAL, NULL);
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("int8: %s\n", fe_isa_name(fe_int8_isa(ceiling)));
    for (int isa = 0; isa <= (int)ceiling; isa++) {
        if (!fe_isa_available((fe_isa)isa) || fe_int8_isa((fe_isa)isa) != (fe_isa)isa)
            continue;
        check_bytes((fe_isa)isa);
        check_shapes((fe_isa)isa);
        fe_set_parallel_for(backwards);
        check_bytes((fe_isa)isa);
        check_shapes((fe_isa)isa);
        fe_set_parallel_for(NULL);
    }
    check_large(ceiling);
    check_what_is_refused();
    printf("%d failures\n", failures);
    return failures != 0;
}
