/* Every version of the gradient filter's kernels that this CPU offers, against sums in double that are written down from
 * their definition. Exits 1 on a mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "check.h"
#include "gradient_filter/gradient_filter.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

enum { MOST = 1 << 18, WORK = 1 << 21, CANARY = 64 };

typedef struct {
    int64_t images, channels, height, width, patch, stride, offset, components;
} shape;

/* Maps that divide, that do not, that are smaller than a window or lie beside it; windows that no vector serves. */
static const shape shapes[] = {
    {2, 16, 8, 8, 2, 1, 0, 1},   {1, 1, 7, 9, 2, 1, 0, 1},    {2, 7, 9, 37, 2, 2, 1, 1},   {1, 15, 12, 70, 4, 1, -1, 1},
    {3, 31, 5, 6, 4, 2, 0, 1},   {1, 33, 11, 13, 3, 1, 2, 1}, {1, 97, 6, 35, 2, 1, -2, 2}, {2, 33, 7, 75, 2, 2, 1, 4},
    {1, 15, 9, 67, 4, 1, 0, 5},  {1, 31, 9, 10, 4, 2, 1, 16}, {1, 7, 17, 40, 8, 1, 3, 10}, {1, 5, 18, 33, 16, 2, 0, 7},
    {1, 97, 3, 3, 5, 1, 7, 1},   {2, 9, 4, 4, 2, 1, -9, 3},   {1, 64, 20, 36, 2, 3, 0, 4}, {1, 300, 4, 4, 16, 1, 0, 6},
};

static float map[MOST], grad[MOST], sums[MOST], means[MOST], out[MOST + CANARY], again[MOST + CANARY];
static float tap_sums[MOST], gram[MOST], gram_again[MOST];
static int failures;

static void fail(const char *what, fe_isa isa, fe_layout layout, const shape *s) {
    printf("FAIL %s: %s, %s, %ldx%ldx%ldx%ld, patch %ld, stride %ld, offset %ld, %ld components\n", what, fe_isa_name(isa),
           layout == FE_CHANNELS_LAST ? "channels last" : "contiguous", (long)s->images, (long)s->channels,
           (long)s->height, (long)s->width, (long)s->patch, (long)s->stride, (long)s->offset, (long)s->components);
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last -= 3)
        task(last - 3 > begin ? last - 3 : begin, last, context);
    return 0;
}

static int64_t map_at(const fe_grid *grid, fe_layout layout, int64_t n, int64_t c, int64_t h, int64_t w) {
    return layout == FE_CHANNELS_LAST ? ((n * grid->height + h) * grid->width + w) * grid->channels + c
                                      : ((n * grid->channels + c) * grid->height + h) * grid->width + w;
}

static int64_t sum_at(const fe_grid *grid, fe_layout layout, int64_t u, int64_t n, int64_t p, int64_t q, int64_t c) {
    int64_t patch = (n * grid->patches[0] + p) * grid->patches[1] + q;
    int64_t patches = grid->images * grid->patches[0] * grid->patches[1];
    return layout == FE_CHANNELS_LAST ? (u * patches + patch) * grid->channels + c
                                      : (u * grid->channels + c) * patches + patch;
}

/* Component u's sign at a cell of a window: a row of Sylvester's matrix. */
static double basis(const fe_grid *grid, int64_t u, int64_t row, int64_t column) {
    int64_t i = row / (grid->window[0] / grid->side), j = column / (grid->window[1] / grid->side);
    return __builtin_popcountll((unsigned long long)((i * grid->side + j) & grid->slots[u])) % 2 ? -1.0 : 1.0;
}

static int near(double value, double expected, double magnitude) {
    return fabs(value - expected) <= 1e-5 * magnitude + 1e-30;
}

/* One component of one window in double: its weighted sum, its sum of magnitudes, and the sum of the basis. */
static void window_sum(const float *x, const fe_grid *grid, fe_layout layout, int64_t u, int64_t n, int64_t p, int64_t q,
                       int64_t c, double *sum, double *magnitude, double *of_basis, int64_t *real) {
    *sum = *magnitude = *of_basis = 0.0;
    *real = 0;
    for (int64_t i = 0; i < grid->window[0]; i++)
        for (int64_t j = 0; j < grid->window[1]; j++) {
            int64_t h = p * grid->window[0] - grid->offset[0] + i, w = q * grid->window[1] - grid->offset[1] + j;
            if (h < 0 || h >= grid->height || w < 0 || w >= grid->width)
                continue;
            double value = x[map_at(grid, layout, n, c, h, w)], sign = basis(grid, u, i, j);
            *sum += sign * value;
            *magnitude += fabs(value);
            *of_basis += sign;
            ++*real;
        }
}

static int pool_is_right(const float *received, const float *x, const fe_grid *grid, fe_layout layout, int as_means) {
    for (int64_t n = 0; n < grid->images; n++)
        for (int64_t p = 0; p < grid->patches[0]; p++)
            for (int64_t q = 0; q < grid->patches[1]; q++)
                for (int64_t c = 0; c < grid->channels; c++) {
                    double mean = 0.0;
                    for (int64_t u = 0; u < grid->components; u++) {
                        double sum, magnitude, of_basis;
                        int64_t real;
                        window_sum(x, grid, layout, u, n, p, q, c, &sum, &magnitude, &of_basis, &real);
                        if (as_means) {
                            double cells = (double)(grid->side * grid->side);
                            if (u == 0)
                                sum = mean = real ? sum / (double)real : 0.0;
                            else
                                sum = (sum - mean * of_basis) / cells;
                            magnitude = real ? magnitude / (double)real : 0.0;
                        }
                        if (!near(received[sum_at(grid, layout, u, n, p, q, c)], sum, magnitude))
                            return 0;
                    }
                }
    return 1;
}

/* `factors`, (component, channel), may be NULL, and so may `magnitudes`, those of the terms that coefficients are sums of. */
static int fill_is_right(const float *received, const float *coefficients, const float *magnitudes, const float *factors,
                         const fe_grid *grid, fe_layout layout, double scale) {
    for (int64_t n = 0; n < grid->images; n++)
        for (int64_t c = 0; c < grid->channels; c++)
            for (int64_t h = 0; h < grid->height; h++)
                for (int64_t w = 0; w < grid->width; w++) {
                    int64_t row = h + grid->offset[0], column = w + grid->offset[1];
                    double expected = 0.0, magnitude = 0.0;
                    for (int64_t u = 0; u < grid->components; u++) {
                        if (row < 0 || column < 0 || row >= grid->patches[0] * grid->window[0] ||
                            column >= grid->patches[1] * grid->window[1])
                            break;
                        int64_t at = sum_at(grid, layout, u, n, row / grid->window[0], column / grid->window[1], c);
                        double factor = scale * (factors ? factors[u * grid->channels + c] : 1.0);
                        double value = factor * coefficients[at];
                        expected += value * basis(grid, u, row % grid->window[0], column % grid->window[1]);
                        magnitude += magnitudes ? fabs(factor * magnitudes[at]) : fabs(value);
                    }
                    if (!near(received[map_at(grid, layout, n, c, h, w)], expected, magnitude))
                        return 0;
                }
    return 1;
}

static int gram_is_right(const fe_grid *grid, fe_layout layout, double scale) {
    for (int64_t u = 0; u < grid->components; u++)
        for (int64_t c = 0; c < grid->channels; c++) {
            double expected = 0.0, magnitude = 0.0;
            for (int64_t n = 0; n < grid->images; n++)
                for (int64_t p = 0; p < grid->patches[0]; p++)
                    for (int64_t q = 0; q < grid->patches[1]; q++) {
                        int64_t at = sum_at(grid, layout, u, n, p, q, c);
                        expected += scale * (double)means[at] * sums[at];
                        magnitude += fabs(scale * (double)means[at] * sums[at]);
                    }
            if (!near(gram[u * grid->channels + c], expected, magnitude))
                return 0;
        }
    return 1;
}

static float *guarded(float *buffer, int64_t count) {
    for (int64_t i = 0; i < count + CANARY; i++)
        buffer[i] = -77.0f;
    return buffer;
}

static int is_intact(const float *buffer, int64_t count) {
    for (int64_t i = 0; i < CANARY; i++)
        if (buffer[count + i] != -77.0f)
            return 0;
    return 1;
}

typedef struct {
    unsigned char slots[FE_LARGEST_SIDE * FE_LARGEST_SIDE];
    fe_grid x, y;
} grids;

/* Of input and output; `of` is filled in, since grids point into it. */
static void cut(grids *of, const shape *s) {
    int64_t side = s->components > 1 ? s->patch : 1, window = s->patch * s->stride;
    int64_t rows = (s->height + s->stride - 1) / s->stride, columns = (s->width + s->stride - 1) / s->stride;
    /* Any order but the constant first. */
    for (int64_t u = 0; u < s->components; u++)
        of->slots[u] = (unsigned char)(u ? side * side - u : 0);
    of->y = (fe_grid){.images = s->images, .channels = s->channels, .height = rows, .width = columns,
                      .window = {s->patch, s->patch}, .side = side, .components = s->components, .slots = of->slots,
                      .patches = {(rows + s->patch - 1) / s->patch, (columns + s->patch - 1) / s->patch}};
    of->x = of->y;
    of->x.height = s->height;
    of->x.width = s->width;
    of->x.window[0] = of->x.window[1] = window;
    of->x.offset[0] = of->x.offset[1] = s->offset;
}

static void check(fe_isa isa, fe_layout layout, const shape *s) {
    grids of;
    cut(&of, s);
    fe_grid x = of.x, y = of.y;
    if (!fe_grid_is_valid(&x) || !fe_grid_is_valid(&y))
        fail("refused", isa, layout, s);
    int64_t cells = s->images * s->channels * s->height * s->width;
    int64_t points = s->components * s->images * y.patches[0] * y.patches[1] * s->channels;

    fe_patch_pool(isa, guarded(out, points), map, &x, layout, 0);
    if (!pool_is_right(out, map, &x, layout, 0) || !is_intact(out, points))
        fail("sums", isa, layout, s);
    memcpy(sums, out, (size_t)points * sizeof *sums);
    fe_set_parallel_for(backwards);
    fe_patch_pool(isa, guarded(again, points), map, &x, layout, 0);
    fe_set_parallel_for(NULL);
    if (memcmp(again, sums, (size_t)points * sizeof *sums) != 0)
        fail("sums split otherwise", isa, layout, s);

    fe_patch_pool(isa, guarded(out, points), grad, &y, layout, 1);
    if (!pool_is_right(out, grad, &y, layout, 1) || !is_intact(out, points))
        fail("means", isa, layout, s);
    memcpy(means, out, (size_t)points * sizeof *means);

    fe_patch_fill(isa, guarded(out, cells), means, &x, layout, 0.25f);
    if (!fill_is_right(out, means, NULL, NULL, &x, layout, 0.25) || !is_intact(out, cells))
        fail("fill", isa, layout, s);

    fe_depthwise_backward(isa, guarded(out, cells), gram, grad, sums, tap_sums, &y, &x, layout, 0.5f);
    if (!fill_is_right(out, means, NULL, tap_sums, &x, layout, 0.5) || !is_intact(out, cells))
        fail("depthwise grad_x", isa, layout, s);
    if (!gram_is_right(&y, layout, 0.5))
        fail("depthwise gram", isa, layout, s);
    fe_set_parallel_for(backwards);
    fe_depthwise_backward(isa, guarded(again, cells), NULL, grad, NULL, tap_sums, &y, &x, layout, 0.5f);
    fe_depthwise_backward(isa, NULL, gram_again, grad, sums, NULL, &y, &x, layout, 0.5f);
    fe_set_parallel_for(NULL);
    if (memcmp(out, again, (size_t)cells * sizeof *out) != 0 ||
        memcmp(gram, gram_again, (size_t)(s->components * s->channels) * sizeof *gram) != 0)
        fail("depthwise apart", isa, layout, s);
}

static float scratch[WORK + CANARY], products[MOST], magnitudes[MOST], conv_gram[MOST + CANARY];

/* Whether a convolution's gram of `outputs` outputs is the products of its means and sums. */
static int conv_gram_is_right(const fe_grid *y, const fe_grid *x) {
    int64_t points = y->images * y->patches[0] * y->patches[1];
    for (int64_t u = 0; u < y->components; u++)
        for (int64_t o = 0; o < y->channels; o++)
            for (int64_t i = 0; i < x->channels; i++) {
                double sum = 0.0, magnitude = 0.0;
                for (int64_t p = 0; p < points; p++) {
                    double term = (double)means[(u * points + p) * y->channels + o] *
                                  (double)sums[(u * points + p) * x->channels + i];
                    sum += term;
                    magnitude += fabs(term);
                }
                if (!near(conv_gram[(u * y->channels + o) * x->channels + i], sum, magnitude))
                    return 0;
            }
    return 1;
}

/* A convolution from as many channels as the shape says to `k`, in slabs of some rows. */
static void check_conv(fe_isa isa, const shape *s, int64_t k, fe_slabs slabs) {
    grids of;
    cut(&of, s);
    fe_grid x = of.x, y = of.y;
    y.channels = k;
    int64_t cells = s->images * s->channels * s->height * s->width, grams = s->components * y.channels * s->channels;
    int64_t points = s->images * y.patches[0] * y.patches[1], floats = fe_conv_scratch(&y, &x, slabs);
    fe_patch_pool(isa, sums, map, &x, FE_CHANNELS_LAST, 0);
    fe_patch_pool(isa, means, grad, &y, FE_CHANNELS_LAST, 1);
    for (int64_t u = 0; u < s->components; u++) {
        const int64_t m = s->channels;
        for (int64_t at = 0; at < points * m; at++) {
            double sum = 0.0, magnitude = 0.0;
            for (int64_t o = 0; o < k; o++) {
                double term = (double)means[u * points * k + at / m * k + o] * (double)tap_sums[(u * k + o) * m + at % m];
                sum += term;
                magnitude += fabs(term);
            }
            products[u * points * m + at] = (float)sum;
            magnitudes[u * points * m + at] = (float)magnitude;
        }
    }
    fe_conv_maps maps = {guarded(out, cells), guarded(conv_gram, grams), grad, sums, tap_sums};
    fe_conv_backward(isa, &maps, &y, &x, slabs, guarded(scratch, floats));
    if (!fill_is_right(out, products, magnitudes, NULL, &x, FE_CHANNELS_LAST, 1.0) || !is_intact(out, cells))
        fail("convolution grad_x", isa, FE_CHANNELS_LAST, s);
    if (!conv_gram_is_right(&y, &x) || !is_intact(conv_gram, grams) || !is_intact(scratch, floats))
        fail("convolution gram", isa, FE_CHANNELS_LAST, s);
    memcpy(gram, conv_gram, (size_t)grams * sizeof *gram);
    fe_set_parallel_for(backwards);
    maps = (fe_conv_maps){guarded(again, cells), NULL, grad, NULL, tap_sums};
    fe_conv_backward(isa, &maps, &y, &x, slabs, scratch);
    maps = (fe_conv_maps){NULL, conv_gram, grad, sums, NULL};
    fe_conv_backward(isa, &maps, &y, &x, slabs, scratch);
    fe_set_parallel_for(NULL);
    if (memcmp(out, again, (size_t)cells * sizeof *out) != 0 || memcmp(gram, conv_gram, (size_t)grams * sizeof *gram) != 0)
        fail("convolution apart", isa, FE_CHANNELS_LAST, s);
}

/* Weights of 7 outputs and `inputs` inputs, in both layouts. */
static void check_taps(fe_isa isa, int64_t inputs, int64_t taps, int64_t components, int innermost) {
    int64_t pairs = 7 * inputs;
    fe_collapse_taps(isa, guarded(out, components * pairs), map, grad, pairs, innermost ? inputs : 1, taps, components);
    fe_spread_taps(isa, guarded(again, pairs * taps), map, grad, pairs, innermost ? inputs : 1, taps, components, 0.5f);
    int wrong = !is_intact(out, components * pairs) || !is_intact(again, pairs * taps);
    for (int64_t o = 0; o < 7; o++)
        for (int64_t i = 0; i < inputs; i++) {
            for (int64_t u = 0; u < components; u++) {
                double sum = 0.0, magnitude = 0.0;
                for (int64_t t = 0; t < taps; t++) {
                    double term = (double)grad[u * taps + t] *
                                  map[innermost ? (o * taps + t) * inputs + i : (o * inputs + i) * taps + t];
                    sum += term;
                    magnitude += fabs(term);
                }
                wrong |= !near(out[u * pairs + o * inputs + i], sum, magnitude);
            }
            for (int64_t t = 0; t < taps; t++) {
                double sum = 0.0, magnitude = 0.0;
                for (int64_t u = 0; u < components; u++) {
                    double term = 0.5 * grad[u * taps + t] * map[u * pairs + o * inputs + i];
                    sum += term;
                    magnitude += fabs(term);
                }
                wrong |= !near(again[innermost ? (o * taps + t) * inputs + i : (o * inputs + i) * taps + t], sum,
                               magnitude);
            }
        }
    if (wrong) {
        printf("FAIL taps on %s: %ld inputs, %ld taps, %ld components\n", fe_isa_name(isa), (long)inputs, (long)taps,
               (long)components);
        failures++;
    }
}

static void check_all_taps(fe_isa isa) {
    static const int64_t inputs[] = {1, 7, 33}, taps[] = {1, 3, 9, 25}, components[] = {1, 2, 5};
    for (int i = 0; i < 3; i++)
        for (int t = 0; t < 4; t++)
            for (int u = 0; u < 3; u++) {
                check_taps(isa, inputs[i], taps[t], components[u], 0);
                check_taps(isa, inputs[i], taps[t], components[u], 1);
            }
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("gradient_filter: %s\n", fe_isa_name(fe_gradient_filter_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < MOST; i++) {
        map[i] = check_random(&state);
        grad[i] = check_random(&state);
        tap_sums[i] = check_random(&state);
    }
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
        if (!fe_isa_available((fe_isa)isa))
            continue;
        check_all_taps((fe_isa)isa);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            check((fe_isa)isa, FE_CHANNELS_LAST, &shapes[i]);
            check((fe_isa)isa, FE_CONTIGUOUS, &shapes[i]);
            check_conv((fe_isa)isa, &shapes[i], 5, (fe_slabs){.pieces = 1, .slab_rows = 2});
            check_conv((fe_isa)isa, &shapes[i], 5, (fe_slabs){.pieces = 3, .slab_rows = 1});
            check_conv((fe_isa)isa, &shapes[i], 5, (fe_slabs){.pieces = 2, .slab_rows = 4});
            check_conv((fe_isa)isa, &shapes[i], 70, (fe_slabs){.pieces = 1, .slab_rows = 20});
        }
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
