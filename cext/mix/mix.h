/* Weighted sum of model vectors: out = sum over j of weights[j] * vectors[j], one pass over memory. */
#ifndef FLOWER_EDGE_MIX_H
#define FLOWER_EDGE_MIX_H

#include "cpu.h"

#include <stddef.h>

/* The version that runs under this ceiling. */
fe_isa fe_mix_isa(fe_isa ceiling);

/* `count` vectors of `length` floats each, at any address; `count` is at least 1. `out` may be one or several of the
 * vectors, but must not overlap one partly. Each element is one chain of operations in the order of the vectors, so the
 * result does not depend on threads, length or alignment. Returns 0, or the error of the thread pool. */
int fe_mix(fe_isa ceiling, fe_float *out, const fe_float *const *vectors, const float *weights, size_t count,
           size_t length);

#endif
