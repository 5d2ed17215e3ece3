/* Extremes of a sample: what they are, and where. */
#ifndef FLOWER_EDGE_RANGE_EVONORM_EXTREMES_H
#define FLOWER_EDGE_RANGE_EVONORM_EXTREMES_H

#include "common.h"

#include <stdatomic.h>

typedef struct {
    const fe_range_evonorm *norm;
    const norm_version *version;
    const fe_norm_map *x, *y, *grad;
    void *extremes;
    float *dx;
    /* (sample, SUMS, channel), with the sample's scale in them; (sample, 2). */
    float *sums, *bounds;
    /* Whether `extremes` have been found already. */
    int is_known;
    atomic_int out_of_memory;
} norm_work;

/* What one thread needs for a sample. */
typedef struct {
    /* (chunk, channel), and then as many floats more as a group has channels. */
    float *most, *least;
    /* (channel), and (group). */
    float *gain, *shift, *slope, *number, *weight, *top, *bottom, *turn, *scale;
    /* The pixels of chunk k are those from begin[k] on, and before begin[k + 1]. */
    int64_t begin[FE_CHUNKS + 1];
    /* Pixels of a vector of bytes; 0 where floats serve. Extremes as bytes, of (chunk, channel). */
    int64_t together;
    uint8_t *most_bytes, *least_bytes, countdown[MOST_WIDE];
} scratch;

/* Finds the extremes of each (chunk, group), and of each channel into `top` and `bottom`. */
void fe_norm_find(const norm_work *work, const norm_job *job, int64_t sample, const scratch *of);

/* Puts where the extremes of each (chunk, group) are into `most` and `least`; returns how far they are apart. */
int64_t fe_norm_locate(const norm_work *work, const norm_job *job, int64_t sample, const scratch *of);

#endif
