/* Weights over their taps. Plain C: these touch a weight once, and the compiler's own vectors keep up with memory. */
#include "gradient_filter.h"

#include "parallel.h"

enum { GRAIN = 32768 };

typedef struct {
    float *out;
    const float *in, *symbols;
    int64_t pairs, inner, taps, components;
    float scale;
} tap_job;

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

/* Taps between the output and the input channels: `first` and `last` count output channels. */
static void collapse_outputs(int64_t first, int64_t last, void *context) {
    const tap_job *job = context;
    int64_t inner = job->inner;
    for (int64_t o = first; o < last; o++)
        for (int64_t u = 0; u < job->components; u++) {
            float *restrict out = job->out + u * job->pairs + o * inner;
            for (int64_t t = 0; t < job->taps; t++) {
                const float *restrict in = job->in + (o * job->taps + t) * inner;
                float symbol = job->symbols[u * job->taps + t];
                if (t == 0)
                    for (int64_t i = 0; i < inner; i++)
                        out[i] = symbol * in[i];
                else
                    for (int64_t i = 0; i < inner; i++)
                        out[i] += symbol * in[i];
            }
        }
}

static void spread_outputs(int64_t first, int64_t last, void *context) {
    const tap_job *job = context;
    int64_t inner = job->inner;
    for (int64_t o = first; o < last; o++)
        for (int64_t t = 0; t < job->taps; t++) {
            float *restrict out = job->out + (o * job->taps + t) * inner;
            for (int64_t u = 0; u < job->components; u++) {
                const float *restrict in = job->in + u * job->pairs + o * inner;
                float symbol = job->scale * job->symbols[u * job->taps + t];
                if (u == 0)
                    for (int64_t i = 0; i < inner; i++)
                        out[i] = symbol * in[i];
                else
                    for (int64_t i = 0; i < inner; i++)
                        out[i] += symbol * in[i];
            }
        }
}

static int run(const tap_job *job, fe_task near, fe_task outputs) {
    int64_t inner = job->inner, work = inner * job->taps;
    return fe_parallel_for(job->pairs / inner, GRAIN / work + 1, inner == 1 ? near : outputs, (void *)job);
}

int fe_collapse_taps(float *out, const float *weight, const float *symbols, int64_t pairs, int64_t inner, int64_t taps,
                     int64_t components) {
    tap_job job = {out, weight, symbols, pairs, inner, taps, components, 1.0f};
    return run(&job, collapse_pairs, collapse_outputs);
}

int fe_spread_taps(float *weight, const float *gram, const float *symbols, int64_t pairs, int64_t inner, int64_t taps,
                   int64_t components, float scale) {
    tap_job job = {weight, gram, symbols, pairs, inner, taps, components, scale};
    return run(&job, spread_pairs, spread_outputs);
}
