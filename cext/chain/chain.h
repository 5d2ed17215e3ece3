/* Whole passes of layers that hand bytes to each other: what a training step does with a layer, in one call. */
#ifndef FLOWER_EDGE_CHAIN_H
#define FLOWER_EDGE_CHAIN_H

#include "int8/int8.h"
#include "range_evonorm/range_evonorm.h"

/* What bytes mean: scale * (byte - zero). */
typedef struct {
    double scale;
    int zero;
} fe_meaning;

/* Of 256 levels from `low`, at most 0, to `high`, at least 0. */
fe_meaning fe_levels_between(double low, double high);

/* A gradient in bytes, and where `high` is not NULL in the two halves of 16 bits; what a step of either means. */
typedef struct {
    uint8_t *bytes, *high, *low;
    double scale, half_scale;
    int stochastic;
    uint64_t seed;
} fe_error;

/* All functions return 0, -1 for lack of memory, FE_NOT_FINITE, or the error of the thread pool. */

/* A convolution with a float32 weight, inputs innermost, whose bytes nobody needs afterwards. */
int fe_chain_conv(fe_isa ceiling, fe_conv_out *out, const uint8_t *x, fe_meaning x_means, const float *weight,
                  const float *bias, const fe_conv *conv);

/* Its gradients; either may be NULL. Work is divided into `pieces`. */
int fe_chain_conv_backward(fe_isa ceiling, float *grad_x, float *grad_weight, const uint8_t *x, fe_meaning x_means,
                           const fe_error *error, const float *weight, const fe_conv *conv, int64_t pieces);

/* Where `floats` are not NULL they become the bytes of x first: `x_means` is found from their ends. A step of x is known of its
 * range, and is added to `eps`. */
typedef struct {
    const float *floats;
    float ends[2];
    uint8_t *x, *y, *extremes;
    fe_meaning x_means, y_means;
} fe_chain_maps;

/* Normalises bytes to bytes, with levels between the least and the greatest result. Of `norm`, factor and eps are set here. */
int fe_chain_norm(fe_isa ceiling, fe_range_evonorm *norm, double factor, double eps, fe_chain_maps *maps);

/* dx of float32 gradients, by way of the floats at `dx`; NULL for `error` leaves those. */
int fe_chain_norm_backward(fe_isa ceiling, fe_range_evonorm *norm, double factor, double eps, const fe_chain_maps *maps,
                           const float *grad, float *dx, fe_error *error, float *dweight, float *dbias, float *dv);

#endif
