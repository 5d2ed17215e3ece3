/* Every version of the kernels of pruned gradients that this CPU offers, against sums in double precision that are written down
 * from their definition. Exits 1 on a mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "check.h"
#include "check_conv.h"
#include "parallel.h"
#include "sparse_grad/sparse_grad.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 1 << 17, MARGIN = 64, CANARY = 0xa5 };

/* Awkward numbers of channels and cells, strides, dilations, groups, kernels of all shapes that reach over the map or leave cells
 * out; maps of several tiles, many images, channels that end a stretch, a block or a byte. */
static const fe_conv shapes[] = {
    {2, 16, 16, 8, 8, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},   {1, 1, 1, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {3, 7, 15, 5, 7, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},    {1, 31, 33, 6, 5, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1},
    {2, 3, 97, 9, 9, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1},    {1, 97, 7, 4, 4, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},
    {9, 64, 64, 4, 4, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},   {2, 12, 20, 7, 6, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1},
    {1, 8, 48, 11, 3, {5, 3}, {3, 2}, {2, 0}, {1, 1}, 1},   {2, 6, 9, 8, 8, {3, 3}, {1, 1}, {2, 2}, {2, 2}, 3},
    {2, 16, 16, 7, 7, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 16},  {1, 33, 33, 9, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 33},
    {1, 4, 4, 3, 3, {5, 5}, {1, 1}, {2, 2}, {1, 1}, 1},     {1, 5, 3, 12, 13, {2, 4}, {2, 3}, {1, 2}, {3, 1}, 1},
    {40, 24, 40, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1},  {1, 2, 3, 1, 300, {1, 7}, {1, 1}, {0, 3}, {1, 1}, 1},
    {1, 3, 2, 90, 70, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},   {2, 20, 3, 40, 33, {3, 3}, {2, 2}, {1, 1}, {1, 1}, 1},
    {1, 20, 130, 5, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1},  {3, 96, 64, 4, 4, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 2},
    {2, 5, 6, 3, 1, {3, 1}, {2, 2}, {1, 1}, {2, 1}, 1},     {1, 1, 1, 1, 1, {1, 1}, {1, 2}, {0, 1}, {1, 1}, 1},
    {2, 10, 30, 6, 5, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 5},   {1, 9, 5, 14, 11, {7, 7}, {2, 1}, {3, 3}, {1, 1}, 1},
    {3, 64, 40, 7, 6, {1, 1}, {2, 2}, {0, 0}, {1, 1}, 1},   {2, 128, 33, 5, 9, {1, 1}, {1, 3}, {0, 0}, {1, 1}, 1},
    {2, 36, 36, 20, 22, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 36},  {1, 70, 9, 6, 6, {1, 3}, {2, 1}, {0, 1}, {1, 1}, 1},
};

static float x[MOST], grad[MOST], dense[MOST], weight[MOST], pretended[MOST], scales[4096];
static float out[MOST + 2 * MARGIN], again[MOST + 2 * MARGIN];
static uint8_t bits[MOST];
static uint32_t places[2 * MOST];
static float values[2 * MOST];
static int32_t counts[MOST], bounds[2 * MOST], starts[4 * MOST];
static fe_listed entries[MOST];
static double expected[MOST], magnitude[MOST];

/* Sums the products of both gradients: of the input with `w`, of the weight with x. */
static void define(const fe_conv *s, const float *w, int of_weight) {
    int64_t rows = side(s, 0), columns = side(s, 1), inputs = s->inputs / s->groups, outputs = s->outputs / s->groups;
    memset(expected, 0, sizeof expected);
    memset(magnitude, 0, sizeof magnitude);
    for (int64_t n = 0; n < s->images; n++)
        for (int64_t p = 0; p < rows * columns; p++)
            for (int64_t tap = 0; tap < s->kernel[0] * s->kernel[1]; tap++) {
                int64_t h = p / columns * s->stride[0] - s->padding[0] + tap / s->kernel[1] * s->dilation[0];
                int64_t v = p % columns * s->stride[1] - s->padding[1] + tap % s->kernel[1] * s->dilation[1];
                if (h < 0 || h >= s->height || v < 0 || v >= s->width)
                    continue;
                const float *g = dense + (n * rows * columns + p) * s->outputs;
                int64_t cell = ((n * s->height + h) * s->width + v) * s->inputs;
                for (int64_t o = 0; o < s->outputs; o++)
                    for (int64_t i = 0; g[o] != 0.0f && i < inputs; i++) {
                        int64_t at = (o * s->kernel[0] * s->kernel[1] + tap) * inputs + i, in = cell + o / outputs * inputs + i;
                        double product = (double)g[o] * (double)(of_weight ? x[in] : w[at]);
                        expected[of_weight ? at : in] += product;
                        magnitude[of_weight ? at : in] += fabs(product);
                    }
            }
}

static void compare(const char *what, fe_isa isa, const fe_conv *s, int64_t count) {
    const unsigned char *before = (const unsigned char *)out, *behind = (const unsigned char *)(out + MARGIN + count);
    int wrong = 0, outside = 0;
    for (int64_t i = 0; i < count; i++)
        wrong |= !(fabs((double)out[MARGIN + i] - expected[i]) <= 2e-6 * magnitude[i]);
    for (size_t i = 0; i < MARGIN * sizeof *out; i++)
        outside |= before[i] != CANARY || behind[i] != CANARY;
    if (wrong)
        fail(what, isa, s);
    if (outside)
        fail("wrote outside", isa, s);
}

/* Random bits of a word, as lanes/random.h has them. */
static uint32_t word(uint64_t seed, uint32_t counter) {
    seed += 0x9e3779b97f4a7c15u;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
    seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebu;
    seed ^= seed >> 31;
    uint32_t b = counter ^ (uint32_t)seed;
    b = (b ^ b >> 16) * 0x21f0aaadu;
    b = ((b ^ b >> 15) + (uint32_t)(seed >> 32)) * 0xd35a2d97u;
    return b ^ b >> 15;
}

/* Everything that pruning leaves, in its order. */
static void check_prune(fe_isa isa, const fe_conv *s, const fe_nonzeros *to, float threshold, uint64_t seed) {
    const int64_t channels = to->channels, runs = (channels + 31) / 32;
    const fe_chunks chunks = fe_chunks_of(to->pixels, channels);
    if (fe_prune(isa, to, grad, threshold, seed) != 0)
        fail("error in prune", isa, s);
    int wrong = 0;
    for (int64_t pixel = 0, i = 0; pixel < to->pixels; pixel++) {
        const int64_t chunk = pixel / chunks.pixels, first = chunk * chunks.room, in_chunk = pixel % chunks.pixels;
        i = in_chunk ? i : 0;
        for (int64_t c = 0; c < channels; c++) {
            if (c % FE_STRETCH == 0)
                wrong |= bounds[pixel * chunks.bounds + c / FE_STRETCH] != first + i;
            const float value = grad[pixel * channels + c];
            const uint32_t w = word(seed, (uint32_t)((pixel * runs + c / 32) * 16 + c % 16));
            const float chance = (float)(c % 32 < 16 ? w & 0xffff : w >> 16) / 65536.0f + 0.5f / 65536.0f;
            float left = fabsf(value) <= chance * threshold ? 0.0f : value;
            if (left != 0.0f && fabsf(value) < threshold)
                left = copysignf(threshold, value);
            dense[pixel * channels + c] = left;
            if (left != 0.0f) {
                wrong |= places[first + i] != (uint32_t)(in_chunk << FE_CHANNEL_BITS | c);
                wrong |= memcmp(&values[first + i], &left, sizeof left) != 0;
                i++;
            }
        }
        wrong |= bounds[pixel * chunks.bounds + chunks.bounds - 1] != first + i;
        if (in_chunk == chunks.pixels - 1 || pixel == to->pixels - 1)
            wrong |= counts[chunk] != i;
    }
    if (wrong)
        fail("prune", isa, s);
    if (fe_densify(out, to) != 0 || memcmp(out, dense, (size_t)(to->pixels * channels) * sizeof *out) != 0)
        fail("densify", isa, s);
}

static void check_signs(fe_isa isa, const fe_conv *s) {
    const int64_t taps = s->kernel[0] * s->kernel[1], inputs = s->inputs / s->groups, bytes = (inputs + 7) / 8;
    memset(bits, CANARY, sizeof bits);
    if (fe_pack_signs(isa, bits, scales, weight, s->outputs, taps, inputs) != 0)
        fail("error in signs", isa, s);
    int wrong = bits[s->outputs * taps * bytes] != CANARY;
    for (int64_t k = 0; k < s->outputs; k++) {
        double sum = 0.0;
        for (int64_t i = 0; i < taps * inputs; i++) {
            const int64_t at = k * taps * inputs + i, byte = (k * taps + i / inputs) * bytes + i % inputs / 8;
            const int negative = bits[byte] >> i % inputs % 8 & 1;
            wrong |= negative != (weight[at] < 0.0f);
            pretended[at] = negative ? -scales[k] : scales[k];
            sum += fabs((double)weight[at]);
        }
        wrong |= !(fabs((double)scales[k] - sum / (double)(taps * inputs)) <= 1e-6 * (double)scales[k]);
    }
    if (wrong)
        fail("signs", isa, s);
}

typedef int (*gradient)(fe_isa isa, float *to, const fe_nonzeros *from, const fe_lists *lists, const fe_conv *s);

static int of_weight(fe_isa isa, float *to, const fe_nonzeros *from, const fe_lists *lists, const fe_conv *s) {
    (void)from;
    return fe_sparse_grad_weight(isa, to, lists, x, s, 1);
}
static int of_weight_in_pieces(fe_isa isa, float *to, const fe_nonzeros *from, const fe_lists *lists, const fe_conv *s) {
    (void)from;
    return fe_sparse_grad_weight(isa, to, lists, x, s, 7);
}
static int of_input(fe_isa isa, float *to, const fe_nonzeros *from, const fe_lists *lists, const fe_conv *s) {
    const fe_sparse_weight floats = {.floats = weight};
    return fe_sparse_grad_input(isa, to, from, lists, &floats, s);
}
static int of_input_by_signs(fe_isa isa, float *to, const fe_nonzeros *from, const fe_lists *lists, const fe_conv *s) {
    const fe_sparse_weight packed = {.bits = bits, .scales = scales};
    return fe_sparse_grad_input(isa, to, from, lists, &packed, s);
}

/* Twice, the second time by the pool's stand-in: the same bits. */
static void check_gradient(const char *what, gradient call, fe_isa isa, const fe_conv *s, const fe_nonzeros *from,
                           const fe_lists *lists, int64_t count) {
    for (int pooled = 0; pooled < 2; pooled++) {
        fe_set_parallel_for(pooled ? backwards : NULL);
        memset(out, CANARY, sizeof out);
        if (call(isa, out + MARGIN, from, lists, s) != 0)
            fail("error in a gradient", isa, s);
        compare(what, isa, s, count);
        if (pooled && memcmp(out + MARGIN, again, (size_t)count * sizeof *out) != 0)
            fail("other bits in a pool", isa, s);
        memcpy(again, out + MARGIN, (size_t)count * sizeof *out);
    }
}

/* All in one call, by signs: the bits that the calls one by one have left in `first`, which are gradients of input and weight. */
static void check_pass(fe_isa isa, const fe_conv *s, double sparsity, uint64_t seed, const fe_lists *lists,
                       const fe_nonzeros *from, int64_t of_x, int64_t of_w) {
    static float first[2 * MOST], made[2 * MOST];
    fe_sparse_pass pass = {made, made + of_x, grad, x, weight, 1, -1.0f, sparsity, seed, 0};
    const int64_t bytes = fe_sparse_scratch(isa, s);
    void *memory = bytes < 0 ? NULL : aligned_alloc(64, (size_t)bytes);
    if (!memory || of_input_by_signs(isa, first, from, lists, s) || of_weight(isa, first + of_x, from, lists, s) ||
        fe_sparse_backward(isa, &pass, memory, s, 2))
        fail("error in a pass", isa, s);
    else if (memcmp(made, first, (size_t)(of_x + of_w) * sizeof *made) != 0)
        fail("other bits in one call", isa, s);
    free(memory);
}

static void check(fe_isa isa, const fe_conv *s, double sparsity, uint64_t seed) {
    const int64_t pixels = s->images * side(s, 0) * side(s, 1), count = pixels * s->outputs;
    const int64_t of_x = s->images * s->height * s->width * s->inputs;
    const int64_t of_w = s->outputs * s->kernel[0] * s->kernel[1] * (s->inputs / s->groups);
    const fe_nonzeros left = {pixels, s->outputs, places, values, counts, bounds};
    const fe_lists lists = {starts, entries};
    if (!fe_sparse_conv_is_valid(s) || of_x > MOST || of_w > MOST || count > MOST ||
        fe_sparse_tiles(isa, s) * (s->outputs + 1) > 4 * MOST) {
        fail("sizes", isa, s);
        return;
    }
    float threshold;
    fe_set_parallel_for(sparsity > 0.5 ? backwards : NULL);
    if (fe_pruning_threshold(&threshold, grad, count, sparsity) != 0)
        fail("error in threshold", isa, s);
    double zeros = 0.0;
    for (int64_t i = 0; i < count; i++)
        zeros += fmax(0.0, grad[i] == 0.0f ? 1.0 : threshold > 0.0f ? 1.0 - fabs((double)grad[i] / (double)threshold) : 0.0);
    if (!(fabs(zeros / (double)count - sparsity) <= (count < 100 ? 0.1 : 0.01)) && threshold > 0.0f)
        fail("threshold", isa, s);
    check_prune(isa, s, &left, threshold, seed);
    check_signs(isa, s);
    if (fe_sparse_lists(isa, &lists, &left, s) != 0)
        fail("error in lists", isa, s);
    define(s, weight, 1);
    check_gradient("gradient of the weight", of_weight, isa, s, &left, &lists, of_w);
    check_gradient("gradient of the weight in pieces", of_weight_in_pieces, isa, s, &left, &lists, of_w);
    define(s, weight, 0);
    check_gradient("gradient of the input", of_input, isa, s, &left, &lists, of_x);
    define(s, pretended, 0);
    check_gradient("gradient of the input by signs", of_input_by_signs, isa, s, &left, &lists, of_x);
    check_pass(isa, s, sparsity, seed, &lists, &left, of_x, of_w);
}

/* A NaN and infinities stay, and do not count for the threshold. */
static void check_special(fe_isa isa) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, 3.0f, -3.0f};
    static const fe_conv s = {1, 1, 8, 1, 1, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1};
    const fe_nonzeros left = {1, 8, places, values, counts, bounds};
    float threshold;
    if (fe_pruning_threshold(&threshold, special, 8, 0.8) != 0 || !(threshold > 3.0f && threshold < 100.0f))
        fail("threshold of what is not finite", isa, &s);
    if (fe_prune(isa, &left, special, threshold, 1) != 0 || counts[0] < 3 || counts[0] > 5 || !isnan(values[0]) ||
        values[1] != INFINITY || values[2] != -INFINITY)
        fail("what is not finite", isa, &s);
    if (fe_prune(isa, &left, special, 0.0f, 1) != 0 || counts[0] != 6)
        fail("nothing pruned", isa, &s);
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("sparse_grad: %s\n", fe_isa_name(fe_sparse_grad_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int i = 0; i < MOST; i++) {
        x[i] = check_random(&state);
        weight[i] = i % 11 ? check_random(&state) : 0.0f;
        grad[i] = i % 7 ? check_random(&state) * check_random(&state) * check_random(&state) : 0.0f;
    }
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
        if (!fe_isa_available((fe_isa)isa))
            continue;
        check_special((fe_isa)isa);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check((fe_isa)isa, &shapes[i], i % 3 == 2 ? 0.95 : i % 3 ? 0.7 : 0.1, (uint64_t)(i + 1) << 31);
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
