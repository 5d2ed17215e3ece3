/* ReLU and ReLU6 that keep one bit per element for the backward pass, in place of the whole activation. */
#ifndef FLOWER_EDGE_SIGN_BITS_H
#define FLOWER_EDGE_SIGN_BITS_H

#include "cpu.h"

#include <stddef.h>
#include <stdint.h>

/* The version that runs under this ceiling. */
fe_isa fe_sign_bits_isa(fe_isa ceiling);

/* out[i] = x[i] cut to [0, cap], and bit i % 8 of bits[i / 8] = whether the gradient passes: 0 < x[i] < cap. A NaN stays
 * one and lets the gradient pass. `cap` is NaN for none. `bits` has (length + 7) / 8 bytes; what is left of
 * the last one is 0. `out` may be `x` itself, but must not overlap it partly. Returns 0, or the error of the thread pool. */
int fe_relu_bits(fe_isa ceiling, fe_float *out, uint8_t *bits, const fe_float *x, size_t length, float cap);

/* out[i] = x[i] where bit i is set, else 0, even if x[i] is a NaN. Aliasing and result as above. */
int fe_mask_by_bits(fe_isa ceiling, fe_float *out, const fe_float *x, const uint8_t *bits, size_t length);

#endif
