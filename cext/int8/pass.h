/* How a convolution goes over its maps: which cells make a pixel, and in what pieces. */
#ifndef FLOWER_EDGE_INT8_PASS_H
#define FLOWER_EDGE_INT8_PASS_H

#include "common.h"

/* A tap of the kernel: the cell that it reads, counted from the one that a pixel begins at, and its place in the weight. */
typedef struct {
    int64_t offset[2];
    int place;
} tap;

/* Pixels that have the same taps: start + step * (0, 1, ...) along each axis. A transposed convolution with a stride has
 * several phases, since a cell of a dilated gradient is either 0 or not. */
typedef struct {
    int64_t start[2], first, count;
} phase;

typedef struct {
    int64_t images, groups;
    /* Of the map that is read and the one that is made; channels of a group. */
    int64_t height, width, channels, out_height, out_width, out_channels;
    /* From a pixel of a phase to the next, in cells that are read and in pixels that are made. */
    int64_t step[2], out_step[2];
    /* Pixels of the largest phase. */
    int64_t grid[2];
    int64_t phases, taps;
    phase phase[FE_LONGEST_STRIDE * FE_LONGEST_STRIDE];
    tap tap[MOST_TAPS];
    /* The least and the greatest offset of taps. */
    int64_t low[2], high[2];
} pass;

void fe_pass_of(pass *of, const fe_conv *conv, int transposed);

/* The map is read band by band: whole images, or some rows of the grid of one image. The cells of a band are copied, with
 * zeros around the map and with channels in whole groups, or else are read where they are. */
typedef struct {
    int64_t images, rows, in_image, count;
    /* Channels of a group, and of a cell, as they are read. */
    int64_t channels, cell;
    /* From one row and one image to the next, in cells; and the row and the column of the map at the beginning. */
    int64_t pitch, image;
    int64_t low[2];
    int direct;
    /* Of the copy of a band. */
    int64_t bytes;
} bands;

/* With about so many pixels and bytes in a band at most, but one row at least. */
void fe_bands_of(bands *of, const pass *over, const int8_version *version, int64_t pixels, int64_t bytes);

typedef struct {
    /* The first image and row of the grid, and their numbers. */
    int64_t image, row, images, rows;
    const void *cells;
} band;

/* Finds band i, and copies its cells where that is needed to `copy`. */
void fe_band_of(band *of, int64_t i, const bands *all, const pass *over, const int8_version *version, const uint8_t *x,
                int zero, void *copy);

/* Whether a result goes past the caches: it has so many bytes at least, and the channels of a pixel that are made together,
 * all of them or those of a group, are whole cache lines. */
int fe_goes_past(const float *floats, const pass *over, int64_t together, int64_t least);

/* 0, or NaN where a channel's scale or bias is not finite: the least and the greatest of a result pass over a NaN. */
float fe_doubt(const fe_packed *packed, float scale, const float *bias, int64_t channels);

/* Convolutions of which each channel has a kernel of its own go channel by channel, and have weights packed by taps. */
int fe_is_depthwise(const fe_conv *conv);
int fe_depth_pack(const pass *over, const fe_packed *packed, const float *weight, const fe_conv *conv);
int fe_depth_conv(const int8_version *version, const pass *over, fe_conv_out *out, const uint8_t *x, int zero, float scale,
                  const fe_packed *packed, const float *bias);
int fe_depth_grad_weight(const int8_version *version, float *grad, const uint8_t *x, int zero, float scale,
                         const uint8_t *const errors[2], const fe_conv *conv, int64_t pieces);

/* fe_int8_grad_weight for versions that have `tap`, without groups. */
int fe_int8_grad_by_taps(const int8_version *version, float *grad, const uint8_t *x, int zero, float scale,
                         const uint8_t *const errors[2], const fe_conv *conv, int64_t pieces);

#endif
