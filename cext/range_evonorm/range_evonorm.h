/* Range-EvoNorm, forward and backward, on maps with channels last: (sample, pixel, channel). A group is some neighbouring
 * channels of one sample; its pixels are cut into chunks, and R is the mean over these of max - min.
 *
 *   y = weight s x clip(v x / 6 + 1/2, 0, 1) + bias,    s = 1 / (factor R + eps);    without v: y = weight s x + bias */
#ifndef FLOWER_EDGE_RANGE_EVONORM_H
#define FLOWER_EDGE_RANGE_EVONORM_H

#include "cpu.h"

#include <stdint.h>

enum {
    /* Into which the pixels of a sample are cut; fewer where there are fewer pixels, so that none is empty. */
    FE_CHUNKS = 16,
};

typedef struct {
    int64_t samples, pixels, channels, groups;
    float factor, eps;
    /* Of each channel. NULL stands for 1, 0, and no activation. */
    const float *weight, *bias, *v;
} fe_range_evonorm;

/* A map of floats, or, where there are bytes, of scale * (byte - zero). */
typedef struct {
    float *floats;
    uint8_t *bytes;
    float scale, zero;
} fe_norm_map;

/* Whether the sizes make sense and no address computed from them overflows. */
int fe_range_evonorm_is_valid(const fe_range_evonorm *norm);

/* The version that runs under this ceiling. */
fe_isa fe_range_evonorm_isa(fe_isa ceiling);

/* Chunks that so many pixels are cut into: chunk k of n has the pixels from k * pixels / n, rounded down, on. */
int64_t fe_norm_chunks(int64_t pixels);

/* Both functions give the same bits for every number of threads, and return 0, -1 for lack of memory, or the error of the
 * thread pool.
 *
 * `extremes`, (sample, chunk, group, 2), are max and min of the chunks in the numbers of x: floats, or bytes where x has
 * bytes. `bounds`, 2 floats or NULL, are least and greatest of what is written and of 0, before it is rounded to bytes; the
 * first is NaN where a parameter is not finite. */
int fe_range_evonorm_forward(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, const fe_norm_map *y,
                             void *extremes, float *bounds);

/* The same in two parts, where the rounding of y depends on its bounds: these follow from the least and the greatest x of each
 * channel, so that y need not be known. They may be a little wider than y, and the first is NaN where y is not finite. */
int fe_range_evonorm_extremes(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, void *extremes,
                              float *bounds);
int fe_range_evonorm_normalise(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, const fe_norm_map *y,
                               const void *extremes);

/* The gradient through max and min goes to the first element of the chunk that equals it, pixel by pixel. `bounds` may be
 * wider than dx, since they are taken before that gradient is added, too; the first is NaN where something is not finite. */
int fe_range_evonorm_backward(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, const void *extremes,
                              const fe_norm_map *grad, float *dx, float *dweight, float *dbias, float *dv, float *bounds);

#endif
