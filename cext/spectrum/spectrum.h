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
    /* Along an axis, for each of the first (window + 1) / 2 cells of a window: the cosines of the frequencies 0 to `highest`
     * there, then the sines of 1 to `highest`. Both are taken about the window's centre, so its other cells have the same
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

/* The backward pass of a convolution, all maps with channels last. `grad_x` or `grad_weight` may be NULL, and then what it
 * alone is made from, too: `weight`, or the `spectra` of the input as fe_analyse finds them without sums. */
typedef struct {
    float *grad_x, *grad_weight;
    const float *grad, *spectra, *weight;
    /* How gradient, input and weight are cut: the weight is a map of one window for each output channel, whose channels are
     * the inputs. All three have the same frequencies, and the first two the same tiles. */
    const fe_tiling *y, *x, *taps;
    /* Cells of a period. */
    int64_t cells;
    /* Whether weights lie as (output, tap, input), and not as (output, input, tap). */
    int inputs_innermost;
} fe_spectral_conv;

/* How the work is divided: images into slabs, whose spectra are kept at a time; their rows of windows into bands, whose
 * products are; and all of it into pieces that run side by side. */
typedef struct {
    int64_t pieces, slab_images, band_rows;
} fe_division;

/* Floats that fe_spectral_backward wants to work with, or -1 where their number overflows. */
int64_t fe_spectral_scratch(const fe_spectral_conv *conv, fe_division division);

/* With g the spectra of grad: grad_x is put together from the products of g and the weight's spectra, and grad_weight's taps
 * from the products of conj(g) and the input's, summed over windows. The result depends on slabs, but neither on pieces nor
 * on who does them. */
int fe_spectral_backward(fe_isa ceiling, const fe_spectral_conv *conv, fe_division division, float *scratch);

#endif
