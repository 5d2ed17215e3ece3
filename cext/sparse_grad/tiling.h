/* How a convolution goes over its maps: tiles of the output, whose cells of the input lie side by side in the L1 cache. */
#ifndef FLOWER_EDGE_SPARSE_GRAD_TILING_H
#define FLOWER_EDGE_SPARSE_GRAD_TILING_H

#include "common.h"

/* A tile is some rows of one image, or some images. A pixel of the output has its first cell `step` cells from its neighbour's;
 * every `skip`-th pixel of the input is a cell: where a kernel is 1 wide, a stride leaves the others out. Left of each row of cells
 * are those of the padding; those right of it are the next row's. */
typedef struct {
    int64_t out[2], step[2], skip[2];
    int64_t images, rows, tiles_of_image, tiles;
    /* Rows of cells of an image in a tile, cells of a row, and all of a tile. */
    int64_t depth, pitch, cells;
    /* Floats of a cell. Channels are cut into blocks of a group's, or of as many groups as a cell has room for. */
    int64_t cell, blocks, blocks_of_group, groups_of_block;
} tiling;

/* Channels of a block: from `channel` of the input on, which is `in_group` in its group. */
typedef struct {
    int64_t channel, channels, in_group, group, groups;
} block;

void fe_tiling_of(tiling *of, const sparse_version *version, const fe_conv *conv);

block fe_block_of(const tiling *of, const fe_conv *conv, int64_t i);

/* Pixels of the output before those of a tile, in all images. */
int64_t fe_pixels_before(const tiling *of, const fe_conv *conv, int64_t tile);

#endif
