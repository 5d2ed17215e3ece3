/* The backward pass of a convolution, in slabs of patches: their means, both products and the filled map follow each other
 * while a core's cache holds them, and one core's products run beside another one's traffic with memory. */
#include "common.h"
#include "parallel.h"

typedef struct {
    const filter_version *version;
    const fe_conv_maps *maps;
    const fe_grid *grad_grid, *x_grid;
    fe_slabs slabs;
    float *scratch, *packed_taps;
    int stream;
} conv_work;

static int64_t rows_of(const fe_grid *grid) { return grid->images * grid->patches[0]; }

/* Rows or columns of a matrix that is packed. */
static int64_t padded(int64_t length) { return (length + FE_PANEL - 1) / FE_PANEL * FE_PANEL; }

/* Floats of one component of a slab's means. */
static int64_t means_floats(const conv_work *work) {
    return work->slabs.slab_rows * work->grad_grid->patches[1] * work->grad_grid->channels;
}

/* Floats of one component of a slab's products, whose place a slab of x_sums takes before, packed. */
static int64_t product_floats(const conv_work *work) {
    return padded(work->slabs.slab_rows * work->x_grid->patches[1]) * padded(work->x_grid->channels);
}

/* Floats of one piece's slab. */
static int64_t piece_floats(const conv_work *work) {
    return work->grad_grid->components * (means_floats(work) + product_floats(work));
}

static int64_t gram_floats(const conv_work *work) {
    return work->grad_grid->components * work->grad_grid->channels * work->x_grid->channels;
}

/* Floats of one component of tap_sums, packed. */
static int64_t taps_floats(const conv_work *work) {
    return padded(work->grad_grid->channels) * padded(work->x_grid->channels);
}

int64_t fe_conv_scratch(const fe_grid *grad_grid, const fe_grid *x_grid, fe_slabs slabs) {
    int64_t outputs = grad_grid->channels, inputs = x_grid->channels, points, all, weights;
    if (outputs > INT64_MAX / 4 || inputs > INT64_MAX / 4 ||
        __builtin_mul_overflow(slabs.slab_rows, grad_grid->patches[1], &points) || points > INT64_MAX / 4 ||
        __builtin_mul_overflow(padded(points), padded(outputs) + padded(inputs), &all) ||
        __builtin_mul_overflow(all, slabs.pieces, &all) ||
        __builtin_mul_overflow(padded(outputs), padded(inputs), &weights) ||
        __builtin_mul_overflow(weights, slabs.pieces, &weights) ||
        __builtin_add_overflow(all, weights, &all) || __builtin_mul_overflow(all, grad_grid->components, &all) ||
        all > INT64_MAX / (int64_t)sizeof(float))
        return -1;
    return all;
}

/* One component of a slab's gram: means, transposed, times x_sums, which are packed on the way. */
static void form_gram(const conv_work *work, float *gram, const float *means, const float *x_sums, float *packed,
                      int64_t points, int add, fetch *next) {
    const int64_t outputs = work->grad_grid->channels, inputs = work->x_grid->channels;
    work->version->pack(packed, x_sums, points, inputs, 0, points);
    work->version->multiply(gram, means, 1, outputs, packed, outputs, points, inputs, add, next);
}

/* One component of a slab's products: means times tap_sums. */
static void form_products(const conv_work *work, float *products, const float *means, int64_t u, int64_t points, fetch *next) {
    const int64_t outputs = work->grad_grid->channels, inputs = work->x_grid->channels;
    work->version->multiply(products, means, outputs, 1, work->packed_taps + u * taps_floats(work), points, outputs, inputs, 0,
                            next);
}

/* Whether the gradient consists of means already: patches of one cell, all of them in the map. */
static int are_means(const fe_grid *grid) {
    return grid->window[0] == 1 && grid->window[1] == 1 && grid->patches[0] == grid->height &&
           grid->patches[1] == grid->width;
}

/* Where the gradient of a row of patches begins. */
static uintptr_t rows_at(const conv_work *work, int64_t row) {
    const fe_grid *grid = work->grad_grid;
    int64_t line = row / grid->patches[0] * grid->height + row % grid->patches[0] * grid->window[0];
    return (uintptr_t)work->maps->grad + (uintptr_t)(line * grid->width * grid->channels) * sizeof(float);
}

/* The rows of patches [first, last), whose gram is added to, or set where they are a piece's first. */
static void conv_slab(const conv_work *work, int64_t first, int64_t last, int64_t next_last, float *means, float *gram, int is_first) {
    const fe_grid *grad_grid = work->grad_grid, *x_grid = work->x_grid;
    const fe_conv_maps *maps = work->maps;
    const int64_t outputs = grad_grid->channels, inputs = x_grid->channels, patches = grad_grid->patches[1];
    const int64_t components = grad_grid->components, a_mean = means_floats(work), a_product = product_floats(work);
    const int64_t points = (last - first) * patches;
    const float *given = means;
    float *products = means + components * a_mean;
    patch_job pool = {.map = view_of(grad_grid, FE_CHANNELS_LAST), .in = maps->grad, .out = means, .means = 1};
    patch_job fill = {.map = view_of(x_grid, FE_CHANNELS_LAST), .in = products, .out = maps->grad_x};
    int64_t all_sums = fill.map.component;
    pool.map.component = a_mean, fill.map.component = a_product;
    pool.first = fill.first = first;
    pool.scale = fill.scale = 1.0f;
    fill.stream = work->stream;
    fetch next = {rows_at(work, last), rows_at(work, next_last)};
    if (are_means(grad_grid))
        given = maps->grad + first * patches * outputs;
    for (int64_t row = first; !are_means(grad_grid) && row < last; row++)
        work->version->pool_row(&pool, row / grad_grid->patches[0], row % grad_grid->patches[0]);
    for (int64_t u = 0; gram && u < components; u++)
        form_gram(work, gram + u * outputs * inputs, given + u * a_mean,
                  maps->x_sums + u * all_sums + first * patches * inputs, products, points, !is_first, &next);
    if (!maps->grad_x)
        return;
    for (int64_t u = 0; u < components; u++)
        form_products(work, products + u * a_product, given + u * a_mean, u, points, &next);
    for (int64_t row = first; row < last; row++)
        work->version->fill_row(&fill, row / x_grid->patches[0], row % x_grid->patches[0]);
}

/* The first piece's gram is the result, to which those of the others are added. */
static float *gram_of(const conv_work *work, int64_t piece) {
    if (!work->maps->gram || piece == 0)
        return work->maps->gram;
    return work->scratch + work->slabs.pieces * piece_floats(work) + (piece - 1) * gram_floats(work);
}

static void conv_pieces(int64_t first, int64_t last, void *context) {
    const conv_work *work = context;
    int64_t rows = rows_of(work->grad_grid), pieces = work->slabs.pieces, step = work->slabs.slab_rows;
    for (int64_t piece = first; piece < last; piece++) {
        float *means = work->scratch + piece * piece_floats(work), *gram = gram_of(work, piece);
        int64_t begin = rows * piece / pieces, end = rows * (piece + 1) / pieces;
        if (begin == end && gram)
            zero(gram, gram_floats(work));
        for (int64_t row = begin; row < end; row += step)
            conv_slab(work, row, row + step < end ? row + step : end, row + 2 * step < end ? row + 2 * step : end, means, gram, row == begin);
    }
}

/* Groups of rows of tap_sums that are packed together. */
static int64_t groups_of(const conv_work *work) { return padded(work->grad_grid->channels) / FE_PANEL; }

/* `first` and `last` count the groups of all components. */
static void pack_taps(int64_t first, int64_t last, void *context) {
    const conv_work *work = context;
    const int64_t outputs = work->grad_grid->channels, inputs = work->x_grid->channels;
    for (int64_t i = first; i < last; i++) {
        const int64_t u = i / groups_of(work), row = i % groups_of(work) * FE_PANEL;
        work->version->pack(work->packed_taps + u * taps_floats(work), work->maps->tap_sums + u * outputs * inputs, outputs,
                            inputs, row, row + FE_PANEL < outputs ? row + FE_PANEL : outputs);
    }
}

static void add_grams(int64_t first, int64_t last, void *context) {
    const conv_work *work = context;
    for (int64_t piece = 1; piece < work->slabs.pieces; piece++) {
        const float *part = gram_of(work, piece);
        for (int64_t i = first; i < last; i++)
            work->maps->gram[i] += part[i];
    }
}

int fe_conv_backward(fe_isa ceiling, const fe_conv_maps *maps, const fe_grid *grad_grid, const fe_grid *x_grid,
                     fe_slabs slabs, float *scratch) {
    conv_work work = {
        .version = fe_filter_version(ceiling),
        .maps = maps,
        .grad_grid = grad_grid,
        .x_grid = x_grid,
        .slabs = slabs,
        .scratch = scratch,
        .stream = maps->grad_x && is_streamed(maps->grad_x, x_grid, x_grid->channels),
    };
    int error = 0;
    if (maps->grad_x) {
        work.packed_taps = scratch + slabs.pieces * piece_floats(&work) + (slabs.pieces - 1) * gram_floats(&work);
        error = fe_parallel_for(grad_grid->components * groups_of(&work), GRAIN / (FE_PANEL * x_grid->channels) + 1, pack_taps, &work);
    }
    if (!error)
        error = fe_parallel_for(slabs.pieces, 1, conv_pieces, &work);
    if (error || !maps->gram || slabs.pieces == 1)
        return error;
    return fe_parallel_for(gram_floats(&work), GRAIN, add_grams, &work);
}
