/* Batch normalisation by the statistics of the batch, with an activation or without, forward and backward, on maps with
 * channels last: (pixel, channel), the pixels of all samples one after the other.
 *
 *   y = act(weight (x - mean) / sqrt(variance + eps) + bias),    act: identity, or the cut to [0, cap] */
#ifndef FLOWER_EDGE_BATCH_NORM_H
#define FLOWER_EDGE_BATCH_NORM_H

#include "cpu.h"

#include <stdint.h>

typedef struct {
    int64_t pixels, channels;
    double eps;
    /* Of each channel. NULL stands for 1 and 0. */
    const float *weight, *bias;
    /* NaN for none. Is of interest only where there are bits. */
    float cap;
} fe_batch_norm;

/* Whether the sizes make sense and no address computed from them overflows. */
int fe_batch_norm_is_valid(const fe_batch_norm *norm);

/* The version that runs under this ceiling. */
fe_isa fe_batch_norm_isa(fe_isa ceiling);

/* Both functions give the same bits for every number of threads, and return 0, -1 for lack of memory, or the error of the
 * thread pool.
 *
 * `statistics` are three rows of `channels` floats: mean, 1 / sqrt(variance + eps), and the unbiased variance, infinite or NaN
 * for a single pixel. `bits` are NULL for no activation; else a row for each pixel of (channels + 7) / 8 bytes, where bit
 * c % 8 of byte c / 8 says whether channel c lets the gradient pass: 0 < y < cap. A NaN does. */
int fe_batch_norm_forward(fe_isa ceiling, const fe_batch_norm *norm, const float *x, float *y, uint8_t *bits,
                          float *statistics);

/* Neither `cap` nor `bias` is read. `grad_x` is not formed where it is NULL, and may be neither x nor grad. */
int fe_batch_norm_backward(fe_isa ceiling, const fe_batch_norm *norm, const float *x, const float *statistics,
                           const uint8_t *bits, const float *grad, float *grad_x, float *grad_weight, float *grad_bias);

#endif
