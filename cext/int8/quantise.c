/* Floats become bytes, and bytes floats. */
#include "common.h"

#include "parallel.h"

#include <stdlib.h>

enum {
    /* Elements of a block: whole runs of random numbers, and whole cache lines of bytes. */
    BLOCK = 4096,
    /* Torch's own grain, 32768 elements. */
    GRAIN = 32768 / BLOCK,
};

typedef struct {
    const int8_version *version;
    const float *x;
    const uint8_t *bytes;
    uint8_t *out, *high, *low;
    float *floats, *ends;
    int64_t count;
    const fe_rounding *rounding;
    float factor;
    int zero;
} bytes_job;

static int64_t blocks_of(int64_t count) { return ceiling_of(count, BLOCK); }

static int64_t piece(const bytes_job *job, int64_t first, int64_t last, int64_t *begin) {
    *begin = first * BLOCK;
    return smaller(last * BLOCK, job->count) - *begin;
}

static void range_blocks(int64_t first, int64_t last, void *context) {
    const bytes_job *job = context;
    int64_t begin, count = piece(job, first, last, &begin);
    /* Those of the first block are those of all, and the others' are 0. */
    memset(job->ends + 2 * first, 0, (size_t)(2 * (last - first)) * sizeof *job->ends);
    job->version->range(job->ends + 2 * first, job->x + begin, count);
}

int fe_range(fe_isa ceiling, float *low, float *high, const float *x, int64_t count) {
    bytes_job job = {.version = fe_int8_version(ceiling), .x = x, .count = count};
    int64_t blocks = blocks_of(count);
    job.ends = malloc((size_t)(2 * blocks + 1) * sizeof *job.ends);
    if (!job.ends)
        return -1;
    int error = fe_parallel_for(blocks, GRAIN, range_blocks, &job);
    *low = *high = 0.0f;
    for (int64_t i = 0; !error && i < blocks; i++) {
        if (job.ends[2 * i] != job.ends[2 * i])
            error = FE_NOT_FINITE;
        *low = job.ends[2 * i] < *low ? job.ends[2 * i] : *low;
        *high = job.ends[2 * i + 1] > *high ? job.ends[2 * i + 1] : *high;
    }
    free(job.ends);
    return error;
}

static void quantise_blocks(int64_t first, int64_t last, void *context) {
    const bytes_job *job = context;
    int64_t begin, count = piece(job, first, last, &begin);
    job->version->quantise(job->out + begin, job->x + begin, count, begin, job->rounding);
}

int fe_quantise(fe_isa ceiling, uint8_t *out, const float *x, int64_t count, const fe_rounding *rounding) {
    bytes_job job = {.version = fe_int8_version(ceiling), .x = x, .out = out, .count = count, .rounding = rounding};
    return fe_parallel_for(blocks_of(count), GRAIN, quantise_blocks, &job);
}

static void error_blocks(int64_t first, int64_t last, void *context) {
    const bytes_job *job = context;
    /* Block by block, so that the floats are in the first cache when they are read again. */
    for (int64_t i = first; i < last; i++) {
        int64_t begin, count = piece(job, i, i + 1, &begin);
        job->version->quantise(job->out + begin, job->x + begin, count, begin, job->rounding);
        job->version->halves(job->high + begin, job->low + begin, job->x + begin, count, job->factor);
    }
}

int fe_quantise_error(fe_isa ceiling, uint8_t *out, uint8_t *high, uint8_t *low, const float *x, int64_t count,
                      const fe_rounding *rounding, float half_inverse) {
    bytes_job job = {.version = fe_int8_version(ceiling), .x = x, .out = out, .high = high, .low = low, .count = count,
                     .rounding = rounding, .factor = half_inverse};
    return fe_parallel_for(blocks_of(count), GRAIN, error_blocks, &job);
}

static void dequantise_blocks(int64_t first, int64_t last, void *context) {
    const bytes_job *job = context;
    int64_t begin, count = piece(job, first, last, &begin);
    job->version->dequantise(job->floats + begin, job->bytes + begin, count, job->factor, job->zero);
}

int fe_dequantise(fe_isa ceiling, float *out, const uint8_t *x, int64_t count, float scale, int zero) {
    bytes_job job = {
        .version = fe_int8_version(ceiling), .bytes = x, .floats = out, .count = count, .factor = scale, .zero = zero};
    return fe_parallel_for(blocks_of(count), GRAIN, dequantise_blocks, &job);
}
