/* The gradient of a weight where products want many pixels at once: tap by tap. The gradient of the output is turned, so that
 * its pixels lie side by side; of the map, the cells that these read through a tap are gathered in the order of products. A
 * tile of the weight's gradient is then made in one go, and is written once where a band has all pixels. */
#include "pass.h"

#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    MOST_BAND_PIXELS = 4096,
    LEAST_BAND_PIXELS = 256,
    /* Bytes of a band's turned gradient, and of its map. */
    BAND_BYTES = 1 << 20,
    /* Pixels whose products, of 255 by -128 at worst, an int32 is sure to hold the sum of. */
    MOST_SUMMED = 65536,
    /* Bytes of sums that pieces have copies of; larger ones they share, and divide taps and inputs among them. */
    MOST_COPIED = 256 << 10,
    LINE = 64,
    /* Bytes of a gradient that goes past the caches: nobody reads it before the pass has ended. */
    LEAST_STREAMED = 4 << 20,
};

typedef struct {
    const int8_version *version;
    const pass *over;
    const bands *bands;
    const uint8_t *x, *errors[2];
    int zero;
    int64_t halves;
    /* A piece is some units, each a column of taps and a block of inputs, of all bands; or all units of some bands, with a copy
     * of the sums for each piece. */
    int by_units;
    int64_t pieces, units, blocks, copies, outputs;
    /* Whether taps of a column read from one block: they do where rows are whole groups of pixels, so that a row further down
     * is a place further on. Then each image's pixels are filled up to whole tiles. */
    int is_shared;
    int64_t kernel[2];
    /* Numbers of an output, taps times inputs. */
    int64_t rows;
    /* Pixels of the largest band and of its blocks, in whole tiles; from one plane and one half of the planes to the next. */
    int64_t pixels, gathered, pitch, half;
    int32_t *sums, *error_sums;
    float *grad;
    float scale;
    int streams;
    atomic_int error;
} tap_work;

/* A piece's memory: the copy of a band, its gradient's planes, and the cells of a unit. */
typedef struct {
    void *copy;
    int8_t *planes;
    uint8_t *block;
    int64_t *from;
    int32_t *shift;
} tap_memory;

static void *lines(int64_t bytes) { return aligned_alloc(LINE, (size_t)(ceiling_of(bytes, LINE) * LINE + LINE)); }

static int allocate(tap_memory *memory, const tap_work *work) {
    memory->copy = malloc((size_t)work->bands->bytes + LINE);
    memory->planes = lines(work->halves * work->half + TILE_ROWS * work->pitch);
    memory->block = lines(work->gathered * MOST_COLUMNS);
    memory->from = malloc((size_t)work->gathered * sizeof *memory->from);
    memory->shift = malloc((size_t)(work->halves * work->outputs) * sizeof *memory->shift);
    return memory->copy && memory->planes && memory->block && memory->from && memory->shift;
}

static void release(tap_memory *memory) {
    free(memory->copy);
    free(memory->planes);
    free(memory->block);
    free(memory->from);
    free(memory->shift);
}

/* Rows beyond the grid's that taps further down read. */
static int64_t span_of(const tap_work *work) { return work->is_shared ? work->over->high[0] - work->over->low[0] : 0; }

static int64_t whole_tiles(int64_t pixels) { return ceiling_of(pixels, TILE_NUMBERS) * TILE_NUMBERS; }

/* Which cell each pixel begins at; those that fill the last tile are the last one's again, and meet zeros. */
static int64_t find_pixels(int64_t *from, const tap_work *work, const band *in) {
    const pass *over = work->over;
    const bands *all = work->bands;
    int64_t count = 0;
    for (int64_t n = 0; n < in->images; n++)
        for (int64_t row = 0; row < in->rows + span_of(work); row++) {
            int64_t at = (n * all->image + row * over->step[0] * all->pitch) * all->cell;
            for (int64_t x = 0; x < over->out_width; x++, at += over->step[1] * all->cell)
                from[count++] = at;
        }
    const int64_t filled = whole_tiles(count) + (work->is_shared ? TILE_NUMBERS : 0);
    for (int64_t i = count; i < filled; i++)
        from[i] = from[count - 1];
    return filled;
}

static void gather(const tap_memory *memory, const tap_work *work, const band *in, const int64_t offset[2], int64_t input,
                   int64_t inputs, int64_t count) {
    const bands *all = work->bands;
    const int64_t cells = (offset[0] - all->low[0]) * all->pitch + offset[1] - all->low[1];
    work->version->gather(memory->block, (const uint8_t *)in->cells + cells * all->cell + input, memory->from, count, inputs);
}

static void add_unit(const tap_memory *memory, const tap_work *work, const band *in, int64_t unit, int64_t count,
                     int32_t *sums, int is_first, int is_last) {
    const pass *over = work->over;
    const int64_t input = unit % work->blocks * MOST_COLUMNS, inputs = smaller(MOST_COLUMNS, over->channels - input);
    const int64_t group = ceiling_of(inputs, work->version->lanes) * work->version->lanes * work->version->group, pixels = in->rows * over->out_width;
    for (int64_t i = 0; i < work->kernel[0]; i++) {
        const tap *at = over->tap + i * work->kernel[1] + unit / work->blocks;
        const int64_t row = at->place * over->channels + input;
        if (!work->is_shared || i == 0)
            gather(memory, work, in, at->offset, input, inputs, count);
        const int64_t down = work->is_shared ? at->offset[0] - over->low[0] : 0;
        tap_job job = {
            .planes = memory->planes,
            .pitch = work->pitch,
            .half = work->half,
            .halves = work->halves,
            .outputs = work->outputs,
            .block = memory->block + down * over->out_width / work->version->group * group,
            .count = work->is_shared ? in->images : 1,
            .step = (in->rows + span_of(work)) * over->out_width / work->version->group * group,
            .pixels = whole_tiles(work->is_shared ? pixels : in->images * pixels),
            .inputs = inputs,
            .sums = sums ? sums + row : NULL,
            .stride = work->rows,
            .is_first = is_first,
            .grad = is_last ? work->grad + row : NULL,
            .shift = memory->shift,
            .scale = (double)work->scale,
            .streams = work->streams,
        };
        work->version->tap(&job);
    }
}

static void turn(const tap_memory *memory, const tap_work *work, const band *in, int32_t *error_sums) {
    const pass *over = work->over;
    const int64_t pixels = (work->is_shared ? 1 : in->images) * in->rows * over->out_width;
    int64_t pixel = (in->image * over->out_height + in->row) * over->out_width;
    for (int64_t n = 0; n < (work->is_shared ? in->images : 1); n++, pixel += pixels)
        for (int64_t half = 0; half < work->halves; half++)
            work->version->turn(memory->planes + half * work->half + n * whole_tiles(pixels), work->pitch,
                                work->errors[half] + pixel * work->outputs, pixels, work->outputs,
                                error_sums + half * work->outputs);
}

static void add_band(const tap_memory *memory, const tap_work *work, int64_t i, int64_t piece, int is_first, int is_last) {
    const int64_t sizes = work->halves * work->outputs;
    int32_t *error_sums = work->error_sums + piece * sizes;
    band in;
    fe_band_of(&in, i, work->bands, work->over, work->version, work->x, work->zero, memory->copy);
    const int64_t count = find_pixels(memory->from, work, &in);
    turn(memory, work, &in, error_sums);
    for (int64_t o = 0; is_last && o < sizes; o++)
        memory->shift[o] = (int32_t)((uint32_t)work->zero * (uint32_t)error_sums[o]);
    int32_t *sums = work->sums ? work->sums + (work->by_units ? 0 : piece * sizes * work->rows) : NULL;
    const int64_t begin = work->by_units ? piece * work->units / work->pieces : 0;
    const int64_t end = work->by_units ? (piece + 1) * work->units / work->pieces : work->units;
    for (int64_t unit = begin; unit < end; unit++)
        add_unit(memory, work, &in, unit, count, sums, is_first, is_last);
}

static void add_pieces(int64_t first, int64_t last, void *context) {
    tap_work *work = context;
    tap_memory memory = {0};
    if (!allocate(&memory, work))
        atomic_store(&work->error, -1);
    for (int64_t piece = first; !atomic_load(&work->error) && piece < last; piece++) {
        int64_t begin = work->by_units ? 0 : piece * work->bands->count / work->pieces;
        int64_t end = work->by_units ? work->bands->count : (piece + 1) * work->bands->count / work->pieces;
        for (int64_t i = begin; i < end; i++)
            add_band(&memory, work, i, piece, i == begin, work->copies == 1 && i == end - 1);
    }
    settle();
    release(&memory);
}

static void collect_outputs(int64_t first, int64_t last, void *context) {
    const tap_work *work = context;
    const int64_t sizes = work->halves * work->outputs;
    const gram_sums sums = {.copies = work->copies, .copy = sizes * work->rows, .halves = work->halves,
                            .half = work->outputs * work->rows, .scale = (double)work->scale};
    for (int64_t o = first; o < last; o++) {
        int64_t shift[2] = {0};
        for (int64_t half = 0; half < work->halves; half++)
            for (int64_t piece = 0; piece < work->pieces; piece++)
                shift[half] += (int64_t)work->zero * work->error_sums[piece * sizes + half * work->outputs + o];
        work->version->collect(work->grad + o * work->rows, work->sums + o * work->rows, work->rows, &sums, shift);
    }
}

int fe_int8_grad_by_taps(const int8_version *version, float *grad, const uint8_t *x, int zero, float scale,
                         const uint8_t *const errors[2], const fe_conv *conv, int64_t pieces) {
    pass over;
    bands all;
    fe_pass_of(&over, conv, 0);
    const int64_t halves = errors[1] ? 2 : 1, outputs = over.out_channels, blocks = ceiling_of(over.channels, MOST_COLUMNS);
    const int64_t count = over.images * over.grid[0] * over.grid[1], units = conv->kernel[1] * blocks;
    const int64_t sums = halves * outputs * over.taps * over.channels;
    const int is_even = units >= 4 * pieces || (pieces > 0 && units % pieces == 0);
    const int by_units = count <= MOST_SUMMED && is_even && sums > MOST_COPIED / (int64_t)sizeof(int32_t);
    int64_t pixels = larger(LEAST_BAND_PIXELS, smaller(MOST_BAND_PIXELS, BAND_BYTES / (halves * outputs)));
    pixels = by_units ? pixels : larger(1, smaller(pixels, ceiling_of(count, larger(1, pieces))));
    fe_bands_of(&all, &over, version, pixels, BAND_BYTES);
    const int64_t in_band = all.images * all.rows * over.grid[1];
    const int64_t in_image = all.rows * over.grid[1], filled = whole_tiles(in_image);
    /* A tile of zeros in five costs less than to gather for each tap. */
    const int is_shared = over.step[0] == 1 && over.step[1] == 1 && over.grid[1] % version->group == 0 &&
                          5 * in_image >= 4 * filled && conv->kernel[0] > 1;
    const int64_t tiles = (is_shared ? all.images * filled : whole_tiles(in_band)) / TILE_NUMBERS;
    const int64_t least = by_units ? 1 : ceiling_of(all.count, larger(1, MOST_SUMMED / in_band));
    tap_work work = {
        .version = version,
        .over = &over,
        .bands = &all,
        .x = x,
        .errors = {errors[0], errors[1]},
        .zero = zero,
        .halves = halves,
        .by_units = by_units,
        .pieces = by_units ? larger(1, pieces) : larger(least, larger(1, smaller(pieces, all.count))),
        .units = units,
        .blocks = blocks,
        .outputs = outputs,
        .rows = over.taps * over.channels,
        .is_shared = is_shared,
        .kernel = {conv->kernel[0], conv->kernel[1]},
        .pixels = tiles * TILE_NUMBERS,
        .pitch = (tiles | 1) * TILE_NUMBERS,
        .grad = grad,
        .scale = scale,
    };
    work.half = ceiling_of(outputs, TILE_ROWS) * TILE_ROWS * work.pitch;
    work.gathered = whole_tiles(all.images * (all.rows + span_of(&work)) * over.grid[1]) + TILE_NUMBERS;
    const int64_t line = LINE / (int64_t)sizeof *grad;
    work.streams = (uintptr_t)grad % LINE == 0 && over.channels % line == 0 &&
                   outputs * work.rows * (int64_t)sizeof *grad >= LEAST_STREAMED;
    work.copies = by_units ? 1 : work.pieces;
    const int is_summed = work.copies > 1 || all.count > 1;
    work.sums = is_summed ? malloc((size_t)(work.copies * sums) * sizeof *work.sums) : NULL;
    work.error_sums = calloc((size_t)(work.pieces * halves * outputs), sizeof *work.error_sums);
    int error = -1;
    if (work.error_sums && (work.sums || !is_summed)) {
        error = fe_parallel_for(work.pieces, 1, add_pieces, &work);
        error = error ? error : atomic_load(&work.error);
        if (!error && work.copies > 1)
            error = fe_parallel_for(outputs, 32768 / (work.copies * work.rows) + 1, collect_outputs, &work);
    }
    free(work.sums);
    free(work.error_sums);
    return error;
}
