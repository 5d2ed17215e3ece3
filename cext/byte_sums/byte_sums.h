/* Feature maps of bytes, scale * (byte - zero), where paths of a network meet: their sums, and the gradient of a ReLU that
 * knows its input by its bytes. The same bits on every instruction set and for every number of threads. */
#ifndef FLOWER_EDGE_BYTE_SUMS_H
#define FLOWER_EDGE_BYTE_SUMS_H

#include "cpu.h"

#include <stdint.h>

typedef struct {
    const uint8_t *bytes;
    float scale;
    int zero;
} fe_byte_map;

/* The version that runs under this ceiling. */
fe_isa fe_byte_sums_isa(fe_isa ceiling);

/* All functions return 0, -1 for lack of memory, or the error of the thread pool. */

/* ends = the least and the greatest of x + y and of 0. */
int fe_byte_sum_ends(fe_isa ceiling, float ends[2], const fe_byte_map *x, const fe_byte_map *y, int64_t count);

/* out = round((x + y) * inverse) + zero, half to even, cut to 0..255. */
int fe_byte_sum(fe_isa ceiling, uint8_t *out, float inverse, int zero, const fe_byte_map *x, const fe_byte_map *y,
                int64_t count);

/* out = grad where bytes are above zero, else 0, even if grad is a NaN there. `out` may be `grad` itself. */
int fe_mask_by_bytes(fe_isa ceiling, float *out, const float *grad, const uint8_t *bytes, int zero, int64_t count);

#endif
