/* The gradient of a weight: sums over pixels. The map and the gradient of the output are turned so that neighbouring pixels
 * lie side by side, band by band, and are multiplied as a convolution is. */
#include "pass.h"

#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    BAND_PIXELS = 512,
    BAND_BYTES = 128 << 10,
    /* Of a band that goes with large sums: it had better be the only one, so that these are never stored. */
    LARGE_BAND_PIXELS = 1024,
    LARGE_BAND_BYTES = 512 << 10,
    /* Rows of a gram that are finished at once: whole tiles of nearly all kinds. */
    STRIP = 3 * TURNED,
    /* Cells behind a row of a plane, which the last group of pixels may read; and columns that are turned together. */
    BEHIND = 16,
    /* Pixels whose products, of 255 by -128 at worst, an int32 is sure to hold the sum of. */
    MOST_SUMMED = 65536,
    /* Bytes of sums that pieces have copies of; larger ones they share, and divide their columns among them. */
    MOST_COPIED = 256 << 10,
};

typedef struct {
    const int8_version *version;
    const pass *over;
    const bands *bands;
    const uint8_t *x, *errors[2];
    int zero, halves;
    int64_t pieces;
    /* Whether a piece is some blocks of columns of all bands, and not all columns of some bands; and how many copies of the sums
     * there are: one, or one for each piece. */
    int by_columns;
    int64_t copies;
    /* Whether one band has all pixels of all sums, so that they need not be kept. */
    int is_whole;
    /* Rows of a group's gram, taps times channels; the sums of the gradient itself are one row more. */
    int64_t rows;
    /* Its columns, for each half those of all blocks. */
    int64_t half, stride;
    /* For each copy and group. What sums might not hold goes to `totals`, which is NULL where that cannot happen. */
    int32_t *sums;
    double *totals;
    /* Bit i: whether taps read rows, and columns, that are i more than a multiple of the stride. */
    unsigned read[2];
    float *grad;
    float scale;
    atomic_int error;
} gram_work;

/* A piece's memory: the copy of a band, its planes, a block of the gradient, and where rows and segments begin. */
typedef struct {
    void *copy, *planes;
    int8_t *block;
    int64_t *from, *segments;
    /* Cells of a row of a plane, rows of the map that an image has, and cells of a plane. Columns that a stride brings together
     * lie side by side: such a row of the map is several rows of a plane. */
    int64_t pitch, rows, plane;
    /* Bytes of a block of one half. */
    int64_t half;
} gram_memory;

static int64_t sums_of_copy(const gram_work *work) { return work->over->groups * (work->rows + 1) * work->stride; }

/* Rows of the copy, or of the map, that some rows of the grid read. */
static int64_t rows_read(const gram_work *work, int64_t rows) {
    return (rows - 1) * work->over->step[0] + work->over->high[0] - work->bands->low[0] + 1;
}

static int allocate(gram_memory *memory, const gram_work *work) {
    const pass *over = work->over;
    const bands *all = work->bands;
    int64_t segments = all->images * all->rows, groups = ceiling_of(over->grid[1], work->version->group);
    /* What is read behind a row is multiplied by zeros. */
    memory->pitch = over->step[1] == 1 ? all->pitch : ceiling_of(all->pitch, over->step[1]) + BEHIND;
    memory->rows = all->in_image > 1 ? rows_read(work, all->rows) : all->image / all->pitch;
    memory->plane = all->images * memory->rows * over->step[1] * memory->pitch + BEHIND;
    memory->copy = malloc((size_t)all->bytes + BEHIND);
    memory->planes = calloc((size_t)(memory->plane * over->channels + BEHIND), (size_t)work->version->cell);
    memory->half = segments * groups * work->version->group * MOST_COLUMNS;
    memory->block = malloc((size_t)(work->halves * memory->half));
    memory->from = malloc((size_t)work->rows * sizeof *memory->from);
    memory->segments = malloc((size_t)segments * sizeof *memory->segments);
    return memory->copy && memory->planes && memory->block && memory->from && memory->segments;
}

static void release(gram_memory *memory) {
    free(memory->copy);
    free(memory->planes);
    free(memory->block);
    free(memory->from);
    free(memory->segments);
}

static void find_rows(gram_memory *memory, const gram_work *work) {
    const pass *over = work->over;
    const int64_t step = over->step[1];
    for (int64_t t = 0; t < over->taps; t++) {
        int64_t y = over->tap[t].offset[0] - work->bands->low[0], x = over->tap[t].offset[1] - work->bands->low[1];
        for (int64_t c = 0; c < over->channels; c++)
            memory->from[t * over->channels + c] = c * memory->plane + (y * step + x % step) * memory->pitch + x / step;
    }
}

/* Whether a tap reads this row or this column, where a stride brings together every so many of them. */
static int is_read(const gram_work *work, int axis, int64_t at) {
    const pass *over = work->over;
    return work->read[axis] >> at % over->step[axis] & 1;
}

static void turn_map(const gram_memory *memory, const gram_work *work, const band *in, int64_t group) {
    const pass *over = work->over;
    const bands *all = work->bands;
    const int64_t size = work->version->cell, step = over->step[1], rows = rows_read(work, in->rows);
    const char *cells = (const char *)in->cells + group * all->channels * size;
    if (step == 1) {
        int64_t count = ((in->images - 1) * memory->rows + rows) * all->pitch;
        work->version->planes(memory->planes, memory->plane, cells, all->cell, count, over->channels);
        return;
    }
    /* Cells from the band's first one on, up to the end of the copy or of the map. */
    const int64_t in_map = (over->images - in->image) * over->height - in->row * over->step[0];
    const int64_t readable = all->direct ? in_map * over->width : in->images * all->image;
    for (int64_t n = 0; n < in->images; n++)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t x = 0; x < step && x < all->pitch; x++) {
                if (!is_read(work, 0, row) || !is_read(work, 1, x))
                    continue;
                const int64_t at = n * all->image + row * all->pitch + x, count = ceiling_of(all->pitch - x, step);
                /* Behind a row there is room, and whole blocks of columns cost less than some. */
                const int is_free = count < BEHIND && at + (BEHIND - 1) * step < readable;
                work->version->planes(
                    (char *)memory->planes + ((n * memory->rows + row) * step + x) * memory->pitch * size, memory->plane,
                    cells + at * all->cell * size, step * all->cell, is_free ? BEHIND : count, over->channels);
            }
}

/* Columns of the gradient, in the order of products; their sums are added to `sums`. */
static gram_job turn_block(const gram_memory *memory, const gram_work *work, const band *in, int64_t group, int64_t half,
                           int64_t column, int8_t *block, int32_t *sums) {
    const pass *over = work->over;
    const int8_version *version = work->version;
    int64_t width = width_of(version, over->out_channels - column);
    int64_t groups = ceiling_of(over->grid[1], version->group);
    int64_t columns = smaller(width, over->out_channels - column), channels = over->groups * over->out_channels;
    const gram_job job = {
        .cells = memory->planes,
        .from = memory->from,
        .rows = work->rows,
        .segments = memory->segments,
        .count = in->images * in->rows,
        .groups = groups,
        .errors = block,
        .columns = columns,
        .stride = work->stride,
    };
    for (int64_t n = 0; n < in->images; n++)
        for (int64_t row = 0; row < in->rows; row++) {
            int64_t pixel = ((in->image + n) * over->out_height + in->row + row) * over->out_width;
            version->interleave(block, work->errors[half] + pixel * channels + group * over->out_channels + column, channels,
                                over->out_width, columns, width, sums);
            block += groups * version->group * width;
        }
    return job;
}

static void add_block(const gram_memory *memory, const gram_work *work, const band *in, int64_t group, int64_t half,
                      int64_t column, int32_t *sums, int is_first) {
    sums += half * work->half + column;
    int32_t *errors = sums + work->rows * work->stride;
    if (is_first)
        memset(errors, 0, (size_t)width_of(work->version, work->over->out_channels - column) * sizeof *sums);
    gram_job job = turn_block(memory, work, in, group, half, column, memory->block, errors);
    job.sums = sums;
    job.is_first = is_first;
    work->version->gram(&job);
}

/* Columns of the gradient of which this band has all pixels: a few rows are summed and finished at a time. */
static void make_block(const gram_memory *memory, const gram_work *work, const band *in, int64_t group, int64_t column) {
    const int64_t halves = work->halves;
    int32_t strip[2][STRIP * MOST_COLUMNS], errors[2][MOST_COLUMNS] = {0}, shift[2 * MOST_COLUMNS];
    gram_job jobs[2];
    for (int64_t half = 0; half < halves; half++) {
        jobs[half] = turn_block(memory, work, in, group, half, column, memory->block + half * memory->half, errors[half]);
        jobs[half].sums = strip[half];
        jobs[half].stride = MOST_COLUMNS;
        jobs[half].is_first = 1;
        for (int64_t c = 0; c < MOST_COLUMNS; c++)
            shift[half * MOST_COLUMNS + c] =
                (int32_t)((uint32_t)(work->zero - work->version->flip) * (uint32_t)errors[half][c]);
    }
    const gram_sums sums = {1, 0, MOST_COLUMNS, halves, STRIP * MOST_COLUMNS, (double)work->scale};
    float *grad = work->grad + (group * work->over->out_channels + column) * work->rows;
    for (int64_t row = 0; row < work->rows; row += STRIP) {
        const int64_t rows = smaller(STRIP, work->rows - row);
        for (int64_t half = 0; half < halves; half++) {
            jobs[half].from = memory->from + row;
            jobs[half].rows = rows;
            work->version->gram(&jobs[half]);
        }
        for (int64_t r = 0; r < rows; r += TURNED)
            work->version->finish(grad + row + r, work->rows, strip[0] + r * MOST_COLUMNS, &sums, smaller(TURNED, rows - r),
                                  jobs[0].columns, shift);
    }
}

/* Adds band i, or sets the sums where it is the first. */
static void add_band(const gram_memory *memory, const gram_work *work, int64_t i, int64_t piece, int is_first) {
    const pass *over = work->over;
    const int64_t width = work->version->lanes * work->version->vectors, blocks = ceiling_of(over->out_channels, width);
    const int64_t begin = work->by_columns ? piece * blocks / work->pieces : 0;
    const int64_t end = work->by_columns ? (piece + 1) * blocks / work->pieces : blocks;
    int32_t *sums = work->sums + (work->by_columns ? 0 : piece * sums_of_copy(work));
    band in;
    fe_band_of(&in, i, work->bands, over, work->version, work->x, work->zero, memory->copy);
    for (int64_t s = 0; s < in.images * in.rows; s++)
        memory->segments[s] =
            (s / in.rows * memory->rows + s % in.rows * over->step[0]) * over->step[1] * memory->pitch;
    for (int64_t group = 0; group < over->groups; group++, sums += (work->rows + 1) * work->stride) {
        turn_map(memory, work, &in, group);
        for (int64_t block = begin; work->is_whole && block < end; block++)
            make_block(memory, work, &in, group, block * width);
        for (int64_t half = 0; !work->is_whole && half < work->halves; half++)
            for (int64_t block = begin; block < end; block++)
                add_block(memory, work, &in, group, half, block * width, sums, is_first);
    }
}

static void flush(const gram_work *work, int64_t piece) {
    int64_t count = sums_of_copy(work);
    int32_t *sums = work->sums + piece * count;
    double *totals = work->totals + piece * count;
    for (int64_t i = 0; i < count; i++) {
        totals[i] += sums[i];
        sums[i] = 0;
    }
}

static void gram_pieces(int64_t first, int64_t last, void *context) {
    gram_work *work = context;
    gram_memory memory = {0};
    if (!allocate(&memory, work))
        atomic_store(&work->error, -1);
    else
        find_rows(&memory, work);
    int64_t in_band = work->bands->images * work->bands->rows * work->over->grid[1];
    for (int64_t piece = first; !atomic_load(&work->error) && piece < last; piece++) {
        int64_t begin = work->by_columns ? 0 : piece * work->bands->count / work->pieces;
        int64_t end = work->by_columns ? work->bands->count : (piece + 1) * work->bands->count / work->pieces;
        int64_t summed = 0;
        for (int64_t i = begin; i < end; i++, summed += in_band) {
            if (work->totals && summed + in_band > MOST_SUMMED) {
                flush(work, piece);
                summed = 0;
            }
            add_band(&memory, work, i, piece, i == begin);
        }
        if (work->totals)
            flush(work, piece);
    }
    release(&memory);
}

/* The sum of all copies of what has been flushed. */
static int64_t total(const gram_work *work, int64_t at) {
    int64_t sum = 0;
    for (int64_t copy = 0; copy < work->copies; copy++)
        sum += (int64_t)work->totals[copy * sums_of_copy(work) + at];
    return sum;
}

static void finish_totals(float *grad, const gram_work *work, int64_t base, int64_t first, int64_t rows) {
    const int64_t errors = base + work->rows * work->stride, zero = work->zero - work->version->flip;
    for (int64_t o = 0; o < work->over->out_channels; o++)
        for (int64_t row = first; row < first + rows; row++) {
            double sum = 0.0;
            for (int64_t at = o; at < work->stride; at += work->half)
                sum = FE_HALF * sum + (double)(total(work, base + row * work->stride + at) - zero * total(work, errors + at));
            grad[o * work->rows + row] = (float)(sum * (double)work->scale);
        }
}

/* What a zero adds to a column of all copies' sums. */
static int32_t shift_of(const gram_work *work, int64_t errors) {
    uint32_t sum = 0;
    for (int64_t copy = 0; copy < work->copies; copy++)
        sum += (uint32_t)work->sums[copy * sums_of_copy(work) + errors];
    return (int32_t)((uint32_t)(work->zero - work->version->flip) * sum);
}

static void finish_rows(int64_t first, int64_t last, void *context) {
    const gram_work *work = context;
    const pass *over = work->over;
    const int64_t blocks = ceiling_of(work->rows, TURNED);
    const gram_sums sums = {work->copies, sums_of_copy(work), work->stride, work->halves, work->half, (double)work->scale};
    for (int64_t i = first; i < last; i++) {
        int64_t group = i / blocks, row = i % blocks * TURNED, rows = smaller(TURNED, work->rows - row);
        int64_t base = group * (work->rows + 1) * work->stride, errors = base + work->rows * work->stride;
        float *grad = work->grad + group * over->out_channels * work->rows;
        if (work->totals) {
            finish_totals(grad, work, base, row, rows);
            continue;
        }
        for (int64_t o = 0; o < over->out_channels; o += MOST_COLUMNS) {
            int32_t shift[2 * MOST_COLUMNS];
            int64_t columns = smaller(MOST_COLUMNS, over->out_channels - o);
            for (int64_t half = 0; half < work->halves; half++)
                for (int64_t c = 0; c < columns; c++)
                    shift[half * MOST_COLUMNS + c] = shift_of(work, errors + half * work->half + o + c);
            work->version->finish(grad + o * work->rows + row, work->rows, work->sums + base + row * work->stride + o, &sums,
                                  rows, columns, shift);
        }
    }
}

int fe_int8_grad_weight(fe_isa ceiling, float *grad, const uint8_t *x, int zero, float scale, const uint8_t *high,
                        const uint8_t *low, const fe_conv *conv, int64_t pieces) {
    const int8_version *version = fe_int8_version(ceiling);
    const uint8_t *const errors[] = {high, low};
    if (fe_is_depthwise(conv))
        return fe_depth_grad_weight(version, grad, x, zero, scale, errors, conv, pieces);
    if (version->tap && conv->groups == 1)
        return fe_int8_grad_by_taps(version, grad, x, zero, scale, errors, conv, pieces);
    pass over;
    bands all;
    fe_pass_of(&over, conv, 0);
    const int64_t columns = ceiling_of(over.out_channels, version->lanes) * version->lanes;
    const int is_large = over.groups * over.taps * over.channels * columns > MOST_COPIED / (int64_t)sizeof(int32_t);
    fe_bands_of(&all, &over, version, is_large ? LARGE_BAND_PIXELS : BAND_PIXELS, is_large ? LARGE_BAND_BYTES : BAND_BYTES);
    gram_work work = {
        .version = version,
        .over = &over,
        .bands = &all,
        .x = x,
        .errors = {high, low},
        .zero = zero,
        .halves = low ? 2 : 1,
        .pieces = larger(1, smaller(pieces, all.count)),
        .rows = over.taps * over.channels,
        .half = columns,
        .grad = grad,
        .scale = scale,
    };
    work.stride = work.halves * work.half;
    for (int64_t t = 0; t < over.taps; t++)
        for (int axis = 0; axis < 2; axis++)
            work.read[axis] |= 1u << (over.tap[t].offset[axis] - all.low[axis]) % over.step[axis];
    int is_long = over.images * over.grid[0] * over.grid[1] > MOST_SUMMED;
    int64_t blocks = ceiling_of(over.out_channels, version->lanes * version->vectors);
    if (!is_long && blocks >= pieces && sums_of_copy(&work) > MOST_COPIED / (int64_t)sizeof(int32_t)) {
        work.by_columns = 1;
        work.pieces = larger(1, pieces);
    }
    work.copies = work.by_columns ? 1 : work.pieces;
    work.is_whole = !is_long && work.copies == 1 && all.count == 1;
    int64_t count = work.is_whole ? 1 : work.copies * sums_of_copy(&work);
    work.sums = malloc((size_t)count * sizeof *work.sums);
    work.totals = is_long ? calloc((size_t)count, sizeof *work.totals) : NULL;
    int error = -1;
    if (work.sums && (work.totals || !is_long)) {
        error = fe_parallel_for(work.pieces, 1, gram_pieces, &work);
        error = error ? error : atomic_load(&work.error);
        if (!error && !work.is_whole) {
            int64_t turns = over.groups * ceiling_of(work.rows, TURNED);
            error = fe_parallel_for(turns, 32768 / (TURNED * over.out_channels) + 1, finish_rows, &work);
        }
    }
    free(work.sums);
    free(work.totals);
    return error;
}
