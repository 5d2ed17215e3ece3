/* Depthwise convolutions: each channel has a kernel of its own. There is one product for each number that is read, so that
 * bytes become floats once, in a buffer of a few channels that stays in cache, and are multiplied as such: exactly, since sums
 * of whole numbers below 2^24 are. */
#include "pass.h"

#include "parallel.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

enum {
    /* Of a piece's floats: some rows of an image, a block of channels. */
    BUFFER_BYTES = 256 << 10,
    LINE = 64,
    /* Bytes of a result that goes past the caches: less than elsewhere, since a line here and a line there cost more to fetch. */
    LEAST_STREAMED = 1 << 20,
};

_Static_assert(MOST_TAPS * 255 * 128 < 1 << 24 && DEPTH_PIXELS * 255 * 128 < 1 << 24, "a float holds these sums");

int fe_is_depthwise(const fe_conv *conv) {
    return conv->groups > 1 && conv->groups == conv->inputs && conv->groups == conv->outputs;
}

int fe_depth_pack(const pass *over, const fe_packed *packed, const float *weight, const fe_conv *conv) {
    const int64_t channels = conv->inputs, places = conv->kernel[0] * conv->kernel[1];
    for (int64_t c = 0; c < channels; c++, weight += places) {
        float largest = 0.0f;
        for (int64_t t = 0; t < places; t++) {
            if (!isfinite(weight[t]))
                return FE_NOT_FINITE;
            largest = fabsf(weight[t]) > largest ? fabsf(weight[t]) : largest;
        }
        const float scale = largest > 0.0f ? (largest / 127.0f > 1.2e-38f ? largest / 127.0f : 1.2e-38f) : 1.0f;
        const float inverse = 1.0f / scale;
        packed->scales[c] = scale;
        for (int64_t t = 0; t < over->taps; t++) {
            const int byte = (int)lrintf(weight[over->tap[t].place] * inverse);
            packed->bytes[t * channels + c] = (int8_t)byte;
            packed->sums[t * channels + c] = byte;
        }
    }
    return 0;
}

typedef struct {
    const int8_version *version;
    const pass *over;
    const uint8_t *x;
    int zero;
    int64_t channels, blocks;
    /* Rows of the grid that go through the buffer at a time; columns and bytes of the buffer. */
    int64_t rows, columns, bytes;
    /* Of a convolution; of the gradient of a weight. */
    fe_conv_out *out;
    const fe_packed *packed;
    float scale;
    const float *bias;
    float *ends;
    const uint8_t *const *errors;
    int64_t pieces;
    double *sums;
    atomic_int error;
} depth_work;

static int64_t rows_read(const pass *over, int64_t rows) {
    return (rows - 1) * over->step[0] + over->high[0] - over->low[0] + 1;
}

static void plan(depth_work *work) {
    const pass *over = work->over;
    work->channels = over->groups;
    work->blocks = ceiling_of(work->channels, DEPTH_CHANNELS);
    work->columns = (over->grid[1] - 1) * over->step[1] + over->high[1] - over->low[1] + 1;
    const int64_t row = work->columns * DEPTH_CHANNELS * (int64_t)sizeof(float);
    work->rows = over->grid[0];
    while (work->rows > 1 && rows_read(over, work->rows) * row > BUFFER_BYTES)
        work->rows = ceiling_of(work->rows, 2);
    work->bytes = rows_read(over, work->rows) * row;
}

/* The cells that some rows of the grid read, with zeros around the map. */
static void widen_rows(float *to, const depth_work *work, int64_t image, int64_t block, int64_t row, int64_t rows) {
    const pass *over = work->over;
    const int64_t channel = block * DEPTH_CHANNELS, some = smaller(DEPTH_CHANNELS, work->channels - channel);
    const int64_t first = row * over->step[0] + over->low[0], begin = over->low[1];
    const int64_t left = larger(0, smaller(work->columns, -begin));
    const int64_t inside = larger(0, smaller(work->columns, over->width - begin) - left);
    for (int64_t r = 0; r < rows_read(over, rows); r++, to += work->columns * DEPTH_CHANNELS) {
        const int64_t y = first + r;
        if (y < 0 || y >= over->height || inside == 0) {
            memset(to, 0, (size_t)(work->columns * DEPTH_CHANNELS) * sizeof *to);
            continue;
        }
        const uint8_t *from = work->x + ((image * over->height + y) * over->width + begin + left) * work->channels + channel;
        memset(to, 0, (size_t)(left * DEPTH_CHANNELS) * sizeof *to);
        work->version->widen(to + left * DEPTH_CHANNELS, from, work->channels, inside, some, work->zero);
        memset(to + (left + inside) * DEPTH_CHANNELS, 0,
               (size_t)((work->columns - left - inside) * DEPTH_CHANNELS) * sizeof *to);
    }
}

static void find_offsets(int64_t *offsets, const depth_work *work) {
    const pass *over = work->over;
    for (int64_t t = 0; t < over->taps; t++) {
        const int64_t *offset = over->tap[t].offset;
        offsets[t] = ((offset[0] - over->low[0]) * work->columns + offset[1] - over->low[1]) * DEPTH_CHANNELS;
    }
}

typedef struct {
    int64_t offsets[MOST_TAPS], to[MOST_PIXELS + FE_LONGEST_SIDE];
    float weights[MOST_TAPS][DEPTH_CHANNELS], scale[DEPTH_CHANNELS], bias[DEPTH_CHANNELS];
} depth_lists;

static void load_block(depth_lists *lists, const depth_work *work, int64_t block) {
    const int64_t first = block * DEPTH_CHANNELS;
    for (int64_t c = 0; c < DEPTH_CHANNELS; c++) {
        const int is_there = first + c < work->channels;
        lists->scale[c] = is_there ? work->scale * work->packed->scales[first + c] : 0.0f;
        lists->bias[c] = is_there && work->bias ? work->bias[first + c] : 0.0f;
        for (int64_t t = 0; t < work->over->taps; t++)
            lists->weights[t][c] = is_there ? work->packed->bytes[t * work->channels + first + c] : 0.0f;
    }
}

static void make_rows(const float *cells, depth_lists *lists, const depth_work *work, int64_t image, int64_t block,
                      int64_t row, int64_t rows, float ends[2]) {
    const pass *over = work->over;
    const int64_t channel = block * DEPTH_CHANNELS, down = over->step[0] * work->columns * DEPTH_CHANNELS;
    for (int64_t p = 0; p < over->phases; p++) {
        const phase *at = over->phase + p;
        const int64_t pixels = ceiling_of(over->out_width - at->start[1], over->out_step[1]);
        const int64_t begin = at->start[0] + row * over->out_step[0];
        const int64_t there = smaller(rows, ceiling_of(over->out_height - begin, over->out_step[0]));
        for (int64_t r = 0; r < there; r += MOST_PIXELS / pixels + 1) {
            const int64_t some = smaller(there - r, MOST_PIXELS / pixels + 1);
            int64_t *to = lists->to;
            for (int64_t k = r; k < r + some; k++) {
                const int64_t y = image * over->out_height + begin + k * over->out_step[0];
                for (int64_t i = 0; i < pixels; i++)
                    *to++ = (y * over->out_width + at->start[1] + i * over->out_step[1]) * work->channels;
            }
            tile_job made = {
                .columns = smaller(DEPTH_CHANNELS, work->channels - channel),
                .scale = lists->scale,
                .bias = lists->bias,
                .to = lists->to,
                .floats = work->out->floats ? work->out->floats + channel : NULL,
                .bytes = work->out->bytes ? work->out->bytes + channel : NULL,
                .streams = fe_goes_past(work->out->floats, over, work->channels, LEAST_STREAMED),
                .rounding = work->out->rounding,
                .low = ends[0],
                .high = ends[1],
            };
            const depth_job job = {
                .cells = cells + r * down,
                .step = over->step[1] * DEPTH_CHANNELS,
                .pixels = pixels,
                .taps = at->count,
                .offsets = lists->offsets + at->first,
                .rows = some,
                .down = down,
                .weights = lists->weights[at->first],
            };
            work->version->depth_rows(&made, &job);
            ends[0] = made.low, ends[1] = made.high;
        }
    }
}

static void *lines(int64_t bytes) { return aligned_alloc(LINE, (size_t)(ceiling_of(bytes, LINE) * LINE)); }

static void conv_images(int64_t first, int64_t last, void *context) {
    depth_work *work = context;
    depth_lists *lists = malloc(sizeof *lists);
    float *cells = lines(work->bytes);
    if (!lists || !cells)
        atomic_store(&work->error, -1);
    else
        find_offsets(lists->offsets, work);
    for (int64_t i = first; lists && cells && i < last; i++) {
        const int64_t image = i / work->blocks, block = i % work->blocks;
        float *ends = work->ends + 2 * i;
        ends[0] = ends[1] = 0.0f;
        load_block(lists, work, block);
        for (int64_t row = 0; row < work->over->grid[0]; row += work->rows) {
            const int64_t rows = smaller(work->rows, work->over->grid[0] - row);
            widen_rows(cells, work, image, block, row, rows);
            make_rows(cells, lists, work, image, block, row, rows, ends);
        }
    }
    settle();
    free(cells);
    free(lists);
}

int fe_depth_conv(const int8_version *version, const pass *over, fe_conv_out *out, const uint8_t *x, int zero, float scale,
                  const fe_packed *packed, const float *bias) {
    depth_work work = {.version = version, .over = over, .x = x, .zero = zero, .out = out, .packed = packed, .scale = scale,
                       .bias = bias};
    plan(&work);
    const int64_t units = over->images * work.blocks;
    work.ends = malloc((size_t)(2 * units) * sizeof *work.ends);
    if (!work.ends)
        return -1;
    int error = fe_parallel_for(units, 1, conv_images, &work);
    error = error ? error : atomic_load(&work.error);
    out->low = out->high = fe_doubt(packed, scale, bias, work.channels);
    for (int64_t i = 0; !error && i < units; i++) {
        out->low = work.ends[2 * i] < out->low ? work.ends[2 * i] : out->low;
        out->high = work.ends[2 * i + 1] > out->high ? work.ends[2 * i + 1] : out->high;
    }
    free(work.ends);
    return error;
}

typedef struct {
    int64_t offsets[MOST_TAPS];
    float errors[DEPTH_PIXELS][DEPTH_CHANNELS];
} depth_memory;

/* Where a piece's sums of a block and of a half begin. */
static double *sums_of(const depth_work *work, int64_t piece, int64_t block, int half) {
    return work->sums + ((piece * work->blocks + block) * 2 + half) * work->over->taps * DEPTH_CHANNELS;
}

static void add_rows(const float *cells, depth_memory *memory, const depth_work *work, int64_t piece, int64_t image,
                     int64_t block, int64_t row, int64_t rows) {
    const pass *over = work->over;
    const int64_t channel = block * DEPTH_CHANNELS, there = smaller(DEPTH_CHANNELS, work->channels - channel);
    const int64_t down = over->step[0] * work->columns * DEPTH_CHANNELS;
    const int64_t together = larger(1, DEPTH_PIXELS / over->out_width);
    for (int64_t r = 0; r < rows; r += together)
        for (int64_t x = 0; x < over->out_width; x += DEPTH_PIXELS)
            for (int half = 0; half < 2 && work->errors[half]; half++) {
                const int64_t some = smaller(together, rows - r), pixels = smaller(DEPTH_PIXELS, over->out_width - x);
                const int64_t pixel = (image * over->out_height + row + r) * over->out_width + x;
                work->version->widen(memory->errors[0], work->errors[half] + pixel * work->channels + channel,
                                     work->channels, some * pixels, there, FE_ERROR_ZERO);
                const depth_job job = {
                    .cells = cells + r * down + x * over->step[1] * DEPTH_CHANNELS,
                    .step = over->step[1] * DEPTH_CHANNELS,
                    .pixels = pixels,
                    .taps = over->taps,
                    .offsets = memory->offsets,
                    .rows = some,
                    .down = down,
                    .errors = memory->errors[0],
                };
                work->version->depth_gram(sums_of(work, piece, block, half), &job);
            }
}

static void sum_images(int64_t first, int64_t last, void *context) {
    depth_work *work = context;
    depth_memory *memory = malloc(sizeof *memory);
    float *cells = lines(work->bytes);
    if (!memory || !cells)
        atomic_store(&work->error, -1);
    else
        find_offsets(memory->offsets, work);
    for (int64_t piece = first; memory && cells && piece < last; piece++)
        for (int64_t image = piece * work->over->images / work->pieces;
             image < (piece + 1) * work->over->images / work->pieces; image++)
            for (int64_t block = 0; block < work->blocks; block++)
                for (int64_t row = 0; row < work->over->grid[0]; row += work->rows) {
                    const int64_t rows = smaller(work->rows, work->over->grid[0] - row);
                    widen_rows(cells, work, image, block, row, rows);
                    add_rows(cells, memory, work, piece, image, block, row, rows);
                }
    free(cells);
    free(memory);
}

static void finish(float *grad, const depth_work *work, int halves) {
    for (int64_t i = 0; i < work->channels; i++)
        for (int64_t t = 0; t < work->over->taps; t++) {
            double sum = 0.0;
            for (int half = 0; half < halves; half++) {
                sum *= FE_HALF;
                for (int64_t piece = 0; piece < work->pieces; piece++)
                    sum += sums_of(work, piece, i / DEPTH_CHANNELS, half)[t * DEPTH_CHANNELS + i % DEPTH_CHANNELS];
            }
            grad[i * work->over->taps + t] = (float)(sum * (double)work->scale);
        }
}

int fe_depth_grad_weight(const int8_version *version, float *grad, const uint8_t *x, int zero, float scale,
                         const uint8_t *const errors[2], const fe_conv *conv, int64_t pieces) {
    pass over;
    fe_pass_of(&over, conv, 0);
    depth_work work = {.version = version, .over = &over, .x = x, .zero = zero, .scale = scale, .errors = errors,
                       .pieces = larger(1, smaller(pieces, over.images))};
    plan(&work);
    work.sums = calloc((size_t)(work.pieces * work.blocks * 2 * over.taps * DEPTH_CHANNELS), sizeof *work.sums);
    if (!work.sums)
        return -1;
    int error = fe_parallel_for(work.pieces, 1, sum_images, &work);
    error = error ? error : atomic_load(&work.error);
    if (!error)
        finish(grad, &work, errors[1] ? 2 : 1);
    free(work.sums);
    return error;
}
