/* What all versions share. */
#ifndef FLOWER_EDGE_BYTE_SUMS_COMMON_H
#define FLOWER_EDGE_BYTE_SUMS_COMMON_H

#include "byte_sums.h"

#include <string.h>

#define FE_INLINE static inline __attribute__((always_inline))

/* One instruction set's kernels, for a part of the maps. */
typedef struct {
    void (*ends)(float ends[2], const fe_byte_map *x, const fe_byte_map *y, int64_t count);
    void (*sum)(uint8_t *out, float inverse, int zero, const fe_byte_map *x, const fe_byte_map *y, int64_t count);
    void (*mask)(float *out, const float *grad, const uint8_t *bytes, int zero, int64_t count);
} sums_version;

FE_INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
