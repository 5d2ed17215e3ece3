#include "spectrum.h"

#include "common.h"
#include "parallel.h"

#include <string.h>

#include "lanes/serial.h"
#include "lanes/products.h"
#include "tiles.h"
#include "lanes/end.h"
#if defined(__x86_64__)
#include "lanes/avx2.h"
#include "lanes/products.h"
#include "tiles.h"
#include "lanes/end.h"
#include "lanes/avx512.h"
#include "lanes/products.h"
#include "tiles.h"
#include "lanes/end.h"
#elif defined(__aarch64__)
#include "lanes/neon.h"
#include "lanes/products.h"
#include "tiles.h"
#include "lanes/end.h"
#endif

static const tile_version *const kernels[FE_ISA_COUNT] = {
    [FE_SERIAL] = &version_serial,
#if defined(__x86_64__)
    [FE_AVX2] = &version_avx2,
    [FE_AVX512] = &version_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = &version_neon,
#endif
};

enum {
    /* Floats of a map that are worth a thread. */
    GRAIN = 8192,
    /* Channels of an image that are put together at a time: whole cache lines. */
    CHANNELS = 64,
};

fe_isa fe_spectrum_isa(fe_isa ceiling) {
    fe_version versions[FE_ISA_COUNT];
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        versions[isa] = kernels[isa] ? (fe_version)kernels[isa]->analyse_row : NULL;
    return fe_isa_choose(ceiling, versions);
}

const tile_version *fe_tile_version(fe_isa ceiling) { return kernels[fe_spectrum_isa(ceiling)]; }

/* Whether so many blocks of channels can be addressed; an empty axis is taken for one of length 1, since kernels multiply the
 * other lengths all the same. */
static int product_fits(const int64_t *factors, int count) {
    int64_t product = sizeof(float) * CHANNELS;
    for (int i = 0; i < count; i++)
        if (factors[i] < 0 || __builtin_mul_overflow(product, factors[i] ? factors[i] : 1, &product))
            return 0;
    return 1;
}

/* Windows may lie outside the map, where nothing is read, but their addresses are formed. */
static int reach_fits(const fe_tiling *tiling, int axis) {
    int64_t end, offset = tiling->offset[axis];
    if (offset > INT64_MAX / 4 || offset < -INT64_MAX / 4 ||
        __builtin_mul_overflow(tiling->tiles[axis], tiling->step[axis], &end) || end > INT64_MAX / 4)
        return 0;
    const int64_t farthest[] = {end + (offset < 0 ? -offset : offset) + FE_WIDEST_WINDOW, tiling->channels,
                                axis ? 1 : tiling->width};
    return product_fits(farthest, 3);
}

static int axis_is_valid(const fe_tiling *tiling, int axis) {
    int64_t highest = tiling->highest[axis];
    if (tiling->tiles[axis] < 1 || tiling->step[axis] < 1 || tiling->window[axis] < 1 ||
        tiling->window[axis] > FE_WIDEST_WINDOW || highest < 0 || highest > FE_HIGHEST || !reach_fits(tiling, axis))
        return 0;
    for (int64_t k = 0; k < tiling->frequencies; k++) {
        int64_t f = tiling->waves_of[2 * k + axis];
        if ((f < 0 ? -f : f) > highest || (axis == 0 && f < 0))
            return 0;
    }
    return 1;
}

int fe_tiling_is_valid(const fe_tiling *tiling) {
    const int64_t map[] = {tiling->images, tiling->channels, tiling->height, tiling->width};
    const int64_t spectra[] = {1 + 3 * tiling->frequencies, tiling->images, tiling->channels, tiling->tiles[0],
                               tiling->tiles[1]};
    return tiling->frequencies >= 0 && tiling->frequencies <= MOST_FREQUENCIES && axis_is_valid(tiling, 0) &&
           axis_is_valid(tiling, 1) && product_fits(map, 4) && product_fits(spectra, 5);
}

typedef struct {
    tile_job job;
    const tile_version *version;
    wave_slots slots[MOST_FREQUENCIES];
} tile_work;

void fe_find_slots(wave_slots *slots, const fe_tiling *tiling) {
    short sine_rows = (short)(tiling->highest[0] * DOFS), sine_columns = (short)tiling->highest[1];
    for (int64_t k = 0; k < tiling->frequencies; k++) {
        short f = tiling->waves_of[2 * k], g = tiling->waves_of[2 * k + 1], other = g < 0 ? -g : g;
        short both = (short)(f * DOFS + other);
        slots[k] = (wave_slots){
            .cosine_cosine = both,
            .sine_cosine = f ? (short)(both + sine_rows) : NO_SLOT,
            .cosine_sine = g ? (short)(both + sine_columns) : NO_SLOT,
            .sine_sine = f && g ? (short)(both + sine_rows + sine_columns) : NO_SLOT,
            .sign = g < 0 ? -1.0f : 1.0f,
        };
    }
}

static row_layout all_rows(const fe_tiling *tiling) {
    int64_t points = tiling->images * tiling->tiles[0] * tiling->tiles[1];
    return (row_layout){.width = tiling->channels, .stride = points * tiling->channels};
}

static void analyse_rows(int64_t first, int64_t last, void *context) {
    const tile_work *work = context;
    int64_t rows = work->job.tiling->tiles[0];
    for (int64_t i = first; i < last; i++)
        work->version->analyse_row(&work->job, i / rows, i % rows, 0, work->job.tiling->channels);
}

int fe_analyse(fe_isa ceiling, float *out, const float *map, const fe_tiling *tiling, int sums) {
    tile_work work = {
        .job = {.tiling = tiling,
                .map = map,
                .spectra = out,
                .rows = all_rows(tiling),
                .sums = sums,
                .constant_scale = 1.0f,
                .scale = 1.0f},
        .version = fe_tile_version(ceiling),
    };
    int64_t floats = tiling->window[0] * tiling->width * tiling->channels;
    work.job.slots = work.slots;
    fe_find_slots(work.slots, tiling);
    return fe_parallel_for(tiling->images * tiling->tiles[0], GRAIN / (floats + 1) + 1, analyse_rows, &work);
}

static int64_t blocks_of(const fe_tiling *tiling) { return (tiling->channels + CHANNELS - 1) / CHANNELS; }

int fe_covers_map(const fe_tiling *tiling) {
    for (int axis = 0; axis < 2; axis++)
        if (tiling->step[axis] > tiling->window[axis] || tiling->offset[axis] < 0 ||
            first_cell(tiling, axis, tiling->tiles[axis] - 1) + tiling->window[axis] < (axis ? tiling->width : tiling->height))
            return 0;
    return 1;
}

void fe_clear_channels(float *map, const fe_tiling *tiling, int64_t image, int64_t first, int64_t end) {
    int64_t cells = tiling->height * tiling->width, channels = tiling->channels;
    for (int64_t cell = image * cells; cell < (image + 1) * cells; cell++)
        memset(map + cell * channels + first, 0, (size_t)(end - first) * sizeof *map);
}

static void synthesise_blocks(int64_t first, int64_t last, void *context) {
    const tile_work *work = context;
    const fe_tiling *tiling = work->job.tiling;
    int64_t channels = tiling->channels, blocks = blocks_of(tiling);
    for (int64_t i = first; i < last; i++) {
        int64_t image = i / blocks, begin = i % blocks * CHANNELS;
        int64_t end = begin + CHANNELS < channels ? begin + CHANNELS : channels;
        tile_job job = work->job;
        job.products += begin;
        if (job.adds)
            fe_clear_channels(job.out, tiling, image, begin, end);
        for (int64_t p = 0; p < tiling->tiles[0]; p++)
            work->version->synthesise_row(&job, image, p, begin, end);
    }
}

int fe_synthesise(fe_isa ceiling, float *map, const float *products, const fe_tiling *tiling) {
    tile_work work = {
        .job = {.tiling = tiling,
                .products = products,
                .out = map,
                .rows = all_rows(tiling),
                .adds = !fe_covers_map(tiling)},
        .version = fe_tile_version(ceiling),
    };
    int64_t floats = tiling->height * tiling->width * CHANNELS;
    work.job.slots = work.slots;
    fe_find_slots(work.slots, tiling);
    return fe_parallel_for(tiling->images * blocks_of(tiling), GRAIN / (floats + 1) + 1, synthesise_blocks, &work);
}
