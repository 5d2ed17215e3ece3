#include "range_evonorm.h"

#include "extremes.h"
#include "parallel.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

static const norm_version *const kernels[FE_ISA_COUNT] = {
    [FE_SERIAL] = &version_serial,
#if defined(__x86_64__)
    [FE_AVX2] = &version_avx2,
    [FE_AVX512] = &version_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = &version_neon,
#endif
};

enum {
    /* Elements of a map that are worth a thread. */
    GRAIN = 8192,
    /* Sums over a sample's pixels: those of norm_sums. */
    SUMS = 3,
    /* Of a chunk: floats number them. */
    MOST_ELEMENTS = 1 << 24,
};

fe_isa fe_range_evonorm_isa(fe_isa ceiling) {
    fe_version versions[FE_ISA_COUNT];
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        versions[isa] = kernels[isa] ? (fe_version)kernels[isa]->normalise : NULL;
    return fe_isa_choose(ceiling, versions);
}

int64_t fe_norm_chunks(int64_t pixels) { return least_of(FE_CHUNKS, pixels); }

int fe_range_evonorm_is_valid(const fe_range_evonorm *norm) {
    int64_t bytes = (int64_t)sizeof(float) * 2 * (FE_CHUNKS + SUMS + 1);
    const int64_t sizes[] = {norm->samples, norm->pixels, norm->channels, norm->groups};
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 1 || (i < 3 && __builtin_mul_overflow(bytes, sizes[i], &bytes)))
            return 0;
    return norm->channels % norm->groups == 0 &&
           (norm->pixels / fe_norm_chunks(norm->pixels) + 1) * norm->channels <= MOST_ELEMENTS;
}

static void *take_scratch(scratch *of, const norm_work *work) {
    const fe_range_evonorm *norm = work->norm;
    const int64_t channels = norm->channels, chunks = fe_norm_chunks(norm->pixels);
    const int64_t rows = chunks * channels + channels / norm->groups + MOST_WIDE;
    float *memory = calloc((size_t)(2 * rows + 8 * channels + norm->groups), sizeof *memory + 1);
    if (!memory)
        return NULL;
    of->most = memory;
    of->least = of->most + rows;
    of->number = of->least + rows;
    of->weight = of->number + channels;
    of->gain = of->weight + channels;
    of->shift = of->gain + channels;
    of->slope = of->shift + channels;
    of->top = of->slope + channels;
    of->bottom = of->top + channels;
    of->turn = of->bottom + channels;
    of->scale = of->turn + channels;
    of->most_bytes = (uint8_t *)(of->scale + norm->groups);
    of->least_bytes = of->most_bytes + rows;
    for (int64_t k = 0; k <= chunks; k++)
        of->begin[k] = k * norm->pixels / chunks;
    const byte_version *bytes = work->version->bytes;
    of->together = work->x->bytes && bytes ? bytes->pixels_of(norm->pixels / chunks, channels) : 0;
    for (int64_t i = 0; i < MOST_WIDE; i++)
        of->countdown[i] = (uint8_t)(MOST_COUNTED - i / channels);
    for (int64_t c = 0; c < channels; c++) {
        of->number[c] = (float)c;
        of->weight[c] = norm->weight ? norm->weight[c] : 1.0f;
        of->slope[c] = norm->v ? norm->v[c] * work->x->scale / 6.0f : 0.0f;
        of->turn[c] = -(norm->v ? 0.5f : 1.0f) / (2.0f * of->slope[c]);
        /* A NaN there would be lost between the gate's bounds. */
        of->shift[c] = isnan(of->slope[c]) ? of->slope[c] : norm->bias ? norm->bias[c] : 0.0f;
    }
    return memory;
}

static fe_norm_map of_sample(const fe_norm_map *map, int64_t at) {
    fe_norm_map sample = *map;
    if (map->bytes)
        sample.bytes += at;
    else
        sample.floats += at;
    return sample;
}

static norm_job job_of(const norm_work *work, int64_t sample, const scratch *of) {
    const fe_range_evonorm *norm = work->norm;
    int64_t at = sample * norm->pixels * norm->channels;
    norm_job job = {
        .pixels = norm->pixels,
        .channels = norm->channels,
        .groups = norm->groups,
        .x = of_sample(work->x, at),
        /* Without an activation the gate is 1 whatever x is. */
        .offset = norm->v ? 0.5f : 1.0f,
        .gain = of->gain,
        .shift = of->shift,
        .slope = of->slope,
        .number = of->number,
        .countdown = of->countdown,
    };
    return job;
}

/* The sum of max - min over the chunks of a group; NaN where one has nothing but NaNs. */
static double ranges_of(const norm_work *work, int64_t sample, int64_t group) {
    const fe_range_evonorm *norm = work->norm;
    const int64_t chunks = fe_norm_chunks(norm->pixels), step = 2 * norm->groups;
    const int64_t at = (sample * chunks * norm->groups + group) * 2;
    if (work->x->bytes) {
        const uint8_t *found = (const uint8_t *)work->extremes + at;
        int32_t sum = 0;
        /* Sixteen times in a row is no faster, and much code. */
        UNROLL(1)
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            sum += found[chunk * step + MAXIMUM] - found[chunk * step + MINIMUM];
        return sum;
    }
    const float *found = (const float *)work->extremes + at;
    double sum = 0.0;
    UNROLL(1)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float most = found[chunk * step + MAXIMUM], least = found[chunk * step + MINIMUM];
        sum += most >= least ? (double)most - (double)least : (double)__builtin_nanf("");
    }
    return sum;
}

static float scale_of(const norm_work *work, int64_t sample, int64_t group) {
    const int64_t chunks = fe_norm_chunks(work->norm->pixels);
    const double range = ranges_of(work, sample, group) * ((double)work->x->scale / (double)chunks);
    return (float)(1.0 / (range * (double)work->norm->factor + (double)work->norm->eps));
}

/* Sets what the groups' ranges decide: gain is weight * s * factor. */
static void set_gains(const norm_work *work, int64_t sample, float factor, const scratch *of) {
    const fe_range_evonorm *norm = work->norm;
    int64_t per_group = norm->channels / norm->groups;
    for (int64_t group = 0; group < norm->groups; group++) {
        float s = of->scale[group] = scale_of(work, sample, group);
        for (int64_t c = group * per_group; c < (group + 1) * per_group; c++)
            of->gain[c] = of->weight[c] * s * factor;
    }
}

/* The bounds of y follow from those of x in each channel: between them, y is extreme at an end or where its slope is 0. */
static void bound_sample(const norm_work *work, int64_t sample, const scratch *of) {
    norm_job job = job_of(work, sample, of);
    fe_norm_find(work, &job, sample, of);
    set_gains(work, sample, work->x->scale, of);
    float doubt = work->version->bound(&job, of->top, of->bottom, of->turn);
    /* Nothing is added where all is finite, else a NaN. */
    work->bounds[2 * sample] = job.bounds[0] + doubt;
    work->bounds[2 * sample + 1] = job.bounds[1];
}

static void normalise_sample(const norm_work *work, int64_t sample, const scratch *of) {
    const fe_range_evonorm *norm = work->norm;
    norm_job job = job_of(work, sample, of);
    if (!work->is_known)
        fe_norm_find(work, &job, sample, of);
    set_gains(work, sample, work->x->scale, of);
    job.y = of_sample(work->y, sample * norm->pixels * norm->channels);
    job.inverse_scale = 1.0f / work->y->scale;
    job.is_bounded = work->is_known;
    work->version->normalise(&job);
    memcpy(work->bounds + 2 * sample, job.bounds, sizeof job.bounds);
}

static void add(float *dx, float position, float share, float *low, float *high) {
    if (!(position < MOST_ELEMENTS))
        return;
    float value = dx[(int64_t)position] += share;
    *low = value < *low ? value : *low;
    *high = value > *high ? value : *high;
}

/* Adds the gradient that goes through R; `grad_n` are the sample's sums, and `factor` is what they have to be multiplied by. */
static void add_range_gradient(const norm_work *work, norm_job *job, int64_t sample, const float *grad_n, float factor,
                               const scratch *of) {
    const fe_range_evonorm *norm = work->norm;
    int64_t chunks = fe_norm_chunks(norm->pixels), groups = norm->groups, per_group = norm->channels / groups;
    int64_t apart = fe_norm_locate(work, job, sample, of);
    /* The extremes of channels are not needed any more. */
    float *shares = of->top;
    for (int64_t group = 0; group < groups; group++) {
        double through = 0.0, s = (double)of->scale[group];
        for (int64_t c = group * per_group; c < (group + 1) * per_group; c++)
            through += (double)of->weight[c] * (double)grad_n[c];
        shares[group] = (float)(-through * (double)factor * s * s * (double)norm->factor / (double)chunks);
    }
    /* Each has ends of its own, so that neither waits for the other's. */
    float low[2] = {job->bounds[0], 0.0f}, high[2] = {job->bounds[1], 0.0f};
    const float *most = of->most, *least = of->least;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        float *dx = job->dx + of->begin[chunk] * norm->channels;
        for (int64_t group = 0; group < groups; group++, most += apart, least += apart) {
            /* In a chunk of equals both come to one element, where they cancel: but for their rounding, which may be large. */
            if (*most == *least)
                continue;
            add(dx, *most, shares[group], &low[MAXIMUM], &high[MAXIMUM]);
            add(dx, *least, -shares[group], &low[MINIMUM], &high[MINIMUM]);
        }
    }
    job->bounds[0] = low[MINIMUM] < low[MAXIMUM] ? low[MINIMUM] : low[MAXIMUM];
    job->bounds[1] = high[MINIMUM] > high[MAXIMUM] ? high[MINIMUM] : high[MAXIMUM];
}

static void differentiate_sample(const norm_work *work, int64_t sample, const scratch *of) {
    const fe_range_evonorm *norm = work->norm;
    int64_t channels = norm->channels, per_group = channels / norm->groups;
    int64_t at = sample * norm->pixels * channels;
    float x_scale = work->x->scale, grad_scale = work->grad->scale;
    norm_job job = job_of(work, sample, of);
    set_gains(work, sample, grad_scale, of);
    job.grad = of_sample(work->grad, at);
    job.dx = work->dx + at;
    float *own = work->sums + sample * SUMS * channels;
    norm_sums sums = {own, own + channels, own + 2 * channels};
    memset(own, 0, (size_t)(SUMS * channels) * sizeof *own);
    work->version->differentiate(&job, &sums);
    add_range_gradient(work, &job, sample, sums.grad_n, x_scale * grad_scale, of);
    memcpy(work->bounds + 2 * sample, job.bounds, sizeof job.bounds);
    float doubt = 0.0f;
    for (int64_t group = 0; group < norm->groups; group++) {
        float s = of->scale[group], s_of_n = s * x_scale * grad_scale;
        for (int64_t c = group * per_group; c < (group + 1) * per_group; c++) {
            doubt += 0.0f * sums.grad[c] + 0.0f * of->gain[c];
            sums.grad_n[c] *= s_of_n;
            sums.grad[c] *= grad_scale;
            sums.grad_x_x[c] *= of->weight[c] * s / 6.0f * x_scale * x_scale * grad_scale;
        }
    }
    /* Comparisons do not see a NaN in the gradient or a parameter; sums do. */
    work->bounds[2 * sample] += doubt;
}

static void run_samples(int64_t first, int64_t last, norm_work *work,
                        void (*run)(const norm_work *work, int64_t sample, const scratch *of)) {
    scratch of;
    void *memory = take_scratch(&of, work);
    if (!memory) {
        atomic_store(&work->out_of_memory, 1);
        return;
    }
    for (int64_t sample = first; sample < last; sample++)
        run(work, sample, &of);
    free(memory);
}

static void bound_samples(int64_t first, int64_t last, void *context) { run_samples(first, last, context, bound_sample); }

static void normalise_samples(int64_t first, int64_t last, void *context) {
    run_samples(first, last, context, normalise_sample);
}

static void differentiate_samples(int64_t first, int64_t last, void *context) {
    run_samples(first, last, context, differentiate_sample);
}

static int run_all(norm_work *work, fe_task task, float *bounds) {
    const fe_range_evonorm *norm = work->norm;
    int64_t samples = norm->samples;
    work->bounds = malloc((size_t)samples * 2 * sizeof *work->bounds);
    if (!work->bounds)
        return -1;
    int error = fe_parallel_for(samples, GRAIN / (norm->pixels * norm->channels) + 1, task, work);
    if (bounds) {
        bounds[0] = bounds[1] = 0.0f;
        for (int64_t i = 0; i < samples; i++) {
            /* A NaN stays. */
            bounds[0] = work->bounds[2 * i] >= bounds[0] || bounds[0] != bounds[0] ? bounds[0] : work->bounds[2 * i];
            bounds[1] = work->bounds[2 * i + 1] > bounds[1] ? work->bounds[2 * i + 1] : bounds[1];
        }
    }
    free(work->bounds);
    return atomic_load(&work->out_of_memory) ? -1 : error;
}

/* 0, or NaN where a parameter is not finite: comparisons do not see the NaNs that it makes. */
static float doubt_of(const fe_range_evonorm *norm) {
    const float *const parameters[] = {norm->weight, norm->bias, norm->v};
    int strange = 0;
    for (int i = 0; i < 3; i++)
        for (int64_t c = 0; parameters[i] && c < norm->channels; c++)
            strange |= !isfinite(parameters[i][c]);
    return strange ? NAN : 0.0f;
}

int fe_range_evonorm_forward(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, const fe_norm_map *y,
                             void *extremes, float *bounds) {
    norm_work work = {
        .norm = norm,
        .version = kernels[fe_range_evonorm_isa(ceiling)],
        .x = x,
        .y = y,
        .extremes = extremes,
    };
    int error = run_all(&work, normalise_samples, bounds);
    if (bounds)
        bounds[0] += doubt_of(norm);
    return error;
}

int fe_range_evonorm_extremes(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, void *extremes,
                              float *bounds) {
    norm_work work = {.norm = norm, .version = kernels[fe_range_evonorm_isa(ceiling)], .x = x, .extremes = extremes};
    return run_all(&work, bound_samples, bounds);
}

int fe_range_evonorm_normalise(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, const fe_norm_map *y,
                               const void *extremes) {
    norm_work work = {
        .norm = norm,
        .version = kernels[fe_range_evonorm_isa(ceiling)],
        .x = x,
        .y = y,
        .extremes = (void *)extremes,
        .is_known = 1,
    };
    return run_all(&work, normalise_samples, NULL);
}

/* Sums over the samples, in their order. */
static void sum_samples(float *out, const float *sums, const fe_range_evonorm *norm) {
    if (!out)
        return;
    for (int64_t c = 0; c < norm->channels; c++) {
        double sum = 0.0;
        for (int64_t sample = 0; sample < norm->samples; sample++)
            sum += (double)sums[sample * SUMS * norm->channels + c];
        out[c] = (float)sum;
    }
}

int fe_range_evonorm_backward(fe_isa ceiling, const fe_range_evonorm *norm, const fe_norm_map *x, const void *extremes,
                              const fe_norm_map *grad, float *dx, float *dweight, float *dbias, float *dv, float *bounds) {
    norm_work work = {
        .norm = norm,
        .version = kernels[fe_range_evonorm_isa(ceiling)],
        .x = x,
        .grad = grad,
        .extremes = (void *)extremes,
        .dx = dx,
        .sums = malloc((size_t)(norm->samples * SUMS * norm->channels) * sizeof *work.sums),
    };
    if (!work.sums)
        return -1;
    int error = run_all(&work, differentiate_samples, bounds);
    sum_samples(dweight, work.sums, norm);
    sum_samples(dbias, work.sums + norm->channels, norm);
    sum_samples(dv, work.sums + 2 * norm->channels, norm);
    free(work.sums);
    return error;
}
