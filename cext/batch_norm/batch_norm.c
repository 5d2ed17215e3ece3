#include "batch_norm.h"

#include "parallel.h"

#include <math.h>
#include <stdlib.h>

#include "common.h"

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

static const fe_version versions[FE_ISA_COUNT] = {
    [FE_SERIAL] = (fe_version)normalise_serial,
#if defined(__x86_64__)
    [FE_AVX2] = (fe_version)normalise_avx2,
    [FE_AVX512] = (fe_version)normalise_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = (fe_version)normalise_neon,
#endif
};

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
    /* Torch's own grain, in floats: chunks have about as many. Their number is a multiple of the usual numbers of threads. */
    GRAIN = 32768,
    THREADS = 8,
    /* Pixels that the centre is guessed from. */
    GUESSES = 16,
    /* So many variances may a mean lie from the centre: sums of squares lose as many bits as this has. */
    FAR = 16,
    /* A map that would fill a third of the usual last-level cache is written around it. */
    STREAMED_FLOATS = (32 << 20) / 3 / sizeof(float),
};

fe_isa fe_batch_norm_isa(fe_isa ceiling) { return fe_isa_choose(ceiling, versions); }

int fe_batch_norm_is_valid(const fe_batch_norm *norm) {
    const int64_t most = INT64_MAX / 64;
    return norm->pixels > 0 && norm->channels > 0 && norm->pixels <= most / norm->channels;
}

typedef struct {
    const norm_version *version;
    norm_job job;
    int64_t pixels, chunks, room;
    int of_gradient;
    /* Of each chunk: two rows of sums. */
    float *sums;
} norm_work;

/* Numbers of each channel, in rows of `room`. */
typedef struct {
    float *centre, *gain, *slope, *shift;
    double *sum, *product;
} scratch;

static int64_t chunks_of(const fe_batch_norm *norm) {
    int64_t each = (int64_t)GRAIN * THREADS, floats = norm->pixels * norm->channels;
    return least_of(norm->pixels, (floats + each - 1) / each * THREADS);
}

static span chunk_of(const norm_work *work, int64_t chunk) {
    int64_t size = work->pixels / work->chunks, longer = work->pixels % work->chunks;
    int64_t begin = chunk * size + least_of(chunk, longer);
    return (span){begin, begin + size + (chunk < longer)};
}

static void add_chunks(int64_t first, int64_t last, void *context) {
    const norm_work *work = context;
    for (int64_t chunk = first; chunk < last; chunk++) {
        float *sum = work->sums + chunk * 2 * work->room, *product = sum + work->room;
        memset(sum, 0, (size_t)(2 * work->room) * sizeof *sum);
        (work->of_gradient ? work->version->add_gradients : work->version->add_moments)(&work->job, chunk_of(work, chunk), sum,
                                                                                        product);
    }
}

/* From the last on: what was summed last is still in a cache. */
static void write_chunks(int64_t first, int64_t last, void *context) {
    const norm_work *work = context;
    for (int64_t chunk = last - 1; chunk >= first; chunk--)
        (work->of_gradient ? work->version->differentiate : work->version->normalise)(&work->job, chunk_of(work, chunk));
}

static void *start(norm_work *work, scratch *of, fe_isa ceiling, const fe_batch_norm *norm) {
    int64_t room = (norm->channels + WIDEST - 1) / WIDEST * WIDEST;
    work->version = kernels[fe_batch_norm_isa(ceiling)];
    work->pixels = norm->pixels;
    work->chunks = chunks_of(norm);
    work->room = room;
    work->job.channels = norm->channels;
    work->job.cap = norm->cap;
    double *memory = calloc(1, (size_t)room * (2 * sizeof(double) + (4 + 2 * (size_t)work->chunks) * sizeof(float)));
    if (!memory)
        return NULL;
    float *floats = (float *)(memory + 2 * room);
    *of = (scratch){floats, floats + room, floats + 2 * room, floats + 3 * room, memory, memory + room};
    work->sums = floats + 4 * room;
    work->job.centre = of->centre;
    work->job.gain = of->gain;
    work->job.slope = of->slope;
    work->job.shift = of->shift;
    return memory;
}

static int add_all(norm_work *work, const scratch *of) {
    int error = fe_parallel_for(work->chunks, 1, add_chunks, work);
    for (int64_t c = 0; c < work->job.channels; c++)
        of->sum[c] = of->product[c] = 0.0;
    for (int64_t chunk = 0; chunk < work->chunks; chunk++) {
        const float *sum = work->sums + chunk * 2 * work->room, *product = sum + work->room;
        for (int64_t c = 0; c < work->job.channels; c++) {
            of->sum[c] += (double)sum[c];
            of->product[c] += (double)product[c];
        }
    }
    return error;
}

static int write_all(norm_work *work, float *out) {
    int64_t line = LINE / (int64_t)sizeof(float);
    work->job.out = out;
    work->job.stream = work->pixels * work->job.channels > (int64_t)STREAMED_FLOATS && work->job.channels % line == 0 &&
                       (uintptr_t)out % LINE == 0;
    return fe_parallel_for(work->chunks, 1, write_chunks, work);
}

/* The mean of some pixels in irregular distances: those at a fixed one may all lie on a border. */
static void guess_centre(const norm_work *work, const scratch *of) {
    const int64_t channels = work->job.channels;
    const double golden = 0.6180339887498949;
    for (int guess = 0; guess < GUESSES; guess++) {
        double place = (guess + 0.5) * golden;
        const float *pixel = work->job.x + (int64_t)((place - (int64_t)place) * (double)work->pixels) * channels;
        for (int64_t c = 0; c < channels; c++)
            of->sum[c] += (double)pixel[c];
    }
    for (int64_t c = 0; c < channels; c++)
        of->centre[c] = (float)(of->sum[c] / GUESSES);
}

/* Sum of the squared distances from the mean. */
static double spread_of(const norm_work *work, const scratch *of, int64_t c) {
    double spread = of->product[c] - of->sum[c] * of->sum[c] / (double)work->pixels;
    return spread < 0.0 ? 0.0 : spread;
}

static int is_far(const norm_work *work, const scratch *of) {
    for (int64_t c = 0; c < work->job.channels; c++)
        if (of->sum[c] * of->sum[c] / (double)work->pixels > FAR * spread_of(work, of, c))
            return 1;
    return 0;
}

static void move_centre(const norm_work *work, const scratch *of) {
    for (int64_t c = 0; c < work->job.channels; c++)
        of->centre[c] = (float)((double)of->centre[c] + of->sum[c] / (double)work->pixels);
}

int fe_batch_norm_forward(fe_isa ceiling, const fe_batch_norm *norm, const float *x, float *y, uint8_t *bits,
                          float *statistics) {
    norm_work work = {.job = {.x = x, .bits = bits}};
    scratch of;
    void *memory = start(&work, &of, ceiling, norm);
    if (!memory)
        return -1;
    guess_centre(&work, &of);
    int error = add_all(&work, &of);
    if (!error && is_far(&work, &of)) {
        move_centre(&work, &of);
        error = add_all(&work, &of);
    }
    const double pixels = (double)norm->pixels;
    for (int64_t c = 0; c < norm->channels; c++) {
        double spread = spread_of(&work, &of, c), inverse = 1.0 / sqrt(spread / pixels + norm->eps);
        of.gain[c] = (float)((norm->weight ? (double)norm->weight[c] : 1.0) * inverse);
        of.shift[c] = norm->bias ? norm->bias[c] : 0.0f;
        statistics[norm->channels + c] = (float)inverse;
        statistics[2 * norm->channels + c] = (float)(spread / (pixels - 1.0));
    }
    move_centre(&work, &of);
    memcpy(statistics, of.centre, (size_t)norm->channels * sizeof *statistics);
    if (!error)
        error = write_all(&work, y);
    free(memory);
    return error;
}

int fe_batch_norm_backward(fe_isa ceiling, const fe_batch_norm *norm, const float *x, const float *statistics,
                           const uint8_t *bits, const float *grad, float *grad_x, float *grad_weight, float *grad_bias) {
    norm_work work = {.job = {.x = x, .grad = grad, .bits = (uint8_t *)bits}, .of_gradient = 1};
    scratch of;
    void *memory = start(&work, &of, ceiling, norm);
    if (!memory)
        return -1;
    memcpy(of.centre, statistics, (size_t)norm->channels * sizeof *statistics);
    int error = add_all(&work, &of);
    const double pixels = (double)norm->pixels;
    for (int64_t c = 0; c < norm->channels; c++) {
        double inverse = (double)statistics[norm->channels + c];
        double gain = (norm->weight ? (double)norm->weight[c] : 1.0) * inverse;
        grad_bias[c] = (float)of.sum[c];
        grad_weight[c] = (float)(of.product[c] * inverse);
        of.gain[c] = (float)gain;
        of.slope[c] = (float)(-gain * inverse * inverse * of.product[c] / pixels);
        of.shift[c] = (float)(-gain * of.sum[c] / pixels);
    }
    if (!error && grad_x)
        error = write_all(&work, grad_x);
    free(memory);
    return error;
}
