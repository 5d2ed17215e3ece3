/* Weights become bytes; convolutions and their transposes. */
#include "pass.h"

#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    /* Bytes of a band: with the weights of a block beside it, a usual first cache is full. */
    BAND_BYTES = 24 << 10,
    /* Where weights are large, they come from afar for each band: then a band may fill some of the second cache. */
    LARGEST_BAND = 256 << 10,
    BAND_PIXELS = 256,
    /* Bytes of a result from which on it costs less to fetch it from memory later than to fetch what it overwrites now. */
    LEAST_STREAMED = 4 << 20,
};

static int64_t padded_columns(const int8_version *version, int64_t columns) {
    return ceiling_of(columns, version->lanes) * version->lanes;
}

/* Bytes that a tap has in one column of a block. */
static int64_t depth_of(const int8_version *version, const pass *over) {
    return ceiling_of(over->channels, version->group) * version->group;
}

static int64_t bytes_of_group(const int8_version *version, const pass *over) {
    return over->taps * depth_of(version, over) * padded_columns(version, over->out_channels);
}

fe_packed_sizes fe_int8_packed(fe_isa ceiling, const fe_conv *conv, int transposed) {
    const int8_version *version = fe_int8_version(ceiling);
    pass over;
    fe_pass_of(&over, conv, transposed);
    int64_t channels = over.groups * over.out_channels;
    if (fe_is_depthwise(conv))
        return (fe_packed_sizes){over.taps * channels, over.taps * channels, channels};
    return (fe_packed_sizes){over.groups * bytes_of_group(version, &over), over.taps * channels, channels};
}

typedef struct {
    const int8_version *version;
    const pass *over;
    const fe_packed *packed;
    const float *weight;
    int transposed;
    /* Of the kernel; a phase of a transposed convolution may lack some of them. */
    int64_t places;
    int taps[MOST_TAPS];
    atomic_int error;
} pack_work;

static void pack_blocks(int64_t first, int64_t last, void *context) {
    pack_work *work = context;
    const pass *over = work->over;
    const int8_version *version = work->version;
    int64_t width = version->lanes * version->vectors, blocks = ceiling_of(over->out_channels, width);
    int64_t inputs = work->transposed ? over->out_channels : over->channels;
    int64_t outputs = work->transposed ? over->channels : over->out_channels, row = work->places * inputs;
    for (int64_t i = first; i < last; i++) {
        int64_t group = i / blocks, column = i % blocks * width, channel = group * over->out_channels + column;
        pack_job job = {
            .weight = work->weight + group * outputs * row + column * (work->transposed ? 1 : row),
            .result = work->transposed ? 1 : row,
            .made = work->transposed ? row : 1,
            .tap = inputs,
            .columns = smaller(width, over->out_channels - column),
            .channels = over->channels,
            .taps = work->taps,
            .count = over->taps,
            .places = work->places,
            .bytes = work->packed->bytes + group * bytes_of_group(version, over) +
                     column * over->taps * depth_of(version, over),
            .scales = work->packed->scales + channel,
            .sums = work->packed->sums + channel,
            .stride = over->groups * over->out_channels,
        };
        int error = version->pack(&job);
        if (error)
            atomic_store(&work->error, error);
    }
}

int fe_int8_pack(fe_isa ceiling, const fe_packed *packed, const float *weight, const fe_conv *conv, int transposed) {
    pass over;
    fe_pass_of(&over, conv, transposed);
    if (fe_is_depthwise(conv))
        return fe_depth_pack(&over, packed, weight, conv);
    pack_work work = {.version = fe_int8_version(ceiling), .over = &over, .packed = packed, .weight = weight,
                      .transposed = transposed, .places = conv->kernel[0] * conv->kernel[1]};
    for (int64_t t = 0; t < over.taps; t++)
        work.taps[t] = over.tap[t].place;
    int64_t blocks = over.groups * ceiling_of(over.out_channels, work.version->lanes * work.version->vectors);
    int64_t work_of_block = over.taps * over.channels * smaller(over.out_channels, MOST_COLUMNS);
    int error = fe_parallel_for(blocks, 16384 / (work_of_block + 1) + 1, pack_blocks, &work);
    return error ? error : atomic_load(&work.error);
}

typedef struct {
    const int8_version *version;
    const pass *over;
    const bands *bands;
    fe_conv_out *out;
    const uint8_t *x;
    int zero;
    const fe_packed *packed;
    /* For each phase and channel, what its zero adds to the sums; for each channel, the scale and the bias. */
    const int32_t *shift;
    const float *scale, *bias;
    /* For each band, the least and the greatest of its floats. */
    float *ends;
    /* Bytes of a strip of pixels, with all their numbers side by side; 0 where the version needs none. */
    int64_t strip;
    /* Whether the result goes past the caches. */
    int streams;
    atomic_int error;
} conv_work;

typedef struct {
    /* Of a phase of a band: what its pixels read and where they go, counted from the first one. */
    int64_t from[MOST_PIXELS], to[MOST_PIXELS], segments[MOST_TAPS], run;
    /* Where all pixels of a band are listed, its images and rows: others of that size have the same lists. */
    int64_t images, rows, pixels;
    int32_t shift[MOST_COLUMNS];
    float scale[MOST_COLUMNS], bias[MOST_COLUMNS];
    uint8_t *strip;
} conv_lists;

/* Blocks of all groups' channels, for the pixels that the lists have; `first` is where the first one goes. */
static void make_pixels(const conv_work *work, const phase *at, const band *in, int64_t first, conv_lists *lists,
                        float ends[2]) {
    const int8_version *version = work->version;
    const pass *over = work->over;
    const int64_t all = over->groups * over->out_channels, depth = depth_of(version, over);
    const int64_t width = version->lanes * version->vectors;
    for (int64_t group = 0; group < over->groups; group++)
        for (int64_t column = 0; column < over->out_channels; column += width) {
            int64_t columns = smaller(width, over->out_channels - column), channel = group * over->out_channels + column;
            int64_t block = width_of(version, over->out_channels - column);
            memset(lists->shift, 0, sizeof lists->shift);
            memset(lists->scale, 0, sizeof lists->scale);
            memset(lists->bias, 0, sizeof lists->bias);
            memcpy(lists->shift, work->shift + (at - over->phase) * all + channel, (size_t)columns * sizeof(int32_t));
            memcpy(lists->scale, work->scale + channel, (size_t)columns * sizeof(float));
            memcpy(lists->bias, work->bias + channel, (size_t)columns * sizeof(float));
            tile_job job = {
                .cells = (const char *)in->cells + group * work->bands->channels * version->cell,
                .from = lists->from,
                .segments = lists->segments,
                .count = at->count / lists->run,
                .groups = lists->run * depth / version->group,
                .weights = work->packed->bytes + group * bytes_of_group(version, over) + column * over->taps * depth +
                           at->first * block * depth,
                .columns = columns,
                .shift = lists->shift,
                .scale = lists->scale,
                .bias = lists->bias,
                .to = lists->to,
                .pixels = lists->pixels,
                .floats = work->out->floats ? work->out->floats + first + channel : NULL,
                .bytes = work->out->bytes ? work->out->bytes + first + channel : NULL,
                .streams = work->streams,
                .rounding = work->out->rounding,
                .low = ends[0],
                .high = ends[1],
                .strip = lists->strip,
            };
            version->convolve(&job);
            ends[0] = job.low, ends[1] = job.high;
        }
}

/* How many taps in a row read cells that lie side by side: their numbers are one long segment. */
static int64_t run_of(const conv_work *work, const phase *at) {
    const pass *over = work->over;
    if (over->groups > 1 || at->count == 0)
        return 1;
    int64_t run = 1;
    const tap *taps = over->tap + at->first;
    while (run < at->count && taps[run].offset[0] == taps[0].offset[0] && taps[run].offset[1] == taps[0].offset[1] + run)
        run++;
    for (int64_t t = 0; t < at->count; t++) {
        int64_t begin = t - t % run;
        if (at->count % run != 0 || taps[t].offset[0] != taps[begin].offset[0] ||
            taps[t].offset[1] != taps[begin].offset[1] + t % run)
            return 1;
    }
    return run;
}

/* Lists the pixels of some rows of a band; where there are too many for that, those are made that are listed. */
static void list_pixels(const conv_work *work, const phase *at, const band *in, int64_t rows, int64_t first,
                        conv_lists *lists, float ends[2]) {
    const pass *over = work->over;
    const bands *all = work->bands;
    const int64_t channels = over->groups * over->out_channels;
    const int64_t from_step = over->step[1] * all->cell, to_step = over->out_step[1] * channels;
    lists->run = run_of(work, at);
    for (int64_t t = 0; t < at->count; t += lists->run) {
        const int64_t *offset = over->tap[at->first + t].offset;
        lists->segments[t / lists->run] = ((offset[0] - all->low[0]) * all->pitch + offset[1] - all->low[1]) * all->cell;
    }
    lists->images = in->images;
    lists->rows = rows;
    lists->pixels = 0;
    for (int64_t n = 0; n < in->images; n++)
        for (int64_t row = 0; row < rows; row++) {
            int64_t from = (n * all->image + row * over->step[0] * all->pitch) * all->cell;
            int64_t to = (n * over->out_height + row * over->out_step[0]) * over->out_width * channels;
            int64_t count = ceiling_of(over->out_width - at->start[1], over->out_step[1]);
            while (count > 0) {
                if (lists->pixels == MOST_PIXELS) {
                    make_pixels(work, at, in, first, lists, ends);
                    lists->images = lists->pixels = 0;
                }
                int64_t some = smaller(count, MOST_PIXELS - lists->pixels);
                for (int64_t i = 0; i < some; i++) {
                    lists->from[lists->pixels + i] = from + i * from_step;
                    lists->to[lists->pixels + i] = to + i * to_step;
                }
                from += some * from_step, to += some * to_step;
                lists->pixels += some, count -= some;
            }
        }
}

static void make_phase(const conv_work *work, const phase *at, const band *in, conv_lists *lists, float ends[2]) {
    const pass *over = work->over;
    const int64_t top = at->start[0] + in->row * over->out_step[0];
    const int64_t first =
        ((in->image * over->out_height + top) * over->out_width + at->start[1]) * over->groups * over->out_channels;
    /* The grid may be a row longer than this phase. */
    const int64_t rows = smaller(in->rows, ceiling_of(over->out_height - top, over->out_step[0]));
    if (lists->images != in->images || lists->rows != rows)
        list_pixels(work, at, in, rows, first, lists, ends);
    if (lists->pixels > 0)
        make_pixels(work, at, in, first, lists, ends);
}

static void conv_bands(int64_t first, int64_t last, void *context) {
    conv_work *work = context;
    /* For each phase. */
    conv_lists *lists = malloc((size_t)work->over->phases * sizeof *lists);
    void *copy = malloc((size_t)work->bands->bytes + MOST_COLUMNS);
    uint8_t *strip = aligned_alloc(TILE_NUMBERS, (size_t)work->strip + TILE_NUMBERS);
    const int is_ready = lists && copy && strip;
    if (!is_ready)
        atomic_store(&work->error, -1);
    for (int64_t p = 0; is_ready && p < work->over->phases; p++) {
        lists[p].strip = strip;
        lists[p].images = 0;
    }
    for (int64_t i = first; is_ready && i < last; i++) {
        band in;
        fe_band_of(&in, i, work->bands, work->over, work->version, work->x, work->zero, copy);
        float *ends = work->ends + 2 * i;
        ends[0] = ends[1] = 0.0f;
        for (int64_t p = 0; p < work->over->phases; p++)
            make_phase(work, work->over->phase + p, &in, lists + p, ends);
    }
    settle();
    free(strip);
    free(copy);
    free(lists);
}

/* A number of the map that means 0 becomes zero - flip for the kernels: it is taken off the sums again. */
static void compensate(int32_t *shift, float *scale, float *bias, const conv_work *work, float x_scale, const float *given) {
    const pass *over = work->over;
    const int64_t channels = over->groups * over->out_channels;
    const int32_t zero = work->zero - work->version->flip;
    for (int64_t p = 0; p < over->phases; p++)
        for (int64_t c = 0; c < channels; c++) {
            int32_t sum = 0;
            for (int64_t t = 0; t < over->phase[p].count; t++)
                sum += work->packed->sums[(over->phase[p].first + t) * channels + c];
            shift[p * channels + c] = zero * sum;
        }
    for (int64_t c = 0; c < channels; c++) {
        scale[c] = x_scale * work->packed->scales[c];
        bias[c] = given ? given[c] : 0.0f;
    }
}

int fe_int8_conv(fe_isa ceiling, fe_conv_out *out, const uint8_t *x, int zero, float scale, const fe_packed *packed,
                 const float *bias, const fe_conv *conv, int transposed) {
    const int8_version *version = fe_int8_version(ceiling);
    pass over;
    bands all;
    fe_pass_of(&over, conv, transposed);
    if (fe_is_depthwise(conv))
        return fe_depth_conv(version, &over, out, x, zero, scale, packed, bias);
    int64_t bytes = larger(BAND_BYTES, smaller(LARGEST_BAND, bytes_of_group(version, &over) / 4));
    fe_bands_of(&all, &over, version, BAND_PIXELS, bytes);
    int64_t channels = over.groups * over.out_channels;
    int32_t *shift = malloc((size_t)(over.phases * channels) * sizeof *shift);
    float *factors = malloc((size_t)(2 * channels + 2 * all.count) * sizeof *factors);
    int error = -1;
    if (shift && factors) {
        conv_work work = {
            .version = version,
            .over = &over,
            .bands = &all,
            .out = out,
            .x = x,
            .zero = zero,
            .packed = packed,
            .shift = shift,
            .scale = factors,
            .bias = factors + channels,
            .ends = factors + 2 * channels,
            .streams = fe_goes_past(out->floats, &over, over.out_channels, LEAST_STREAMED),
            .strip = version->strip * strip_pitch(over.taps * depth_of(version, &over)),
        };
        compensate(shift, factors, factors + channels, &work, scale, bias);
        error = fe_parallel_for(all.count, 1, conv_bands, &work);
        error = error ? error : atomic_load(&work.error);
        out->low = out->high = fe_doubt(packed, scale, bias, channels);
        for (int64_t i = 0; !error && i < all.count; i++) {
            out->low = work.ends[2 * i] < out->low ? work.ends[2 * i] : out->low;
            out->high = work.ends[2 * i + 1] > out->high ? work.ends[2 * i + 1] : out->high;
        }
    }
    free(shift);
    free(factors);
    return error;
}
