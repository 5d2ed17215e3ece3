/* What all versions share. */
#ifndef FLOWER_EDGE_SPARSE_GRAD_COMMON_H
#define FLOWER_EDGE_SPARSE_GRAD_COMMON_H

#include "sparse_grad.h"

#include <string.h>

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Lanes of the widest vector. */
    MOST_LANES = 16,
    /* Channels whose random numbers come from one run of counters, two from each. */
    RUN = 32,
    /* Floats of the largest cell. */
    MOST_CELL = 64,
    LINE = 64,
    /* Pixels, or taps, that are fetched before they are read or written: a block's channels lie too far apart for the hardware
     * to see what is next. */
    AHEAD = 16,
    /* Elements that are fetched so long before they are read, one after the other. */
    FAR = 512,
};

/* A random number of 16 bits, in (1, 2): behind a 1, and in front of a bit that puts it half a step up. */
#define CHANCE_BITS 0x007fff80u
#define CHANCE_REST 0x3f800040u

/* Some pixels of a map that is pruned. */
typedef struct {
    const float *x;
    int64_t pixels, channels;
    /* Of the first pixel: each has as many counters as it has channels, in whole runs, by two. */
    uint32_t counter;
    float threshold;
    uint32_t keys[2];
    uint32_t *places;
    float *values;
    /* Of the first pixel, and what is added to them. */
    int32_t *bounds, base;
} prune_job;

/* Neighbouring taps: a square of 3 x 3, or 3 of a row, or one. */
typedef struct {
    int64_t row, column;
    int rows, columns;
} taps;

/* A row of pixels, some stretches of their channels, and some taps: sums += values times weights. From pixel to pixel, cells are
 * `step` floats apart, and so are rows of cells by `row`. */
typedef struct {
    const uint32_t *places;
    const float *values;
    const int32_t *bounds;
    int64_t pixels, bounds_of_pixel, first, last;
    float *cells;
    int64_t step, row;
    taps of;
    /* (output, tap of these, lane); from one output to the next are `pitch` floats. */
    const float *panel;
    int64_t pitch;
    int one;
} sweep_job;

/* A panel of weights for a block of channels, and some taps. */
typedef struct {
    const fe_sparse_weight *weight;
    int64_t outputs, inputs, channel, channels, kernel[2], cell;
    taps of;
    float *panel;
} panel_job;

/* The lists of some outputs of a tile, and a block of channels of a group. `cells` are sums, or a copy of the input, where a
 * pixel's cells are `row` floats apart from one row of taps to the next and `column` from one tap to the next. */
typedef struct {
    const int32_t *starts;
    const fe_listed *entries;
    int64_t first, last;
    float *cells;
    int64_t row, column;
    int64_t kernel[2];
    /* Of the block. */
    int64_t channels;
    /* Of a group, and the block's first one. */
    int64_t inputs, channel;
    fe_sparse_weight weight;
    float *grad;
    /* Whether `grad` is set, not added to. */
    int is_first;
} product_job;

/* One instruction set's kernels. */
typedef struct {
    int64_t lanes;
    /* Of a cell, for kernels of several taps and of one; and bytes of cells that a tile has at most. */
    int64_t vectors, vectors_of_one, bytes, bytes_of_one;
    /* Returns how many are left. */
    int64_t (*prune)(const prune_job *job);
    /* Rows of signs of one filter, and the sum of its magnitudes. */
    double (*signs)(uint8_t *bits, const float *weight, int64_t taps, int64_t inputs);
    void (*panel)(const panel_job *job);
    void (*sweep)(const sweep_job *job);
    /* cells += values times weights; and grad += values times cells. */
    void (*scatter)(const product_job *job);
    void (*gather)(const product_job *job);
    /* `channels` floats each of `count` cells. */
    void (*copy)(float *to, int64_t step, const float *from, int64_t from_step, int64_t count, int64_t channels);
    /* to += from */
    void (*add)(float *to, const float *from, int64_t count);
} sparse_version;

/* The kernels that run under this ceiling. */
const sparse_version *fe_sparse_version(fe_isa ceiling);

FE_INLINE int64_t ceiling_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
FE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
