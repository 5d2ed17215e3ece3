#include "chain.h"

#include <stdlib.h>

enum { LINE = 64 };

static int64_t lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static int convolve(fe_isa ceiling, fe_conv_out *out, const uint8_t *x, int zero, double scale, const float *weight,
                    const float *bias, const fe_conv *conv, int transposed) {
    const fe_packed_sizes sizes = fe_int8_packed(ceiling, conv, transposed);
    const int64_t bytes = lines(sizes.bytes), sums = lines(sizes.sums * (int64_t)sizeof(int32_t));
    int8_t *memory = aligned_alloc(LINE, (size_t)(bytes + sums + lines(sizes.scales * (int64_t)sizeof(float)) + LINE));
    if (!memory)
        return -1;
    const fe_packed packed = {memory, (int32_t *)(memory + bytes), (float *)(memory + bytes + sums)};
    int error = fe_int8_pack(ceiling, &packed, weight, conv, transposed);
    if (!error)
        error = fe_int8_conv(ceiling, out, x, zero, (float)scale, &packed, bias, conv, transposed);
    free(memory);
    return error;
}

int fe_chain_conv(fe_isa ceiling, fe_conv_out *out, const uint8_t *x, fe_meaning x_means, const float *weight,
                  const float *bias, const fe_conv *conv) {
    return convolve(ceiling, out, x, x_means.zero, x_means.scale, weight, bias, conv, 0);
}

int fe_chain_conv_backward(fe_isa ceiling, float *grad_x, float *grad_weight, const uint8_t *x, fe_meaning x_means,
                           const fe_error *error, const float *weight, const fe_conv *conv, int64_t pieces) {
    int failed = 0;
    if (grad_x) {
        fe_conv_out out = {.floats = grad_x};
        failed = convolve(ceiling, &out, error->bytes, FE_ERROR_ZERO, error->scale, weight, NULL, conv, 1);
    }
    if (grad_weight && !failed) {
        const uint8_t *high = error->high ? error->high : error->bytes;
        const double scale = x_means.scale * (error->high ? error->half_scale : error->scale);
        failed = fe_int8_grad_weight(ceiling, grad_weight, x, x_means.zero, (float)scale, high, error->low, conv, pieces);
    }
    return failed;
}
