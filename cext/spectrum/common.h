/* What all versions share: jobs, and which part of a window lies in the map. */
#ifndef FLOWER_EDGE_SPECTRUM_COMMON_H
#define FLOWER_EDGE_SPECTRUM_COMMON_H

#include "spectrum.h"

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Cosines and sines along an axis. */
    DOFS = 2 * FE_HIGHEST + 1,
};

/* Cells of a window, counted from its first. */
typedef struct {
    int64_t begin, end;
} span;

/* Where spectra or products lie: (row, point, channel), with the channels of one panel alone. `width` of them are stored, of
 * which the last may be padding; `points` are in a row, the first of which is `first` of all. */
typedef struct {
    int64_t width, points, first;
} row_layout;

typedef struct {
    const fe_tiling *tiling;
    const float *map, *products;
    float *spectra, *out;
    row_layout rows;
    /* Of spectra: whether rows of sums follow, and factors of the constants and of all others. */
    int sums;
    float constant_scale, scale;
    /* Of products: whether they are of the conjugate of the first factor. */
    int conjugate;
} tile_job;

/* One instruction set's kernels: all windows of one row of windows, for the channels from `first` to `end`. */
typedef struct {
    int64_t lanes;
    void (*analyse_row)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end);
    void (*synthesise_row)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end);
    /* c = a b, or c += a b with `add`: `rows` x `inner` times `inner` x `columns`, a multiple of `lanes`. Rows of c and b lie
     * c_row and b_row floats apart, elements of a row of a a_step, and its rows a_row. */
    void (*multiply)(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_row,
                     int64_t rows, int64_t inner, int64_t columns, int add);
} tile_version;

const tile_version *fe_tile_version(fe_isa ceiling);

/* Sets some channels of an image to 0. */
void fe_clear_channels(float *map, const fe_tiling *tiling, int64_t image, int64_t first, int64_t end);

FE_INLINE int64_t first_cell(const fe_tiling *tiling, int axis, int64_t p) {
    return p * tiling->step[axis] - tiling->offset[axis];
}

/* The cells of a window that lie in the map. */
FE_INLINE span inside(const fe_tiling *tiling, int axis, int64_t p) {
    int64_t first = first_cell(tiling, axis, p), length = axis ? tiling->width : tiling->height;
    int64_t begin = first < 0 ? -first : 0, end = length - first;
    end = end > tiling->window[axis] ? tiling->window[axis] : end;
    return end > begin ? (span){begin, end} : (span){0, 0};
}

/* Where the first channel of a window's constants lies. */
FE_INLINE int64_t row_at(const tile_job *job, int64_t image, int64_t p, int64_t q) {
    const fe_tiling *tiling = job->tiling;
    return ((image * tiling->tiles[0] + p) * tiling->tiles[1] + q - job->rows.first) * job->rows.width;
}

#endif
