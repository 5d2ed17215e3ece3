#include "mix.h"

#include "parallel.h"

/* Hints for calls whose data comes from memory: fetch the vectors ahead of their use, and write `out`, which then lies on
 * a cache line, around the cache. */
enum { MIX_PREFETCH = 1, MIX_STREAM = 2 };

/* Floats, a kilobyte: the best of 128 to 2048 from two to twelve vectors. The cores' own prefetchers lose their way at
 * every page's end. */
enum { MIX_AHEAD = 256 };

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

typedef void (*mix_version)(fe_float *out, const fe_float *const *x, const float *w, size_t count, size_t length,
                            unsigned how);

static const fe_version versions[FE_ISA_COUNT] = {
    [FE_SERIAL] = (fe_version)mix_serial,
#if defined(__x86_64__)
    [FE_AVX2] = (fe_version)mix_avx2,
    [FE_AVX512] = (fe_version)mix_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = (fe_version)mix_neon,
#endif
};

enum {
    LINE = 64,
    /* Floats a block, 16 KB: with more vectors than a group, the partial sums of a block stay in the L1 or L2 cache
     * while the vectors pass by. */
    BLOCK = 4096,
    /* Vectors read side by side. More of them outrun the cores' prefetchers, and since large arrays tend to begin at
     * the same offset in a page, also the ways of the L1 cache. */
    GROUP = 8,
    /* Torch's own grain, 32768 elements. */
    GRAIN = 32768 / BLOCK,
    /* A usual last-level cache. When a call touches more, writing around the cache saves reading `out` before it is
     * overwritten: a sixth of the traffic for four vectors. Below, both hints cost more than they bring. */
    CACHE_BYTES = 32 << 20,
};

typedef struct {
    mix_version run;
    fe_float *out;
    const fe_float *const *vectors;
    const float *weights;
    size_t count, length;
    /* Floats from the begin of a cache line to `out`. Blocks are cut at lines, so that threads never share one. */
    size_t shift;
    unsigned how;
} mix_job;

/* The partial sum of one group is the first row of the next, with weight 1: exact, so grouping changes no bit. It is
 * kept aside until the last group, since `out` may be a vector that is still to be read. */
static void mix_block(const mix_job *job, size_t begin, size_t length, unsigned how) {
    float partial[BLOCK];
    const fe_float *rows[GROUP];
    float weights[GROUP];
    size_t held = 0;
    for (size_t k = 0; k < job->count; k++) {
        rows[held] = job->vectors[k] + begin;
        weights[held++] = job->weights[k];
        if (k + 1 == job->count) {
            job->run(job->out + begin, rows, weights, held, length, how);
        } else if (held == GROUP) {
            job->run(partial, rows, weights, held, length, how & ~MIX_STREAM);
            rows[0] = partial;
            weights[0] = 1.0f;
            held = 1;
        }
    }
}

static void mix_blocks(int64_t first, int64_t last, void *context) {
    const mix_job *job = context;
    for (size_t block = (size_t)first; block < (size_t)last; block++) {
        size_t begin = block ? block * BLOCK - job->shift : 0;
        size_t end = (block + 1) * BLOCK - job->shift;
        mix_block(job, begin, (end < job->length ? end : job->length) - begin,
                  (uintptr_t)(job->out + begin) % LINE ? job->how & ~MIX_STREAM : job->how);
    }
}

fe_isa fe_mix_isa(fe_isa ceiling) { return fe_isa_choose(ceiling, versions); }

int fe_mix(fe_isa ceiling, fe_float *out, const fe_float *const *vectors, const float *weights, size_t count,
           size_t length) {
    mix_job job = {
        .run = (mix_version)versions[fe_mix_isa(ceiling)],
        .out = out,
        .vectors = vectors,
        .weights = weights,
        .count = count,
        .length = length,
        .shift = (uintptr_t)out % LINE / sizeof *out,
        .how = (double)length * sizeof *out * ((double)count + 1) > CACHE_BYTES ? MIX_PREFETCH | MIX_STREAM : 0,
    };
    /* A line that was just read is in the cache: nothing to save. */
    for (size_t k = 0; k < count; k++)
        if (vectors[k] == out)
            job.how &= ~MIX_STREAM;
    return fe_parallel_for((int64_t)((length + job.shift + BLOCK - 1) / BLOCK), GRAIN, mix_blocks, &job);
}
