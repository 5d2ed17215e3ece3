/* What all versions share: the work on one sample. */
#ifndef FLOWER_EDGE_RANGE_EVONORM_COMMON_H
#define FLOWER_EDGE_RANGE_EVONORM_COMMON_H

#include "range_evonorm.h"

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Floats of a map that go through the channels' vectors one after the other: they stay in the L1 cache. */
    BLOCK = 4096,
    /* Elements between those that are read and those that are fetched. */
    FAR = 2048,
    MAXIMUM = 0,
    MINIMUM = 1,
    /* Bytes of the widest vector of them, and pixels that a byte numbers when 0 is none. */
    MOST_WIDE = 32,
    MOST_COUNTED = 255,
};

/* Pixels of a sample. */
typedef struct {
    int64_t begin, end;
} span;

/* One sample's maps, in the numbers that are in memory: a byte counts as byte - zero, its scale is in `gain` and `slope`. */
typedef struct {
    int64_t pixels, channels, groups;
    fe_norm_map x, grad, y;
    float *dx;
    /* Of each channel: y = gain x clip(slope x + offset, 0, 1) + shift, dx = d(y) gain n'(x). */
    const float *gain, *shift, *slope;
    /* 0, 1, 2, ... */
    const float *number;
    /* MOST_COUNTED less the pixel of a vector of bytes that a lane belongs to. */
    const uint8_t *countdown;
    float offset;
    /* Of the bytes of y. */
    float inverse_scale;
    /* Least and greatest of what is written and of 0; whether nobody asks for those of y, which are known. */
    float bounds[2];
    int is_bounded;
} norm_job;

/* Sums over a sample's pixels, of each channel; with n the activated x and d the gradient of y. */
typedef struct {
    float *grad_n, *grad, *grad_x_x;
} norm_sums;

/* Kernels for maps of bytes, a vector of bytes at a time. Buffers have room for a vector behind what they hold. */
typedef struct {
    /* Pixels of a vector, of so many pixels at least that lie side by side; 0 where these kernels do not serve. */
    int64_t (*pixels_of)(int64_t pixels, int64_t channels);
    void (*extremes)(const uint8_t *x, int64_t pixels, int64_t channels, uint8_t *most, uint8_t *least);
    void (*reduce)(uint8_t *values, int64_t count, int64_t width, uint8_t flip);
    /* `most` and `least` of a vector's lanes, where there are fewer channels. */
    void (*locate)(const norm_job *job, span pixels, const uint8_t *most, const uint8_t *least, float *most_at,
                   float *least_at);
} byte_version;

/* One instruction set's kernels. */
typedef struct {
    /* Lets most and least, of each channel, go on through some pixels, or begin with them. */
    void (*extremes)(const norm_job *job, span pixels, float *most, float *least, int is_first);
    /* Reduces `count` groups of `width` floats, one after the other, to their extremes; returns how far these are apart in
     * the end. Reads a group more. */
    int64_t (*reduce)(float *values, int64_t count, int64_t width, int which);
    void (*normalise)(norm_job *job);
    void (*differentiate)(norm_job *job, const norm_sums *sums);
    /* For each channel, where among the pixels it first is `most`, and `least`: pixel * channels + channel, with the first
     * pixel being 0; infinity where it never is. */
    void (*locate)(const norm_job *job, span pixels, float *most, float *least);
    /* Widens the bounds by y at `top`, at `bottom`, and where it turns between them, of each channel; returns 0, or NaN where one
     * of these is not finite. */
    float (*bound)(norm_job *job, const float *top, const float *bottom, const float *turn);
    /* NULL where there are none. */
    const byte_version *bytes;
} norm_version;

FE_INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
