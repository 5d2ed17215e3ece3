/* What all versions share: jobs, and which part of a window lies in the map. */
#ifndef FLOWER_EDGE_SPECTRUM_COMMON_H
#define FLOWER_EDGE_SPECTRUM_COMMON_H

#include "spectrum.h"

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Cosines and sines along an axis. */
    DOFS = 2 * FE_HIGHEST + 1,
    /* Where a product of waves lies that a frequency does not have: the sine of 0 periods is 0. */
    NO_SLOT = DOFS * DOFS,
    /* Of a frequency and its opposite, one. */
    MOST_FREQUENCIES = DOFS * DOFS / 2,
};

/* Which products of waves along both axes a frequency is made of, the wave along rows of windows first:
 * cos = cosine cosine - sign sine sine, sin = sine cosine + sign cosine sine. */
typedef struct {
    short cosine_cosine, sine_cosine, cosine_sine, sine_sine;
    float sign;
} wave_slots;

/* Cells of a window, counted from its first. */
typedef struct {
    int64_t begin, end;
} span;

/* Where spectra or products lie: (row, point, channel), with the channels of one panel alone. `width` of them are stored, of
 * which the last may be padding; rows lie `stride` floats apart, and their first point is number `first` of all. */
typedef struct {
    int64_t width, stride, first;
} row_layout;

typedef struct {
    const fe_tiling *tiling;
    /* Of each frequency. */
    const wave_slots *slots;
    const float *map, *products;
    float *spectra, *out;
    row_layout rows;
    /* Of spectra: whether rows of sums follow, and factors of the constants and of all others. */
    int sums;
    float constant_scale, scale;
    /* Of products: whether they are of the conjugate of the first factor, and whether all is added to what the map holds. Else
     * the first value of each cell is stored, as long as windows go from first to last and leave no cell out. */
    int conjugate, adds;
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
    /* out = a - b. */
    void (*subtract)(float *out, const float *a, const float *b, int64_t count);
} tile_version;

const tile_version *fe_tile_version(fe_isa ceiling);

void fe_find_slots(wave_slots *slots, const fe_tiling *tiling);

/* Whether each cell of the map lies in a window. */
int fe_covers_map(const fe_tiling *tiling);

/* Sets some channels of an image to 0. */
void fe_clear_channels(float *map, const fe_tiling *tiling, int64_t image, int64_t first, int64_t end);

/* Rows and columns of a window that earlier ones have reached: in these rows all columns, in the others some. */
typedef struct {
    int64_t rows, columns;
} reached;

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

/* Of the first half of a window's cells those that lie in the map together with the opposite one. */
FE_INLINE span both_inside(span cells, int64_t length) {
    int64_t begin = length - cells.end, end = length - cells.begin, half = length / 2;
    begin = begin > cells.begin ? begin : cells.begin;
    end = end < cells.end ? end : cells.end;
    return (span){begin, end < half ? end : half};
}

/* Floats from a window of a map to the next one, in the order of points. */
FE_INLINE int64_t to_next_window(const fe_tiling *tiling, int64_t p, int64_t q) {
    const int64_t down = tiling->step[0] * tiling->width, back = (tiling->tiles[1] - 1) * tiling->step[1];
    if (q + 1 < tiling->tiles[1])
        return tiling->step[1] * tiling->channels;
    if (p + 1 < tiling->tiles[0])
        return (down - back) * tiling->channels;
    return (tiling->height * tiling->width - (tiling->tiles[0] - 1) * down - back) * tiling->channels;
}

FE_INLINE reached reached_before(const tile_job *job, int64_t p, int64_t q) {
    const fe_tiling *tiling = job->tiling;
    if (job->adds)
        return (reached){tiling->window[0], tiling->window[1]};
    return (reached){p ? tiling->window[0] - tiling->step[0] : 0, q ? tiling->window[1] - tiling->step[1] : 0};
}

/* Where the first channel of a window's constants lies. */
FE_INLINE int64_t row_at(const tile_job *job, int64_t image, int64_t p, int64_t q) {
    const fe_tiling *tiling = job->tiling;
    return ((image * tiling->tiles[0] + p) * tiling->tiles[1] + q - job->rows.first) * job->rows.width;
}

#endif
