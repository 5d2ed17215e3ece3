/* Convolutions in 8 bits, forward and backward. A feature map of unsigned bytes, channels last, means scale * (byte - zero);
 * weights are signed bytes with a scale for each output. Products are summed in 32-bit integers, exactly. */
#ifndef FLOWER_EDGE_INT8_H
#define FLOWER_EDGE_INT8_H

#include "conv.h"
#include "cpu.h"

#include <stddef.h>
#include <stdint.h>

enum {
    /* Products of a byte and a signed byte of magnitude 127 whose sum an int32 is sure to hold. */
    FE_MOST_PRODUCTS = 66311,
    FE_LONGEST_KERNEL = 15,
    FE_LONGEST_STRIDE = 8,
    /* Cells along a side of a map, with its padding. */
    FE_LONGEST_SIDE = 16384,
    /* The byte that means 0 in a quantised gradient. */
    FE_ERROR_ZERO = 128,
    /* A gradient in 16 bits is FE_HALF * high + low, either of them within +-127. */
    FE_HALF = 255,
    /* What functions return beside 0, -1 for lack of memory, and the thread pool's error. */
    FE_NOT_FINITE = -2,
};

/* Whether all sizes make sense, no sum overflows, and no address computed from them does. */
int fe_conv_is_valid(const fe_conv *conv);

/* The version that runs under this ceiling. */
fe_isa fe_int8_isa(fe_isa ceiling);

/* low and high = the least and the greatest of x and 0. FE_NOT_FINITE where x has a NaN or an infinity. */
int fe_range(fe_isa ceiling, float *low, float *high, const float *x, int64_t count);

/* How floats become bytes: round(x * inverse) + zero, cut to [least, most]. Half is rounded to even; or, stochastically,
 * up with a probability that makes the mean right: by random numbers that are a function of seed and position alone, so
 * that neither the instruction set nor the number of threads has a say in them. */
typedef struct {
    float inverse;
    int zero, least, most;
    int stochastic;
    uint64_t seed;
} fe_rounding;

int fe_quantise(fe_isa ceiling, uint8_t *out, const float *x, int64_t count, const fe_rounding *rounding);

/* As fe_quantise; and the same numbers in 16 bits, as two bytes each with FE_ERROR_ZERO for 0: round(x * half_inverse) =
 * FE_HALF * high + low. */
int fe_quantise_error(fe_isa ceiling, uint8_t *out, uint8_t *high, uint8_t *low, const float *x, int64_t count,
                      const fe_rounding *rounding, float half_inverse);

/* out = scale * (x - zero) */
int fe_dequantise(fe_isa ceiling, float *out, const uint8_t *x, int64_t count, float scale, int zero);

/* Weights as kernels read them, for the convolution or for its transpose: bytes, then for each phase of the stride and
 * each channel of the result the sum of its bytes, and its scale. */
typedef struct {
    int8_t *bytes;
    int32_t *sums;
    float *scales;
} fe_packed;

/* How many bytes, sums and scales those are. */
typedef struct {
    int64_t bytes, sums, scales;
} fe_packed_sizes;

fe_packed_sizes fe_int8_packed(fe_isa ceiling, const fe_conv *conv, int transposed);

/* Quantises a weight, (output, row, column, input of its group), to +-127 with a scale for each channel of the result.
 * FE_NOT_FINITE as above. */
int fe_int8_pack(fe_isa ceiling, const fe_packed *packed, const float *weight, const fe_conv *conv, int transposed);

/* What a convolution writes: floats, or bytes by a rounding to nearest. */
typedef struct {
    float *floats;
    uint8_t *bytes;
    fe_rounding rounding;
    /* Of the floats, before they become bytes: least, greatest, and 0; NaN where a scale or the bias is not finite. */
    float low, high;
} fe_conv_out;

/* out = scale * the convolution of x - zero with the weights + bias; of the transposed one, whose input is a gradient of
 * the output and whose result has the shape of the input. `bias` may be NULL. */
int fe_int8_conv(fe_isa ceiling, fe_conv_out *out, const uint8_t *x, int zero, float scale, const fe_packed *packed,
                 const float *bias, const fe_conv *conv, int transposed);

/* grad = scale * sum over pixels of x - zero times the gradient of the output: bytes with FE_ERROR_ZERO for 0, or the
 * halves of 16 bits where `low` is not NULL. grad lies as the weight does. Work is divided into `pieces`, which the result
 * does not depend on. */
int fe_int8_grad_weight(fe_isa ceiling, float *grad, const uint8_t *x, int zero, float scale, const uint8_t *high,
                        const uint8_t *low, const fe_conv *conv, int64_t pieces);

#endif
