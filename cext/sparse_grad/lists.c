/* Non-zeros in the order of pixels become lists in the order of tiles and outputs. */
#include "tiling.h"

#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>

static int64_t reach_of(const fe_conv *conv, int axis) { return conv->dilation[axis] * (conv->kernel[axis] - 1) + 1; }

int fe_sparse_conv_is_valid(const fe_conv *conv) {
    const int64_t size[2] = {conv->height, conv->width};
    int64_t x = 4, y = 4, weight = 4;
    if (conv->images < 1 || conv->inputs < 1 || conv->outputs < 1 || conv->outputs > FE_MOST_CHANNELS || conv->groups < 1 ||
        conv->inputs % conv->groups || conv->outputs % conv->groups)
        return 0;
    for (int axis = 0; axis < 2; axis++) {
        const int64_t sizes[] = {size[axis], conv->kernel[axis], conv->stride[axis], conv->dilation[axis], conv->padding[axis]};
        for (int i = 0; i < 5; i++)
            if (sizes[i] < (i < 4) || sizes[i] > INT32_MAX / 4)
                return 0;
        if (conv->dilation[axis] > INT32_MAX / 4 / conv->kernel[axis] ||
            size[axis] + 2 * conv->padding[axis] < reach_of(conv, axis))
            return 0;
        int64_t length = size[axis] + 2 * conv->padding[axis];
        if (__builtin_mul_overflow(x, length, &x) || __builtin_mul_overflow(y, length, &y) ||
            __builtin_mul_overflow(weight, conv->kernel[axis], &weight))
            return 0;
    }
    /* A row of tiles' cells, whose places have 31 bits. */
    const int64_t rows = reach_of(conv, 0) + conv->stride[0], length = conv->width + 2 * conv->padding[1];
    if (rows > (INT32_MAX / MOST_CELL - length) / length)
        return 0;
    return !__builtin_mul_overflow(x, conv->images, &x) && !__builtin_mul_overflow(x, conv->inputs, &x) &&
           !__builtin_mul_overflow(y, conv->images, &y) && !__builtin_mul_overflow(y, conv->outputs, &y) &&
           !__builtin_mul_overflow(weight, conv->outputs, &weight) &&
           !__builtin_mul_overflow(weight, conv->inputs / conv->groups, &weight) && x <= INT64_C(1) << 33 &&
           y <= INT64_C(1) << 33 && weight <= INT64_C(1) << 33;
}

void fe_tiling_of(tiling *of, const sparse_version *version, const fe_conv *conv) {
    const int64_t size[2] = {conv->height, conv->width}, inputs = conv->inputs / conv->groups;
    const int is_one = conv->kernel[0] * conv->kernel[1] == 1;
    for (int axis = 0; axis < 2; axis++) {
        of->out[axis] = (size[axis] + 2 * conv->padding[axis] - reach_of(conv, axis)) / conv->stride[axis] + 1;
        of->step[axis] = conv->kernel[axis] == 1 ? 1 : conv->stride[axis];
        of->skip[axis] = conv->kernel[axis] == 1 ? conv->stride[axis] : 1;
    }
    of->cell = version->lanes * (is_one ? version->vectors_of_one : version->vectors);
    of->groups_of_block = conv->groups > 1 ? larger(1, smaller(of->cell / inputs, conv->groups)) : 1;
    of->blocks_of_group = ceiling_of(inputs, of->cell);
    of->blocks = ceiling_of(conv->groups, of->groups_of_block) * of->blocks_of_group;

    const int64_t width = (of->out[1] - 1) * of->step[1] + reach_of(conv, 1);
    of->pitch = of->skip[1] > 1 ? width : larger(conv->width + conv->padding[1], width - conv->padding[1]);
    const int64_t most = larger(1, (is_one ? version->bytes_of_one : version->bytes) / (4 * of->cell));
    const int64_t whole = larger((of->out[0] - 1) * of->step[0] + reach_of(conv, 0), of->out[0] * of->step[0]);
    of->images = 1;
    of->rows = of->out[0];
    if (whole * of->pitch <= most) {
        of->images = smaller(conv->images, most / (whole * of->pitch));
        of->images = ceiling_of(conv->images, ceiling_of(conv->images, of->images));
    } else {
        of->rows = larger(1, (most / of->pitch - reach_of(conv, 0)) / of->step[0] + 1);
        of->rows = ceiling_of(of->out[0], ceiling_of(of->out[0], of->rows));
    }
    of->tiles_of_image = ceiling_of(of->out[0], of->rows);
    of->tiles = ceiling_of(conv->images, of->images) * of->tiles_of_image;
    of->depth = larger((of->rows - 1) * of->step[0] + reach_of(conv, 0), of->rows * of->step[0]);
    of->cells = of->images * of->depth * of->pitch + width;
}

block fe_block_of(const tiling *of, const fe_conv *conv, int64_t i) {
    const int64_t inputs = conv->inputs / conv->groups;
    const int64_t in_group = i % of->blocks_of_group * of->cell, group = i / of->blocks_of_group * of->groups_of_block;
    const int64_t groups = smaller(of->groups_of_block, conv->groups - group);
    return (block){
        .channel = group * inputs + in_group,
        .channels = of->groups_of_block > 1 ? groups * inputs : smaller(of->cell, inputs - in_group),
        .in_group = in_group,
        .group = group,
        .groups = groups,
    };
}

int64_t fe_pixels_before(const tiling *of, const fe_conv *conv, int64_t tile) {
    const int64_t image = smaller(tile / of->tiles_of_image * of->images, conv->images);
    return (image * of->out[0] + tile % of->tiles_of_image * of->rows) * of->out[1];
}

int64_t fe_sparse_tiles(fe_isa ceiling, const fe_conv *conv) {
    tiling of;
    fe_tiling_of(&of, fe_sparse_version(ceiling), conv);
    return of.tiles;
}

typedef struct {
    const fe_lists *lists;
    const fe_nonzeros *from;
    const fe_conv *conv;
    tiling over;
    fe_chunks chunks;
    /* What is left before each chunk. */
    int64_t *before;
    atomic_int out_of_memory;
} lists_work;

/* The first of a chunk's non-zeros whose pixel is not before this one of the map. */
static int64_t lower_bound(const lists_work *work, int64_t chunk, int64_t pixel) {
    const uint32_t *places = work->from->places + chunk * work->chunks.room;
    const int64_t bound = (pixel - chunk * work->chunks.pixels) << FE_CHANNEL_BITS;
    int64_t low = 0, high = work->from->counts[chunk];
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (places[middle] < bound)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int64_t nonzeros_before(const lists_work *work, int64_t pixel) {
    const int64_t chunk = pixel / work->chunks.pixels;
    return chunk == work->chunks.chunks ? work->before[chunk] : work->before[chunk] + lower_bound(work, chunk, pixel);
}

/* Where each pixel of a tile has its first cell, in floats. */
static void find_cells(int32_t *cells, const tiling *over) {
    for (int64_t image = 0; image < over->images; image++)
        for (int64_t i = 0; i < over->rows; i++)
            for (int64_t j = 0; j < over->out[1]; j++)
                *cells++ = (int32_t)(((image * over->depth + i * over->step[0]) * over->pitch + j * over->step[1]) * over->cell);
}

static void list_tile(const lists_work *work, int64_t tile, const int32_t *cells, int32_t *next) {
    const fe_nonzeros *from = work->from;
    const int64_t outputs = from->channels, pixels = work->chunks.pixels;
    const int64_t begin = fe_pixels_before(&work->over, work->conv, tile);
    const int64_t end = fe_pixels_before(&work->over, work->conv, tile + 1);
    const int64_t first = begin / pixels, last = ceiling_of(end, pixels);
    fe_listed *entries = work->lists->entries;
    int32_t *starts = work->lists->starts + tile * (outputs + 1);
    memset(next, 0, (size_t)outputs * sizeof *next);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t chunk = first; chunk < last; chunk++) {
            const uint32_t *places = from->places + chunk * work->chunks.room;
            const float *values = from->values + chunk * work->chunks.room;
            const int64_t low = chunk == first ? lower_bound(work, chunk, begin) : 0;
            const int64_t high = chunk == last - 1 ? lower_bound(work, chunk, end) : from->counts[chunk];
            if (pass == 0) {
                for (int64_t i = low; i < high; i++)
                    next[places[i] % FE_MOST_CHANNELS]++;
                continue;
            }
            const int64_t before = chunk * pixels - begin;
            for (int64_t i = low; i < high; i++) {
                int32_t at = next[places[i] % FE_MOST_CHANNELS]++;
                entries[at] = (fe_listed){cells[before + (places[i] >> FE_CHANNEL_BITS)], values[i]};
            }
        }
        if (pass == 0) {
            int32_t total = (int32_t)nonzeros_before(work, begin);
            for (int64_t k = 0; k < outputs; k++) {
                int32_t count = next[k];
                starts[k] = next[k] = total;
                total += count;
            }
            starts[outputs] = total;
            /* They are written in the order of outputs' lists, line after line but never in a row. */
            for (int64_t i = starts[0]; i < total; i += LINE / (int64_t)sizeof *entries)
                __builtin_prefetch(entries + i, 1);
        }
    }
}

static void list_tiles(int64_t first, int64_t last, void *context) {
    lists_work *work = context;
    const int64_t pixels = work->over.images * work->over.rows * work->over.out[1];
    int32_t *memory = malloc((size_t)(pixels + work->from->channels) * sizeof *memory);
    if (!memory) {
        atomic_store(&work->out_of_memory, 1);
        return;
    }
    find_cells(memory, &work->over);
    for (int64_t tile = first; tile < last; tile++)
        list_tile(work, tile, memory, memory + pixels);
    free(memory);
}

int fe_sparse_lists(fe_isa ceiling, const fe_lists *lists, const fe_nonzeros *from, const fe_conv *conv) {
    lists_work work = {
        .lists = lists, .from = from, .conv = conv, .chunks = fe_chunks_of(from->pixels, from->channels)};
    fe_tiling_of(&work.over, fe_sparse_version(ceiling), conv);
    work.before = malloc((size_t)(work.chunks.chunks + 1) * sizeof *work.before);
    if (!work.before)
        return -1;
    work.before[0] = 0;
    for (int64_t i = 0; i < work.chunks.chunks; i++)
        work.before[i + 1] = work.before[i] + from->counts[i];
    int error = fe_parallel_for(work.over.tiles, 1, list_tiles, &work);
    free(work.before);
    return atomic_load(&work.out_of_memory) ? -1 : error;
}
