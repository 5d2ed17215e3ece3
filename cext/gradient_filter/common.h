/* What all versions share: jobs, and which part of a window lies in the map. */
#ifndef FLOWER_EDGE_GRADIENT_FILTER_COMMON_H
#define FLOWER_EDGE_GRADIENT_FILTER_COMMON_H

#include "gradient_filter.h"
#include "lanes/fetch.h"

#include <string.h>

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Floats of a window that is written through a buffer: 16 KB stay in the L1 cache. */
    STAGE = 4096,
    /* Columns of the widest window that `planes.h` reads in one go. */
    WIDEST = 32,
    /* Bytes, a page: cores' own prefetchers lose their way at its end. The best of 1 to 8 KB. */
    AHEAD = 4096,
    MOST_CELLS = FE_LARGEST_SIDE * FE_LARGEST_SIDE,
    /* A usual last-level cache. A map that would fill a third of it is written around it: beside the map that it was
     * made from and the one that its reader makes of it, little of it would be left there. */
    CACHE_BYTES = 32 << 20,
    LINE = 64,
    /* Torch's own grain, in floats. */
    GRAIN = 32768,
    /* Packed, a matrix takes whole panels of so many rows and columns; a multiple of every version's. */
    FE_PANEL = 32,
};

/* Cells of the map that fall to one block of a window. */
typedef struct {
    int64_t begin, count;
} span;

/* Maps and their components in memory, strides in floats. */
typedef struct {
    const fe_grid *grid;
    /* Channels that lie side by side and are worked on together: all of them, or 1. */
    int64_t lanes;
    int64_t image, row, cell;
    /* From one component of a patch to the next. */
    int64_t component;
} view;

typedef struct {
    view map;
    const float *in;
    float *out;
    /* Rows of patches, counted through all images, before the first whose components are held. */
    int64_t first;
    int means, stream;
    float scale;
} patch_job;

typedef struct {
    view grad, x;
    const float *in, *x_sums, *tap_sums;
    float *grad_x;
    int stream;
    float scale;
} depthwise_job;

/* A weight and its sums over the taps, one of which is made from the other. `pairs` and `inner` as in gradient_filter.h. */
typedef struct {
    float *out;
    const float *in, *symbols;
    int64_t pairs, inner, taps, components;
    float scale;
} tap_job;

/* One instruction set's kernels. A row is all patches of one patch row of one image; a plane is one channel of one image.
 * `gram` is where (component, channel) sums are added to. */
typedef struct {
    void (*pool_row)(const patch_job *job, int64_t image, int64_t p);
    void (*fill_row)(const patch_job *job, int64_t image, int64_t p);
    void (*depthwise_row)(const depthwise_job *job, int64_t image, int64_t p, float *gram);
    /* NULL where patches are taken one by one. */
    void (*pool_plane)(const patch_job *job, int64_t image, int64_t channel);
    void (*fill_plane)(const patch_job *job, int64_t image, int64_t channel);
    void (*depthwise_plane)(const depthwise_job *job, int64_t image, int64_t channel, float *gram);
    /* Both take row-major matrices: `pack` rows [first, last) of one of inner x columns, in whole blocks of FE_PANEL rows;
     * c, rows x columns, becomes a times what was packed, or has it added. a's element (i, k) is at i * a_row + k * a_inner. */
    void (*pack)(float *packed, const float *b, int64_t inner, int64_t columns, int64_t first, int64_t last);
    void (*multiply)(float *c, const float *a, int64_t a_row, int64_t a_inner, const float *packed, int64_t rows,
                     int64_t inner, int64_t columns, int add, fetch *next);
    /* One output channel of a weight whose inputs lie innermost. */
    void (*collapse)(const tap_job *job, int64_t output);
    void (*spread)(const tap_job *job, int64_t output);
} filter_version;

/* The kernels that run under this ceiling. */
const filter_version *fe_filter_version(fe_isa ceiling);

FE_INLINE span clip(int64_t begin, int64_t end, int64_t length) {
    begin = begin < 0 ? 0 : begin;
    end = end > length ? length : end;
    return end > begin ? (span){begin, end - begin} : (span){0, 0};
}

/* The blocks of one window along one axis; returns how many cells they have together. */
FE_INLINE int64_t blocks_of(span *blocks, const fe_grid *grid, int axis, int64_t p, int64_t side) {
    int64_t length = axis ? grid->width : grid->height;
    int64_t block = grid->window[axis] / side;
    int64_t begin = p * grid->window[axis] - grid->offset[axis];
    int64_t count = 0;
    for (int64_t i = 0; i < side; i++) {
        blocks[i] = clip(begin + i * block, begin + (i + 1) * block, length);
        count += blocks[i].count;
    }
    return count;
}

/* The cells of an axis that lie in some window. */
FE_INLINE span covered(const fe_grid *grid, int axis) {
    return clip(-grid->offset[axis], grid->patches[axis] * grid->window[axis] - grid->offset[axis],
                axis ? grid->width : grid->height);
}

FE_INLINE view view_of(const fe_grid *grid, fe_layout layout) {
    int64_t lanes = layout == FE_CHANNELS_LAST ? grid->channels : 1;
    return (view){
        .grid = grid,
        .lanes = lanes,
        .image = grid->channels * grid->height * grid->width,
        .row = grid->width * lanes,
        .cell = lanes,
        .component = grid->images * grid->patches[0] * grid->patches[1] * grid->channels,
    };
}

/* Whether a map is written around the cache. */
FE_INLINE int is_streamed(const float *out, const fe_grid *grid, int64_t lanes) {
    int64_t floats = grid->images * grid->channels * grid->height * grid->width;
    return floats > CACHE_BYTES / 3 / (int64_t)sizeof(float) && (uintptr_t)out % LINE == 0 &&
           (lanes == 1 || lanes * sizeof(float) % LINE == 0);
}

FE_INLINE void zero(float *begin, int64_t count) { memset(begin, 0, (size_t)count * sizeof *begin); }

/* The rows of an image that no window covers fall to its first and its last patch row. */
FE_INLINE void zero_rows(float *image, int64_t row, const fe_grid *grid, int64_t p) {
    span rows = covered(grid, 0);
    int64_t end = rows.begin + rows.count;
    if (p == 0)
        zero(image, rows.begin * row);
    if (p == grid->patches[0] - 1)
        zero(image + end * row, (grid->height - end) * row);
}

/* Columns of a row of windows that no window covers. */
FE_INLINE void zero_columns(float *x, const view *map, const span *rows, int64_t side) {
    span columns = covered(map->grid, 1);
    int64_t end = columns.begin + columns.count;
    if (columns.begin == 0 && end == map->grid->width)
        return;
    for (int64_t i = 0; i < side; i++)
        for (int64_t h = rows[i].begin; h < rows[i].begin + rows[i].count; h++) {
            zero(x + h * map->row, columns.begin * map->cell);
            zero(x + h * map->row + end * map->cell, (map->grid->width - end) * map->cell);
        }
}

/* Where the windows of the next patch row begin. They are fetched in the order of memory while this row is read window by
 * window, an order in which cores' own prefetchers lose their way. What lies behind the map is never touched. */
FE_INLINE uintptr_t next_row(const float *x, int64_t row, const span *rows, const fe_grid *grid) {
    return (uintptr_t)x + (uintptr_t)((rows[0].begin + grid->window[0]) * row) * sizeof(float);
}

/* Fetches lines into the second cache: a row of windows is larger than the first. */
FE_INLINE void fetch_lines(uintptr_t ahead, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += LINE)
        __builtin_prefetch((const char *)(ahead + (uintptr_t)at), 0, 2);
}

#endif
