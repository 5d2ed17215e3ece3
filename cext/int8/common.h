/* What all versions share. */
#ifndef FLOWER_EDGE_INT8_COMMON_H
#define FLOWER_EDGE_INT8_COMMON_H

#include "int8.h"
#include "seed.h"

#include <string.h>

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Rows and vectors of the largest tile that a kernel holds in registers. */
    MOST_ROWS = 16,
    MOST_VECTORS = 4,
    /* Numbers that a lane multiplies at a time, at most. */
    MOST_GROUP = 8,
    /* Columns of the widest block of weights. */
    MOST_COLUMNS = 64,
    /* Groups whose weights are held in registers. */
    MOST_CHUNK = 4,
    /* Rows of a gram that are turned together. */
    TURNED = 16,
    /* Pixels that a kernel is given at once. */
    MOST_PIXELS = 1024,
    MOST_TAPS = FE_LONGEST_KERNEL * FE_LONGEST_KERNEL,
    /* Channels of a block of a depthwise convolution, pixels whose products a float is sure to hold the sum of, and taps whose
     * sums stay in registers. */
    DEPTH_CHANNELS = 16,
    DEPTH_PIXELS = 512,
    DEPTH_TAPS = 9,
    /* Numbers that tiles multiply at a time, and their rows. */
    TILE_NUMBERS = 64,
    TILE_ROWS = 16,
    /* Elements whose random numbers come from one run of counters: two from each. */
    RUN = 32,
    /* Elements between those that become bytes and those that are fetched. */
    FAR = 1024,
};

/* Pixels of a result, one block of its channels. Products run over `segments` places, and at each over `groups` groups of
 * numbers that lie side by side. */
typedef struct {
    /* Of the version's cells, the first one that a pixel reads; and the numbers from it to the segments. */
    const void *cells;
    const int64_t *from;
    const int64_t *segments;
    int64_t count, groups;
    const int8_t *weights;
    int64_t columns;
    /* Subtracted from the sums of products, which are then scaled. */
    const int32_t *shift;
    const float *scale, *bias;
    /* Where a pixel's first channel goes. */
    const int64_t *to;
    int64_t pixels;
    float *floats;
    uint8_t *bytes;
    /* Whether the floats, which are whole cache lines then, had better go past the caches. */
    int streams;
    fe_rounding rounding;
    float low, high;
    /* Room for all numbers of a strip of pixels. */
    uint8_t *strip;
} tile_job;

/* Rows of a gram, one block of its columns: adds to `sums`, or sets them the first time. */
typedef struct {
    const void *cells;
    const int64_t *from;
    int64_t rows;
    const int64_t *segments;
    int64_t count, groups;
    const int8_t *errors;
    int64_t columns;
    int32_t *sums;
    /* From one row of sums to the next. */
    int64_t stride;
    int is_first;
} gram_job;

/* Where all copies of the sums lie, and what becomes of them. */
typedef struct {
    int64_t copies, copy, stride, halves, half;
    double scale;
} gram_sums;

/* The gradient of a weight at one tap, for all outputs and for some inputs, over some pixels. */
typedef struct {
    /* Signed bytes: of output o and its pixel p, planes[o * pitch + p]; those of another half lie `half` behind. */
    const int8_t *planes;
    int64_t pitch, half, halves, outputs;
    /* Of the map, in groups of pixels, with whole vectors of inputs; `count` times so many pixels, `step` bytes apart. In planes
     * they follow each other. */
    const uint8_t *block;
    int64_t count, step, pixels, inputs;
    /* sums[half * outputs * stride + o * stride + i], which are set the first time, and added to then. */
    int32_t *sums;
    int64_t stride;
    int is_first;
    /* Where it is not NULL, sums end here: grad[o * stride + i] = scale * (sum - shift), of the halves put together. */
    float *grad;
    const int32_t *shift;
    double scale;
    /* Whether they go past the caches, in whole lines. */
    int streams;
} tap_job;

/* Some rows of pixels of a depthwise convolution, a block of its channels. Whole numbers, as floats: what they add up to is below
 * 2^24, so that it is exact. */
typedef struct {
    /* From one pixel to the next, and from a pixel to what it reads through each tap. */
    const float *cells;
    int64_t step, pixels, taps;
    const int64_t *offsets;
    /* Rows of so many pixels each, and from one to the next. */
    int64_t rows, down;
    /* Forward: weights[tap][channel]. For the gradient of the weight: errors[pixel][channel]. */
    const float *weights, *errors;
} depth_job;

/* One block of columns of a weight. */
typedef struct {
    /* For channel i of the result, channel k it is made from and tap t: weight[i * result + k * made + t]. */
    const float *weight;
    int64_t result, made, tap;
    int64_t columns, channels;
    /* In the order in which kernels go through them. */
    const int *taps;
    int64_t count;
    /* Taps of the kernel, of which these are some. */
    int64_t places;
    int8_t *bytes;
    float *scales;
    /* For tap t, sums[t * stride + i]. */
    int32_t *sums;
    int64_t stride;
} pack_job;

/* One instruction set's kernels. */
typedef struct {
    /* Numbers that a lane multiplies at a time, lanes of a vector, and vectors of a full block of columns. */
    int64_t group, lanes, vectors;
    /* Bytes of a number as the kernels read it, and what is flipped in it: its sign, where numbers have one. */
    int64_t cell;
    int flip;
    void (*convolve)(tile_job *job);
    void (*gram)(const gram_job *job);
    /* Bytes to cells, one after the other. */
    void (*cells)(void *to, const uint8_t *from, int64_t count);
    /* channels x count cells from count x channels: of `from`, pixels lie `step` and channels 1 apart; of `to`, channels lie
     * `pitch` apart. */
    void (*planes)(void *to, int64_t pitch, const void *from, int64_t step, int64_t count, int64_t channels);
    /* Rows of bytes, `step` apart, in groups: to[column][row in group], zeros beyond count and columns. Adds up columns. */
    void (*interleave)(int8_t *to, const uint8_t *from, int64_t step, int64_t count, int64_t columns, int64_t width,
                       int32_t *sums);
    /* grad[column * pitch + row] = scale * (the sum of all copies - shift), which an int32 holds; halves are put together. At
     * most TURNED rows and MOST_COLUMNS columns, as many of `shift` for each half. */
    void (*finish)(float *grad, int64_t pitch, const int32_t *sums, const gram_sums *of, int64_t rows, int64_t columns,
                   const int32_t *shift);
    int (*pack)(const pack_job *job);
    /* Both ends are NaN where x is not finite. */
    void (*range)(float ends[2], const float *x, int64_t count);
    /* `first` is the position of x[0] in the whole. */
    void (*quantise)(uint8_t *out, const float *x, int64_t count, int64_t first, const fe_rounding *rounding);
    void (*halves)(uint8_t *high, uint8_t *low, const float *x, int64_t count, float inverse);
    void (*dequantise)(float *out, const uint8_t *x, int64_t count, float scale, int zero);
    /* to[i][channel] = from[i * step + channel] - zero, zeros from `channels` channels on. */
    void (*widen)(float *to, const uint8_t *from, int64_t step, int64_t count, int64_t channels, int zero);
    /* Depthwise: pixel i of all rows goes to to->to[i]. */
    void (*depth_rows)(tile_job *to, const depth_job *job);
    /* Adds to sums[tap][channel], of at most DEPTH_PIXELS pixels. */
    void (*depth_gram)(double *sums, const depth_job *job);
    /* Pixels of a strip, whose numbers `convolve` lays side by side; 0 where it does not. */
    int64_t strip;
    /* Where these are not NULL, gradients of weights are made by them, and not by `gram`. Planes of `channels` channels of a
     * gradient, with zeros from `count` pixels on, and what each adds up to. */
    void (*turn)(int8_t *planes, int64_t pitch, const uint8_t *errors, int64_t count, int64_t channels, int32_t *sums);
    /* Cells that pixels read, each of some channels, in groups. */
    void (*gather)(uint8_t *block, const uint8_t *cells, const int64_t *from, int64_t pixels, int64_t channels);
    void (*tap)(const tap_job *job);
    /* grad[i] = scale * (the sum of all copies - shift), of the halves put together; `half` and `copy` from one to the next. */
    void (*collect)(float *grad, const int32_t *sums, int64_t count, const gram_sums *of, const int64_t shift[2]);
} int8_version;

/* The kernels that run under this ceiling. */
const int8_version *fe_int8_version(fe_isa ceiling);

FE_INLINE int64_t ceiling_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
FE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* From one pixel of a strip to the next: an odd number of cache lines, so that neighbours do not meet in few of them. */
FE_INLINE int64_t strip_pitch(int64_t numbers) { return (ceiling_of(numbers, TILE_NUMBERS) | 1) * TILE_NUMBERS; }

/* Before a piece ends, what went past the caches is where others see it. */
FE_INLINE void settle(void) {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

/* Lanes that a block of columns takes, from its first column on. */
FE_INLINE int64_t width_of(const int8_version *version, int64_t columns) {
    return smaller(ceiling_of(columns, version->lanes), version->vectors) * version->lanes;
}

#endif
