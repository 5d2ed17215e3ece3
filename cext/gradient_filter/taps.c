/* Weights over their taps. Plain C where the taps lie innermost, which is not the layout of fast convolutions. */
#include "common.h"
#include "parallel.h"

/* `taps` is a compile-time constant for the usual kernels: the loop over them unrolls. */
static inline __attribute__((always_inline)) void collapse_near(const tap_job *job, int64_t first, int64_t last,
                                                                int64_t taps) {
    for (int64_t u = 0; u < job->components; u++) {
        const float *symbols = job->symbols + u * taps;
        float *out = job->out + u * job->pairs;
        for (int64_t i = first; i < last; i++) {
            float sum = 0.0f;
            for (int64_t t = 0; t < taps; t++)
                sum += symbols[t] * job->in[i * taps + t];
            out[i] = sum;
        }
    }
}

static inline __attribute__((always_inline)) void spread_near(const tap_job *job, int64_t first, int64_t last,
                                                              int64_t taps) {
    for (int64_t i = first; i < last; i++) {
        float *out = job->out + i * taps;
        float value = job->scale * job->in[i];
        for (int64_t t = 0; t < taps; t++)
            out[t] = job->symbols[t] * value;
        for (int64_t u = 1; u < job->components; u++) {
            value = job->scale * job->in[u * job->pairs + i];
            for (int64_t t = 0; t < taps; t++)
                out[t] += job->symbols[u * taps + t] * value;
        }
    }
}

static void collapse_pairs(int64_t first, int64_t last, void *context) {
    const tap_job *job = context;
    if (job->taps == 9)
        collapse_near(job, first, last, 9);
    else
        collapse_near(job, first, last, job->taps);
}

static void spread_pairs(int64_t first, int64_t last, void *context) {
    const tap_job *job = context;
    if (job->taps == 9)
        spread_near(job, first, last, 9);
    else
        spread_near(job, first, last, job->taps);
}

typedef struct {
    tap_job job;
    void (*one)(const tap_job *job, int64_t output);
} output_work;

static void by_output(int64_t first, int64_t last, void *context) {
    const output_work *work = context;
    for (int64_t o = first; o < last; o++)
        work->one(&work->job, o);
}

static int run(const tap_job *job, fe_task pairs, void (*one)(const tap_job *job, int64_t output)) {
    output_work work = {*job, one};
    int64_t inner = job->inner, grain = GRAIN / (inner * job->taps) + 1;
    if (inner == 1)
        return fe_parallel_for(job->pairs, grain, pairs, (void *)job);
    return fe_parallel_for(job->pairs / inner, grain, by_output, &work);
}

int fe_collapse_taps(fe_isa ceiling, float *out, const float *weight, const float *symbols, int64_t pairs, int64_t inner,
                     int64_t taps, int64_t components) {
    tap_job job = {out, weight, symbols, pairs, inner, taps, components, 1.0f};
    return run(&job, collapse_pairs, fe_filter_version(ceiling)->collapse);
}

int fe_spread_taps(fe_isa ceiling, float *weight, const float *gram, const float *symbols, int64_t pairs, int64_t inner,
                   int64_t taps, int64_t components, float scale) {
    tap_job job = {weight, gram, symbols, pairs, inner, taps, components, scale};
    return run(&job, spread_pairs, fe_filter_version(ceiling)->spread);
}
