#include "chain.h"

#include <math.h>

enum {
    LEVELS = 255,
    /* Steps of a gradient on either side of 0, in 8 and in 16 bits. */
    STEPS = 127,
    HALF_STEPS = STEPS * FE_HALF + STEPS,
};

/* The least scale whose inverse is finite in float32. */
static const double least_scale = 1.2e-38;

fe_meaning fe_levels_between(double low, double high) {
    const double scale = high > low ? fmax((high - low) / LEVELS, least_scale) : 1.0;
    return (fe_meaning){scale, (int)fmin(LEVELS, fmax(0.0, nearbyint(-low / scale)))};
}

static int64_t elements_of(const fe_range_evonorm *norm) { return norm->samples * norm->pixels * norm->channels; }

/* A range of bytes is known to a step: a quiet group of equal bytes must not be multiplied by 1 / eps. */
static void set_numbers(fe_range_evonorm *norm, double factor, double eps, fe_meaning x_means) {
    norm->factor = (float)factor;
    norm->eps = (float)(eps + x_means.scale * factor);
}

static fe_norm_map map_of(uint8_t *bytes, fe_meaning means) {
    return (fe_norm_map){.bytes = bytes, .scale = (float)means.scale, .zero = (float)means.zero};
}

static int are_finite(const float ends[2]) { return isfinite(ends[0]) && isfinite(ends[1]); }

int fe_chain_norm(fe_isa ceiling, fe_range_evonorm *norm, double factor, double eps, fe_chain_maps *maps) {
    if (maps->floats) {
        if (!are_finite(maps->ends))
            return FE_NOT_FINITE;
        maps->x_means = fe_levels_between((double)maps->ends[0], (double)maps->ends[1]);
        const fe_rounding rounding = {
            .inverse = (float)(1.0 / maps->x_means.scale), .zero = maps->x_means.zero, .most = LEVELS};
        int error = fe_quantise(ceiling, maps->x, maps->floats, elements_of(norm), &rounding);
        if (error)
            return error;
    }
    set_numbers(norm, factor, eps, maps->x_means);
    const fe_norm_map x = map_of(maps->x, maps->x_means);
    float ends[2];
    int error = fe_range_evonorm_extremes(ceiling, norm, &x, maps->extremes, ends);
    if (error || !are_finite(ends))
        return error ? error : FE_NOT_FINITE;
    maps->y_means = fe_levels_between((double)ends[0], (double)ends[1]);
    const fe_norm_map y = map_of(maps->y, maps->y_means);
    return fe_range_evonorm_normalise(ceiling, norm, &x, &y, maps->extremes);
}

int fe_chain_norm_backward(fe_isa ceiling, fe_range_evonorm *norm, double factor, double eps, const fe_chain_maps *maps,
                           const float *grad, float *dx, fe_error *error, float *dweight, float *dbias, float *dv) {
    set_numbers(norm, factor, eps, maps->x_means);
    const fe_norm_map x = map_of(maps->x, maps->x_means), of_y = {.floats = (float *)grad, .scale = 1.0f};
    float ends[2];
    int failed = fe_range_evonorm_backward(ceiling, norm, &x, maps->extremes, &of_y, dx, dweight, dbias, dv, ends);
    if (failed || !error)
        return failed;
    if (!are_finite(ends))
        return FE_NOT_FINITE;
    const double largest = fmax(-(double)ends[0], (double)ends[1]);
    error->scale = largest > 0.0 ? fmax(largest / STEPS, least_scale) : 1.0;
    error->half_scale = largest > 0.0 ? fmax(largest / HALF_STEPS, least_scale) : 1.0;
    const fe_rounding rounding = {
        .inverse = (float)(1.0 / error->scale),
        .zero = FE_ERROR_ZERO,
        .least = FE_ERROR_ZERO - STEPS,
        .most = FE_ERROR_ZERO + STEPS,
        .stochastic = error->stochastic,
        .seed = error->seed,
    };
    if (!error->high)
        return fe_quantise(ceiling, error->bytes, dx, elements_of(norm), &rounding);
    return fe_quantise_error(ceiling, error->bytes, error->high, error->low, dx, elements_of(norm), &rounding,
                             (float)(1.0 / error->half_scale));
}
