#include "gradient_filter.h"

#include "common.h"
#include "parallel.h"

#include <stdlib.h>

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

static const filter_version *const kernels[FE_ISA_COUNT] = {
    [FE_SERIAL] = &version_serial,
#if defined(__x86_64__)
    [FE_AVX2] = &version_avx2,
    [FE_AVX512] = &version_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = &version_neon,
#endif
};

enum {
    /* Pieces whose sums are added up in a fixed order, whoever made them. */
    PIECES = 64,
};

fe_isa fe_gradient_filter_isa(fe_isa ceiling) {
    fe_version versions[FE_ISA_COUNT];
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        versions[isa] = kernels[isa] ? (fe_version)kernels[isa]->pool_row : NULL;
    return fe_isa_choose(ceiling, versions);
}

const filter_version *fe_filter_version(fe_isa ceiling) { return kernels[fe_gradient_filter_isa(ceiling)]; }

static int product_fits(const int64_t *factors, int count) {
    int64_t product = 8;
    for (int i = 0; i < count; i++)
        if (__builtin_mul_overflow(product, factors[i], &product))
            return 0;
    return 1;
}

int fe_grid_is_valid(const fe_grid *grid) {
    if (grid->images < 0 || grid->channels < 0 || grid->height < 0 || grid->width < 0 || grid->side < 1 ||
        grid->side > FE_LARGEST_SIDE || (grid->side & (grid->side - 1)) || grid->components < 1 ||
        grid->components > grid->side * grid->side)
        return 0;
    for (int64_t u = 0; u < grid->components; u++)
        if (grid->slots[u] >= grid->side * grid->side)
            return 0;
    for (int axis = 0; axis < 2; axis++) {
        const int64_t extent[] = {grid->patches[axis], grid->window[axis]};
        if (grid->window[axis] < 1 || grid->window[axis] % grid->side || grid->patches[axis] < 1 ||
            grid->offset[axis] > INT64_MAX / 4 || grid->offset[axis] < -INT64_MAX / 4 || !product_fits(extent, 2))
            return 0;
    }
    const int64_t map[] = {grid->images, grid->channels, grid->height, grid->width};
    const int64_t sums[] = {grid->components, grid->images, grid->channels, grid->patches[0], grid->patches[1]};
    return product_fits(map, 4) && product_fits(sums, 5);
}

static int is_power_of_two(int64_t number) { return (number & (number - 1)) == 0; }

/* Whether the kernels of planes.h can take windows of this grid. */
static int has_planes(const filter_version *version, const fe_grid *grid) {
    return version->pool_plane && grid->window[1] <= WIDEST && is_power_of_two(grid->window[1] / grid->side);
}

static int64_t grain_of(int64_t floats) { return GRAIN / (floats + 1) + 1; }

typedef struct {
    patch_job job;
    const filter_version *version;
    int is_fill;
} patch_work;

static void patch_rows(int64_t first, int64_t last, void *context) {
    const patch_work *work = context;
    int64_t patch_rows = work->job.map.grid->patches[0];
    for (int64_t i = first; i < last; i++)
        (work->is_fill ? work->version->fill_row : work->version->pool_row)(&work->job, i / patch_rows, i % patch_rows);
}

static void patch_planes(int64_t first, int64_t last, void *context) {
    const patch_work *work = context;
    int64_t channels = work->job.map.grid->channels;
    for (int64_t i = first; i < last; i++)
        (work->is_fill ? work->version->fill_plane : work->version->pool_plane)(&work->job, i / channels, i % channels);
}

/* The part of a contiguous map that is one channel: rows of one lane. */
static patch_job channel_of(const patch_job *job, int is_fill, int64_t channel) {
    const fe_grid *grid = job->map.grid;
    int64_t in_map = channel * grid->height * grid->width;
    int64_t in_sums = channel * grid->images * grid->patches[0] * grid->patches[1];
    patch_job one = *job;
    one.in += is_fill ? in_sums : in_map;
    one.out += is_fill ? in_map : in_sums;
    return one;
}

static void patch_channels(int64_t first, int64_t last, void *context) {
    const patch_work *work = context;
    for (int64_t c = first; c < last; c++) {
        patch_work one = {channel_of(&work->job, work->is_fill, c), work->version, work->is_fill};
        patch_rows(0, one.job.map.grid->images * one.job.map.grid->patches[0], &one);
    }
}

static int run_patches(patch_work *work, fe_layout layout) {
    const fe_grid *grid = work->job.map.grid;
    int64_t rows = grid->window[0] * grid->width, plane = grid->height * grid->width;
    if (layout == FE_CHANNELS_LAST)
        return fe_parallel_for(grid->images * grid->patches[0], grain_of(rows * grid->channels), patch_rows, work);
    if (has_planes(work->version, grid))
        return fe_parallel_for(grid->images * grid->channels, grain_of(plane), patch_planes, work);
    return fe_parallel_for(grid->channels, grain_of(grid->images * plane), patch_channels, work);
}

int fe_patch_pool(fe_isa ceiling, float *out, const float *map, const fe_grid *grid, fe_layout layout, int means) {
    patch_work work = {
        .job = {.map = view_of(grid, layout), .in = map, .out = out, .means = means, .scale = 1.0f},
        .version = fe_filter_version(ceiling),
    };
    return run_patches(&work, layout);
}

int fe_patch_fill(fe_isa ceiling, float *map, const float *coefficients, const fe_grid *grid, fe_layout layout,
                  float scale) {
    patch_work work = {
        .job = {.map = view_of(grid, layout), .in = coefficients, .out = map, .scale = scale},
        .version = fe_filter_version(ceiling),
        .is_fill = 1,
    };
    work.job.stream = is_streamed(map, grid, work.job.map.lanes);
    return run_patches(&work, layout);
}

typedef struct {
    depthwise_job job;
    const filter_version *version;
    float *gram;
    /* With channels last: (piece, component, channel) sums of that many rows of patches each. */
    float *partial;
    int64_t rows, rows_a_piece;
    int in_planes;
} depthwise_work;

static void depthwise_pieces(int64_t first, int64_t last, void *context) {
    const depthwise_work *work = context;
    const fe_grid *grid = work->job.grad.grid;
    int64_t sums = grid->components * grid->channels;
    for (int64_t piece = first; piece < last; piece++) {
        float *gram = work->partial ? work->partial + piece * sums : NULL;
        if (gram)
            zero(gram, sums);
        int64_t begin = piece * work->rows_a_piece, end = begin + work->rows_a_piece;
        for (int64_t row = begin; row < end && row < work->rows; row++)
            work->version->depthwise_row(&work->job, row / grid->patches[0], row % grid->patches[0], gram);
    }
}

static int depthwise_channels_last(depthwise_work *work) {
    const fe_grid *grid = work->job.grad.grid;
    int64_t sums = grid->components * grid->channels;
    int64_t floats = grid->window[0] * grid->width * grid->channels;
    work->rows = grid->images * grid->patches[0];
    work->rows_a_piece = grain_of(floats);
    if (work->rows_a_piece < (work->rows + PIECES - 1) / PIECES)
        work->rows_a_piece = (work->rows + PIECES - 1) / PIECES;
    int64_t pieces = (work->rows + work->rows_a_piece - 1) / work->rows_a_piece;
    if (work->gram) {
        work->partial = malloc((size_t)(pieces * sums + 1) * sizeof *work->partial);
        if (!work->partial)
            return -1;
    }
    int error = fe_parallel_for(pieces, 1, depthwise_pieces, work);
    for (int64_t i = 0; work->gram && i < sums; i++) {
        double sum = 0.0;
        for (int64_t piece = 0; piece < pieces; piece++)
            sum += (double)work->partial[piece * sums + i];
        work->gram[i] = (float)(sum * (double)work->job.scale);
    }
    free(work->partial);
    return error;
}

/* One channel of all images: image by image, so that no sum in single precision grows long. */
static void depthwise_channels(int64_t first, int64_t last, void *context) {
    const depthwise_work *work = context;
    const fe_grid *grid = work->job.grad.grid, *x_grid = work->job.x.grid;
    for (int64_t c = first; c < last; c++) {
        depthwise_job one = work->job;
        one.in += c * grid->height * grid->width;
        one.x_sums = one.x_sums ? one.x_sums + c * grid->images * grid->patches[0] * grid->patches[1] : NULL;
        one.tap_sums = one.tap_sums ? one.tap_sums + c : NULL;
        one.grad_x = one.grad_x ? one.grad_x + c * x_grid->height * x_grid->width : NULL;
        double sums[MOST_CELLS] = {0};
        for (int64_t image = 0; image < grid->images; image++) {
            float gram[MOST_CELLS] = {0};
            if (work->in_planes)
                work->version->depthwise_plane(&work->job, image, c, work->gram ? gram : NULL);
            else
                for (int64_t p = 0; p < grid->patches[0]; p++)
                    work->version->depthwise_row(&one, image, p, work->gram ? gram : NULL);
            for (int64_t u = 0; u < grid->components; u++)
                sums[u] += (double)gram[u];
        }
        for (int64_t u = 0; work->gram && u < grid->components; u++)
            work->gram[u * grid->channels + c] = (float)(sums[u] * (double)work->job.scale);
    }
}

int fe_depthwise_backward(fe_isa ceiling, float *grad_x, float *gram, const float *grad, const float *x_sums,
                          const float *tap_sums, const fe_grid *grad_grid, const fe_grid *x_grid, fe_layout layout,
                          float scale) {
    depthwise_work work = {
        .job =
            {
                .grad = view_of(grad_grid, layout),
                .x = view_of(x_grid, layout),
                .in = grad,
                .x_sums = x_sums,
                .tap_sums = tap_sums,
                .grad_x = grad_x,
                .stream = grad_x && is_streamed(grad_x, x_grid, layout == FE_CHANNELS_LAST ? x_grid->channels : 1),
                .scale = scale,
            },
        .version = fe_filter_version(ceiling),
        .gram = gram,
    };
    if (layout == FE_CHANNELS_LAST)
        return depthwise_channels_last(&work);
    work.in_planes = has_planes(work.version, grad_grid) && has_planes(work.version, x_grid);
    int64_t floats = grad_grid->images * grad_grid->height * grad_grid->width;
    return fe_parallel_for(grad_grid->channels, grain_of(floats), depthwise_channels, &work);
}
