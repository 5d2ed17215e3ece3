/* Low frequencies of the tiles of feature maps: Fourier coefficients of windows, which may overlap, and maps put together from
 * windows again. All maps are float32 with channels last: (image, row, column, channel). */
#ifndef FLOWER_EDGE_SPECTRUM_H
#define FLOWER_EDGE_SPECTRUM_H

#include "cpu.h"

#include <stddef.h>
#include <stdint.h>

enum {
    /* Cells along a side of the largest window. */
    FE_WIDEST_WINDOW = 32,
    /* The highest frequency along an axis. */
    FE_HIGHEST = 7,
};

/* A map cut into windows: along an axis, window p covers cells [p * step - offset, p * step - offset + window); rows come
 * before columns in all pairs. */
typedef struct {
    int64_t images, channels, height, width;
    int64_t tiles[2], step[2], offset[2], window[2];
    int64_t highest[2];
    /* Along an axis, with half = (window + 1) / 2: the cosines of the frequencies 0 to `highest` at the first `half` cells of
     * a window, then the sines of 1 to `highest`. Both are taken about the window's centre, so its other cells have the same
     * cosines and the opposite sines. */
    const float *waves[2];
    /* Beside the constant, so many frequencies are kept, (rows, columns) each: rows from 0, columns of either sign. */
    int64_t frequencies;
    const signed char *waves_of;
} fe_tiling;

/* Whether all sizes make sense, and no address computed from them overflows. */
int fe_tiling_is_valid(const fe_tiling *tiling);

/* The version that runs under this ceiling. */
fe_isa fe_spectrum_isa(fe_isa ceiling);

/* out, (row, tile, channel): the sum of each window's cells; for each frequency f the sums of cell * cos(f . v), then those of
 * cell * sin(f . v), v being a cell's place from the window's centre; with `sums`, then cosine and sine parts added. Cells
 * outside the map are 0. The result does not depend on the number of threads. Both functions return 0 or the error of the
 * thread pool. */
int fe_analyse(fe_isa ceiling, float *out, const float *map, const fe_tiling *tiling, int sums);

/* map = sum over windows and frequencies of a cos(f . v) + b sin(f . v), and 0 in no window. `products` holds, as rows like
 * those of `out`, the constants; then for each frequency u; then w; then s: a = u - w, b = s - u - w. That is what three
 * real products leave of the product of two complex numbers. */
int fe_synthesise(fe_isa ceiling, float *map, const float *products, const fe_tiling *tiling);

#endif
