/* What gradient filtering does with feature maps: sums over patches, maps filled from patches, and both at once for
 * depthwise convolutions. All maps are float32, as (image, row, column, channel) or (image, channel, row, column). */
#ifndef FLOWER_EDGE_GRADIENT_FILTER_H
#define FLOWER_EDGE_GRADIENT_FILTER_H

#include "cpu.h"

#include <stddef.h>
#include <stdint.h>

/* The largest side of a patch with more than one component. */
enum { FE_LARGEST_SIDE = 16 };

/* A map cut into windows: along an axis, window p covers cells [p * window - offset, (p + 1) * window - offset). */
typedef struct {
    int64_t images, channels, height, width;
    /* Rows, then columns. */
    int64_t window[2], offset[2], patches[2];
    /* The basis lives on side x side blocks of a window: a power of two, or 1 with the constant as the only component. */
    int64_t side;
    /* For each component, where a fast Walsh-Hadamard transform without reordering leaves it. */
    int64_t components;
    const unsigned char *slots;
} fe_grid;

/* Components of patches lie as (component, image, patch row, patch column, channel) where the map has channels last, else
 * as (component, channel, image, patch row, patch column). */
typedef enum { FE_CONTIGUOUS, FE_CHANNELS_LAST } fe_layout;

/* Whether all sizes make sense, and no address computed from them overflows. */
int fe_grid_is_valid(const fe_grid *grid);

/* The version that runs under this ceiling. */
fe_isa fe_gradient_filter_isa(fe_isa ceiling);

/* out = for each window and component, the sum of basis times map. As means: the first component is divided by the
 * number of cells that the window has in the map; for the others, which need blocks of one cell, the window is completed
 * with that mean, and the sum divided by all its cells. No result of these three depends on the number of threads. They
 * return 0, the error of the thread pool, or -1 where memory ran out. */
int fe_patch_pool(fe_isa ceiling, float *out, const float *map, const fe_grid *grid, fe_layout layout, int means);

/* map = scale * sum over components of coefficient times basis, in each window; 0 in no window. */
int fe_patch_fill(fe_isa ceiling, float *map, const float *coefficients, const fe_grid *grid, fe_layout layout,
                  float scale);

/* With the means g of grad: grad_x = patch_fill(tap_sums * g), and gram = scale * sum over patches of g * x_sums. Either
 * may be NULL. Both grids have the same images, channels, patches, side and components; `tap_sums` and `gram` are
 * (component, channel). */
int fe_depthwise_backward(fe_isa ceiling, float *grad_x, float *gram, const float *grad, const float *x_sums,
                          const float *tap_sums, const fe_grid *grad_grid, const fe_grid *x_grid, fe_layout layout,
                          float scale);

/* What the backward pass of a convolution reads and writes, all with channels last. `grad_x` or `gram` may be NULL, and what
 * only it is made from. With the means g of grad, (component, patch, output):
 * grad_x = patch_fill of g * tap_sums, which is (component, output, input);
 * gram = sum over patches of g * x_sums, (component, output, input), where x_sums is (component, patch, input). */
typedef struct {
    float *grad_x, *gram;
    const float *grad, *x_sums, *tap_sums;
} fe_conv_maps;

/* How the work is divided: into `pieces` that run side by side, and these into slabs of some rows of patches, whose means
 * and products stay in a core's cache. */
typedef struct {
    int64_t pieces, slab_rows;
} fe_slabs;

/* Floats that fe_conv_backward wants to work with, or -1 where their number overflows. */
int64_t fe_conv_scratch(const fe_grid *grad_grid, const fe_grid *x_grid, fe_slabs slabs);

/* Both gradients in one pass over the patches. The grids have the same images, patches, side and components. The result
 * depends on how the work is divided, but not on who does it. */
int fe_conv_backward(fe_isa ceiling, const fe_conv_maps *maps, const fe_grid *grad_grid, const fe_grid *x_grid,
                     fe_slabs slabs, float *scratch);

/* out[u][pair] = sum over taps of symbols[u][tap] * weight; a pair is an output and an input channel. `inner` is the
 * number of input channels where these lie innermost, (output, tap, input), else 1: (output, input, tap). */
int fe_collapse_taps(fe_isa ceiling, float *out, const float *weight, const float *symbols, int64_t pairs, int64_t inner,
                     int64_t taps, int64_t components);

/* The transpose: weight = scale * sum over u of symbols[u][tap] * gram[u][pair]. */
int fe_spread_taps(fe_isa ceiling, float *weight, const float *gram, const float *symbols, int64_t pairs, int64_t inner,
                   int64_t taps, int64_t components, float scale);

#endif
