/* A gradient loses most of its elements, and a weight all but its signs. */
#include "common.h"

#include "parallel.h"
#include "seed.h"

enum {
    /* Elements of a chunk, about, and chunks that are worth a thread. */
    CHUNK = 16384,
    GRAIN = 2,
    /* Weights that are worth a thread. */
    WEIGHTS = 32768,
};

fe_chunks fe_chunks_of(int64_t pixels, int64_t channels) {
    fe_chunks of = {.pixels = larger(1, CHUNK / larger(1, channels))};
    of.chunks = ceiling_of(pixels, of.pixels);
    /* Kernels write whole vectors. */
    of.room = of.pixels * channels + MOST_LANES;
    of.bounds = ceiling_of(channels, FE_STRETCH) + 1;
    return of;
}

typedef struct {
    const sparse_version *version;
    const fe_nonzeros *to;
    const float *x;
    float *dense, threshold;
    uint32_t keys[2];
    fe_chunks chunks;
} prune_work;

static void prune_chunks(int64_t first, int64_t last, void *context) {
    const prune_work *work = context;
    const fe_nonzeros *to = work->to;
    for (int64_t i = first; i < last; i++) {
        int64_t pixel = i * work->chunks.pixels, at = pixel * to->channels;
        const prune_job job = {
            .x = work->x + at,
            .pixels = smaller(work->chunks.pixels, to->pixels - pixel),
            .channels = to->channels,
            .counter = (uint32_t)(pixel * ceiling_of(to->channels, RUN) * (RUN / 2)),
            .threshold = work->threshold,
            .keys = {work->keys[0], work->keys[1]},
            .places = to->places + i * work->chunks.room,
            .values = to->values + i * work->chunks.room,
            .bounds = to->bounds + pixel * work->chunks.bounds,
            .base = (int32_t)(i * work->chunks.room),
        };
        to->counts[i] = (int32_t)work->version->prune(&job);
    }
}

int fe_prune(fe_isa ceiling, const fe_nonzeros *to, const float *x, float threshold, uint64_t seed) {
    uint64_t mixed = fe_mixed(seed);
    prune_work work = {
        .version = fe_sparse_version(ceiling),
        .to = to,
        .x = x,
        .threshold = threshold,
        .keys = {(uint32_t)mixed, (uint32_t)(mixed >> 32)},
        .chunks = fe_chunks_of(to->pixels, to->channels),
    };
    return fe_parallel_for(work.chunks.chunks, GRAIN, prune_chunks, &work);
}

static void densify_chunks(int64_t first, int64_t last, void *context) {
    const prune_work *work = context;
    const fe_nonzeros *from = work->to;
    for (int64_t i = first; i < last; i++) {
        int64_t pixel = i * work->chunks.pixels, pixels = smaller(work->chunks.pixels, from->pixels - pixel);
        float *x = work->dense + pixel * from->channels;
        memset(x, 0, (size_t)(pixels * from->channels) * sizeof *x);
        for (int64_t at = i * work->chunks.room, end = at + from->counts[i]; at < end; at++) {
            uint32_t place = from->places[at];
            x[(int64_t)(place >> FE_CHANNEL_BITS) * from->channels + place % FE_MOST_CHANNELS] = from->values[at];
        }
    }
}

int fe_densify(float *x, const fe_nonzeros *from) {
    prune_work work = {.to = from, .dense = x, .chunks = fe_chunks_of(from->pixels, from->channels)};
    return fe_parallel_for(work.chunks.chunks, GRAIN, densify_chunks, &work);
}

typedef struct {
    const sparse_version *version;
    uint8_t *bits;
    float *scales;
    const float *weight;
    int64_t outputs, taps, inputs;
} signs_work;

static void pack_filters(int64_t first, int64_t last, void *context) {
    const signs_work *work = context;
    const int64_t filter = work->taps * work->inputs, bytes = work->taps * ceiling_of(work->inputs, 8);
    for (int64_t k = first; k < last; k++) {
        double sum = work->version->signs(work->bits + k * bytes, work->weight + k * filter, work->taps, work->inputs);
        work->scales[k] = (float)(sum / (double)filter);
    }
}

int fe_pack_signs(fe_isa ceiling, uint8_t *bits, float *scales, const float *weight, int64_t outputs, int64_t taps,
                  int64_t inputs) {
    signs_work work = {fe_sparse_version(ceiling), bits, scales, weight, outputs, taps, inputs};
    return fe_parallel_for(outputs, larger(1, WEIGHTS / (taps * inputs)), pack_filters, &work);
}
