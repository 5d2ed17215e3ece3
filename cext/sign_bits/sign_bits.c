#include "sign_bits.h"

#include "parallel.h"

#include <string.h>

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

typedef void (*relu_version)(fe_float *out, uint8_t *bits, const fe_float *x, size_t length, float cap);
typedef void (*mask_version)(fe_float *out, const fe_float *x, const uint8_t *bits, size_t length);

/* Memory sets the pace: on a CPU with AVX-512 a version for it was not faster. */
static const fe_version relu_versions[FE_ISA_COUNT] = {
    [FE_SERIAL] = (fe_version)relu_bits_serial,
#if defined(__x86_64__)
    [FE_AVX2] = (fe_version)relu_bits_avx2,
#elif defined(__aarch64__)
    [FE_NEON] = (fe_version)relu_bits_neon,
#endif
};

static const fe_version mask_versions[FE_ISA_COUNT] = {
    [FE_SERIAL] = (fe_version)mask_by_bits_serial,
#if defined(__x86_64__)
    [FE_AVX2] = (fe_version)mask_by_bits_avx2,
#elif defined(__aarch64__)
    [FE_NEON] = (fe_version)mask_by_bits_neon,
#endif
};

enum {
    /* Floats a block: its bits fill a cache line, so that threads share none of `bits` but the first and last. */
    BLOCK = 512,
    /* Torch's own grain, 32768 elements. */
    GRAIN = 32768 / BLOCK,
};

typedef struct {
    fe_version run;
    fe_float *out;
    const fe_float *x;
    uint8_t *bits;
    const uint8_t *mask;
    size_t length;
    float cap;
} bits_job;

static size_t piece(const bits_job *job, int64_t first, int64_t last, size_t *begin) {
    size_t end = (size_t)last * BLOCK;
    *begin = (size_t)first * BLOCK;
    return (end < job->length ? end : job->length) - *begin;
}

static void relu_blocks(int64_t first, int64_t last, void *context) {
    const bits_job *job = context;
    size_t begin, length = piece(job, first, last, &begin);
    ((relu_version)job->run)(job->out + begin, job->bits + begin / 8, job->x + begin, length, job->cap);
}

static void mask_blocks(int64_t first, int64_t last, void *context) {
    const bits_job *job = context;
    size_t begin, length = piece(job, first, last, &begin);
    ((mask_version)job->run)(job->out + begin, job->x + begin, job->mask + begin / 8, length);
}

static int64_t blocks(size_t length) { return (int64_t)((length + BLOCK - 1) / BLOCK); }

fe_isa fe_sign_bits_isa(fe_isa ceiling) { return fe_isa_choose(ceiling, relu_versions); }

int fe_relu_bits(fe_isa ceiling, fe_float *out, uint8_t *bits, const fe_float *x, size_t length, float cap) {
    fe_version run = relu_versions[fe_sign_bits_isa(ceiling)];
    bits_job job = {.run = run, .out = out, .x = x, .bits = bits, .length = length, .cap = cap};
    return fe_parallel_for(blocks(length), GRAIN, relu_blocks, &job);
}

int fe_mask_by_bits(fe_isa ceiling, fe_float *out, const fe_float *x, const uint8_t *bits, size_t length) {
    fe_version run = mask_versions[fe_sign_bits_isa(ceiling)];
    bits_job job = {.run = run, .out = out, .x = x, .mask = bits, .length = length};
    return fe_parallel_for(blocks(length), GRAIN, mask_blocks, &job);
}
