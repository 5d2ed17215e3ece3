/* What all versions share: the work on one sample. */
#ifndef FLOWER_EDGE_RANGE_EVONORM_COMMON_H
#define FLOWER_EDGE_RANGE_EVONORM_COMMON_H

#include "range_evonorm.h"

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Floats of a map that go through the channels' vectors one after the other: they stay in the L1 cache. */
    BLOCK = 4096,
    MAXIMUM = 0,
    MINIMUM = 1,
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
    float offset;
    /* Of the bytes of y. */
    float inverse_scale;
    /* Least and greatest of what is written and of 0. */
    float bounds[2];
} norm_job;

/* Sums over a sample's pixels, of each channel; with n the activated x and d the gradient of y. */
typedef struct {
    float *grad_n, *grad, *grad_x_x;
} norm_sums;

/* One instruction set's kernels. */
typedef struct {
    /* Lets most and least, of each channel, go on through some pixels. */
    void (*extremes)(const norm_job *job, span pixels, float *most, float *least);
    /* values[i] becomes the extreme of values[i] and of values[i + distance]; there have to be count + distance. */
    void (*spread)(float *values, int64_t count, int64_t distance, int which);
    void (*normalise)(norm_job *job);
    void (*differentiate)(norm_job *job, const norm_sums *sums);
    /* For each group, the first element that is `most` and the first that is `least`, both given for each channel: its
     * pixel * channels + channel, or -1 where there is none. positions is (group, 2). */
    void (*locate)(const norm_job *job, span pixels, const float *most, const float *least, int64_t *positions);
} norm_version;

FE_INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* The lanes from c on that belong to the group of channel c + lane. */
FE_INLINE unsigned lanes_of_group(int64_t c, int64_t lane, int64_t per_group, int64_t lanes) {
    int64_t begin = (c + lane) / per_group * per_group - c, end = least_of(begin + per_group, lanes);
    begin = begin > 0 ? begin : 0;
    return ((1u << end) - 1) & ~((1u << begin) - 1);
}

/* Takes the elements behind `hits` for their groups' positions, where they come earlier; returns the lanes that still miss
 * theirs. */
FE_INLINE unsigned take_hits(unsigned hits, unsigned missing, int64_t *positions, int64_t element, int64_t c,
                             int64_t per_group, int64_t lanes) {
    while (hits) {
        int64_t lane = __builtin_ctz(hits);
        int64_t *position = positions + (c + lane) / per_group * 2;
        if (*position < 0 || element + lane < *position)
            *position = element + lane;
        unsigned group = lanes_of_group(c, lane, per_group, lanes);
        hits &= ~group;
        missing &= ~group;
    }
    return missing;
}

#endif
