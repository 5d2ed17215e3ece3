#include "byte_sums.h"

#include "common.h"
#include "parallel.h"

#include <stdlib.h>

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

static const sums_version *const kernels[FE_ISA_COUNT] = {
    [FE_SERIAL] = &version_serial,
#if defined(__x86_64__)
    [FE_AVX2] = &version_avx2,
    [FE_AVX512] = &version_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = &version_neon,
#endif
};

enum {
    BLOCK = 4096,
    /* Torch's own grain, 32768 elements. */
    GRAIN = 32768 / BLOCK,
};

typedef struct {
    const sums_version *version;
    const fe_byte_map *x, *y;
    uint8_t *out;
    float inverse, *floats, *ends;
    const float *grad;
    int zero;
    int64_t count;
} sums_job;

static int64_t blocks_of(int64_t count) { return (count + BLOCK - 1) / BLOCK; }

static int64_t piece(const sums_job *job, int64_t first, int64_t last, int64_t *begin) {
    *begin = first * BLOCK;
    return least_of(last * BLOCK, job->count) - *begin;
}

static fe_byte_map from(const fe_byte_map *map, int64_t begin) {
    return (fe_byte_map){map->bytes + begin, map->scale, map->zero};
}

static void ends_of_blocks(int64_t first, int64_t last, void *context) {
    const sums_job *job = context;
    for (int64_t i = first; i < last; i++) {
        int64_t begin, count = piece(job, i, i + 1, &begin);
        fe_byte_map x = from(job->x, begin), y = from(job->y, begin);
        job->ends[2 * i] = job->ends[2 * i + 1] = 0.0f;
        job->version->ends(job->ends + 2 * i, &x, &y, count);
    }
}

static void sum_blocks(int64_t first, int64_t last, void *context) {
    const sums_job *job = context;
    int64_t begin, count = piece(job, first, last, &begin);
    fe_byte_map x = from(job->x, begin), y = from(job->y, begin);
    job->version->sum(job->out + begin, job->inverse, job->zero, &x, &y, count);
}

static void mask_blocks(int64_t first, int64_t last, void *context) {
    const sums_job *job = context;
    int64_t begin, count = piece(job, first, last, &begin);
    job->version->mask(job->floats + begin, job->grad + begin, job->x->bytes + begin, job->zero, count);
}

fe_isa fe_byte_sums_isa(fe_isa ceiling) {
    fe_version versions[FE_ISA_COUNT];
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        versions[isa] = kernels[isa] ? (fe_version)kernels[isa]->sum : NULL;
    return fe_isa_choose(ceiling, versions);
}

int fe_byte_sum_ends(fe_isa ceiling, float ends[2], const fe_byte_map *x, const fe_byte_map *y, int64_t count) {
    sums_job job = {.version = kernels[fe_byte_sums_isa(ceiling)], .x = x, .y = y, .count = count};
    int64_t blocks = blocks_of(count);
    job.ends = malloc((size_t)(2 * blocks + 1) * sizeof *job.ends);
    if (!job.ends)
        return -1;
    int error = fe_parallel_for(blocks, GRAIN, ends_of_blocks, &job);
    ends[0] = ends[1] = 0.0f;
    for (int64_t i = 0; !error && i < blocks; i++) {
        ends[0] = job.ends[2 * i] < ends[0] ? job.ends[2 * i] : ends[0];
        ends[1] = job.ends[2 * i + 1] > ends[1] ? job.ends[2 * i + 1] : ends[1];
    }
    free(job.ends);
    return error;
}

int fe_byte_sum(fe_isa ceiling, uint8_t *out, float inverse, int zero, const fe_byte_map *x, const fe_byte_map *y,
                int64_t count) {
    sums_job job = {.version = kernels[fe_byte_sums_isa(ceiling)],
                    .x = x,
                    .y = y,
                    .out = out,
                    .inverse = inverse,
                    .zero = zero,
                    .count = count};
    return fe_parallel_for(blocks_of(count), GRAIN, sum_blocks, &job);
}

int fe_mask_by_bytes(fe_isa ceiling, float *out, const float *grad, const uint8_t *bytes, int zero, int64_t count) {
    const fe_byte_map x = {bytes, 1.0f, zero};
    sums_job job = {.version = kernels[fe_byte_sums_isa(ceiling)],
                    .x = &x,
                    .floats = out,
                    .grad = grad,
                    .zero = zero,
                    .count = count};
    return fe_parallel_for(blocks_of(count), GRAIN, mask_blocks, &job);
}
