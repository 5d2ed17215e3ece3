/* What all versions share: the work on some pixels. */
#ifndef FLOWER_EDGE_BATCH_NORM_COMMON_H
#define FLOWER_EDGE_BATCH_NORM_COMMON_H

#include "batch_norm.h"

#include <string.h>

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Channels of the widest vector. */
    WIDEST = 16,
    /* Floats of a map that are gone through some vectors at a time: they stay in the L1 cache. */
    BLOCK = 4096,
    LINE = 64,
};

typedef struct {
    int64_t begin, end;
} span;

/* Numbers of each channel have room for whole vectors. */
typedef struct {
    int64_t channels;
    const float *x, *grad;
    float *out;
    uint8_t *bits;
    float cap;
    /* y = gain (x - centre) + shift before it is activated; grad_x = gain grad + slope (x - centre) + shift. */
    const float *centre, *gain, *slope, *shift;
    /* Whether `out` is written past the caches. */
    int stream;
} norm_job;

/* One instruction set's kernels. The first two add to `sum` and `product`, which have room for whole vectors. */
typedef struct {
    /* Sums of x - centre, and of its squares. */
    void (*add_moments)(const norm_job *job, span pixels, float *sum, float *product);
    /* Sums of the gradient that passes, and of its products with x - centre. */
    void (*add_gradients)(const norm_job *job, span pixels, float *sum, float *product);
    void (*normalise)(const norm_job *job, span pixels);
    void (*differentiate)(const norm_job *job, span pixels);
} norm_version;

FE_INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* Bytes of bits of a pixel, or of so many channels of it. */
FE_INLINE int64_t bytes_of(int64_t channels) { return (channels + 7) / 8; }

#endif
