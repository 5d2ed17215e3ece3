/* Gradients of input and weight from the lists of a pruned gradient, tile by tile. */
#include "tiling.h"

#include "parallel.h"

#include <stdatomic.h>
#include <stdlib.h>

typedef struct {
    const sparse_version *version;
    const fe_lists *lists;
    const fe_nonzeros *from;
    const fe_conv *conv;
    const fe_sparse_weight *weight;
    const float *x;
    float *grad;
    tiling over;
    /* Parts that the outputs are divided into, and the tiles. */
    int64_t parts, slabs;
    /* The second slab's gradient. */
    float *other;
    /* Whether all blocks of a strip, which is all tiles of some images, come before the next one; else all strips of a block. */
    int by_strips;
    /* Floats from one tap's sums to the next, where `grad` is no gradient, but sums. */
    int64_t row;
    /* Of a pixel's channels that are swept over at a time. */
    int64_t stretches;
    atomic_int out_of_memory;
} work;

/* Non-zeros that make up for the loads, the stores and the unforeseen end of a loop over those of a pixel; with more channels at a
 * time, fewer of the weights that these look up stay in the nearest cache. */
enum { ENOUGH = 9 };

enum {
    /* Pixels for each weight of a filter that make a second gradient cheap, and weights that are worth a thread. */
    PIXELS = 2,
    GRAIN = 32768,
};

static int64_t stretches_of(const fe_nonzeros *from) {
    int64_t left = 1;
    for (int64_t i = 0, chunks = fe_chunks_of(from->pixels, from->channels).chunks; i < chunks; i++)
        left += from->counts[i];
    return larger(1, ENOUGH * from->pixels * from->channels / (FE_STRETCH * left));
}

/* Memory that begins on a cache line; `memory` is to be freed. */
static float *take_floats(int64_t count, void **memory) {
    *memory = malloc((size_t)count * sizeof(float) + LINE);
    return *memory ? (float *)(((uintptr_t)*memory + LINE - 1) / LINE * LINE) : NULL;
}

/* Some outputs' lists of a tile, one group of the block after the other. */
static void multiply(const work *of, int64_t tile, const block *channels, float *cells, int64_t part, int is_first) {
    const fe_conv *conv = of->conv;
    const tiling *over = &of->over;
    const int64_t inputs = conv->inputs / conv->groups, outputs = conv->outputs / conv->groups;
    product_job job = {
        .starts = of->lists->starts + tile * (conv->outputs + 1),
        .entries = of->lists->entries,
        .row = conv->dilation[0] * over->pitch * over->cell,
        .column = conv->dilation[1] * over->cell,
        .kernel = {conv->kernel[0], conv->kernel[1]},
        .channels = channels->groups > 1 ? inputs : channels->channels,
        .inputs = of->row ? of->row : inputs,
        .channel = of->row ? 0 : channels->in_group,
        .grad = of->grad,
        .is_first = is_first,
    };
    if (of->weight)
        job.weight = *of->weight;
    for (int64_t g = 0; g < channels->groups; g++) {
        const int64_t output = (channels->group + g) * outputs;
        job.cells = cells + g * inputs;
        job.first = output + part * outputs / of->parts;
        job.last = output + (part + 1) * outputs / of->parts;
        if (of->weight)
            of->version->scatter(&job);
        else
            of->version->gather(&job);
    }
}

/* The row of cells that a row of the input lies in, or -1 where no kernel reaches it. */
static int64_t cell_row(const work *of, int64_t row) {
    const int64_t at = row + of->conv->padding[0];
    return at % of->over.skip[0] ? -1 : at / of->over.skip[0];
}

/* Copies a row of the input's cells from the map, or, of sums, to it. */
static void copy_row(const work *of, float *map, float *cells, const block *channels, int to_map) {
    const fe_conv *conv = of->conv;
    const int64_t skip = of->over.skip[1], cell = of->over.cell, left = conv->padding[1];
    /* The first pixel that is a cell, and how many of those are in the map. */
    const int64_t first = ceiling_of(left, skip), pixel = first * skip - left;
    const int64_t there = pixel < conv->width ? (conv->width - 1 - pixel) / skip + 1 : 0;
    const int64_t count = smaller(there, larger(0, of->over.pitch - first));
    float *pixels = map + pixel * conv->inputs;
    if (to_map) {
        if (skip > 1 || count < there)
            for (int64_t w = 0; w < conv->width; w++)
                memset(map + w * conv->inputs, 0, (size_t)channels->channels * sizeof *map);
        of->version->copy(pixels, skip * conv->inputs, cells + first * cell, cell, count, channels->channels);
    } else {
        of->version->copy(cells + first * cell, cell, pixels, skip * conv->inputs, count, channels->channels);
    }
}

/* Sums are complete up to row `end` of the input: rows from `begin` on leave, the cells' first row being `top`. */
static void leave(const work *of, int64_t image, int64_t begin, int64_t end, int64_t top, float *cells, const block *channels) {
    const fe_conv *conv = of->conv;
    for (int64_t row = begin; row < end; row++) {
        float *map = of->grad + ((image * conv->height + row) * conv->width) * conv->inputs + channels->channel;
        const int64_t at = cell_row(of, row) - top;
        if (cell_row(of, row) >= 0 && at < of->over.depth)
            copy_row(of, map, cells + at * of->over.pitch * of->over.cell, channels, 1);
        else
            for (int64_t w = 0; w < conv->width; w++)
                memset(map + w * conv->inputs, 0, (size_t)channels->channels * sizeof *map);
    }
}

/* Goes on to the next taps, by threes where they lie side by side; begins with none. */
static int next_taps(taps *of, const fe_conv *conv) {
    const int64_t rows = conv->kernel[0], columns = conv->kernel[1], threes = conv->dilation[1] == 1 ? columns / 3 * 3 : 0;
    const int64_t squares = threes ? rows / 3 * 3 : 0;
    if (!of->rows)
        *of = (taps){0};
    else if (of->column + of->columns < (of->columns == 3 ? threes : columns))
        of->column += of->columns;
    else if (of->row + of->rows < rows)
        of->row += of->rows, of->column = of->columns == 3 ? 0 : threes;
    else if (of->columns == 3 && threes < columns)
        *of = (taps){.column = threes, .rows = 1, .columns = 1};
    else
        return 0;
    if (of->columns != 1) {
        of->columns = threes ? 3 : 1;
        of->rows = of->row < squares ? 3 : 1;
    }
    return 1;
}

/* The weights of a block of channels, in the order in which sweeps read them. */
static void take_panel(const work *of, const block *channels, float *panel) {
    panel_job job = {
        .weight = of->weight,
        .outputs = of->conv->outputs,
        .inputs = of->conv->inputs,
        .channel = channels->in_group,
        .channels = channels->channels,
        .kernel = {of->conv->kernel[0], of->conv->kernel[1]},
        .cell = of->over.cell,
        .panel = panel,
    };
    for (; next_taps(&job.of, of->conv); job.panel += job.of.rows * job.of.columns * job.outputs * job.cell)
        of->version->panel(&job);
}

/* One tile, some taps and channels of the output after the other. */
static void sweep(const work *of, int64_t tile, const float *panel, float *cells) {
    const tiling *over = &of->over;
    const fe_conv *conv = of->conv;
    const fe_chunks chunks = fe_chunks_of(of->from->pixels, of->from->channels);
    const int64_t row = over->pitch * over->cell;
    const int64_t begin = fe_pixels_before(over, conv, tile), end = fe_pixels_before(over, conv, tile + 1);
    sweep_job job = {
        .places = of->from->places,
        .values = of->from->values,
        .pixels = over->out[1],
        .bounds_of_pixel = chunks.bounds,
        .step = over->step[1] * over->cell,
        .row = conv->dilation[0] * row,
        .panel = panel,
        .one = conv->kernel[0] * conv->kernel[1] == 1,
    };
    for (; next_taps(&job.of, conv); job.panel += conv->outputs * job.pitch) {
        job.pitch = job.of.rows * job.of.columns * over->cell;
        float *first = cells + job.of.row * job.row + job.of.column * conv->dilation[1] * over->cell;
        for (job.first = 0; job.first < chunks.bounds - 1; job.first = job.last) {
            job.last = smaller(job.first + of->stretches, chunks.bounds - 1);
            for (int64_t pixel = begin, i = 0; pixel < end; pixel += over->out[1], i++) {
                job.bounds = of->from->bounds + pixel * chunks.bounds;
                job.cells = first + (i / over->rows * over->depth + i % over->rows * over->step[0]) * row;
                of->version->sweep(&job);
            }
        }
    }
}

/* All tiles of some images, one block of channels. */
static void add_up(const work *of, int64_t strip, const block *channels, const float *panel, float *cells) {
    const tiling *over = &of->over;
    const fe_conv *conv = of->conv;
    const int64_t row = over->pitch * over->cell, image = strip * over->images;
    const int64_t step = over->rows * over->step[0], kept = over->depth - step;
    memset(cells, 0, (size_t)(over->cells * over->cell) * sizeof *cells);
    int64_t begin = 0;
    for (int64_t i = 0; i < over->tiles_of_image; i++) {
        const int64_t top = i * step;
        if (panel)
            sweep(of, strip * over->tiles_of_image + i, panel, cells);
        else
            multiply(of, strip * over->tiles_of_image + i, channels, cells, 0, 0);
        int64_t end = conv->height;
        if (i + 1 < over->tiles_of_image)
            end = smaller(end, larger(begin, (top + step) * over->skip[0] - conv->padding[0]));
        for (int64_t n = 0; n < over->images && image + n < conv->images; n++)
            leave(of, image + n, begin, end, top, cells + n * over->depth * row, channels);
        begin = end;
        if (i + 1 < over->tiles_of_image) {
            memmove(cells, cells + step * row, (size_t)(kept * row) * sizeof *cells);
            memset(cells + kept * row, 0, (size_t)(over->cells * over->cell - kept * row) * sizeof *cells);
        }
    }
}

static void input_items(int64_t first, int64_t last, void *context) {
    work *of = context;
    const int64_t blocks = of->over.blocks, strips = of->over.tiles / of->over.tiles_of_image;
    const int64_t room = of->over.cells * of->over.cell;
    const int64_t floats = of->from ? of->conv->outputs * of->conv->kernel[0] * of->conv->kernel[1] * of->over.cell : 0;
    void *memory;
    float *cells = take_floats(room + (of->by_strips ? blocks : 1) * floats, &memory);
    if (!cells) {
        atomic_store(&of->out_of_memory, 1);
        return;
    }
    for (int64_t i = first, packed = 0; i < last; i++) {
        const int64_t at = of->by_strips ? i % blocks : i / strips;
        const block channels = fe_block_of(&of->over, of->conv, at);
        float *panel = floats ? cells + room + (of->by_strips ? at * floats : 0) : NULL;
        /* All blocks once, or each when its strips begin. */
        if (panel && (of->by_strips ? packed++ < blocks : i == first || i % strips == 0))
            take_panel(of, &channels, panel);
        add_up(of, of->by_strips ? i / blocks : i % strips, &channels, panel, cells);
    }
    free(memory);
}

/* Whether no panel and no cells are needed: a kernel of one tap, and nothing but whole cells. */
static int is_direct(const work *of) {
    const fe_conv *conv = of->conv;
    return conv->groups == 1 && conv->kernel[0] * conv->kernel[1] == 1 && !conv->padding[0] && !conv->padding[1] &&
           conv->inputs % of->over.cell == 0 && of->weight->floats;
}

/* Rows of the input whose sums lie in the map itself. */
static void direct_rows(int64_t first, int64_t last, void *context) {
    const work *of = context;
    const tiling *over = &of->over;
    const fe_conv *conv = of->conv;
    const int64_t floats = conv->width * conv->inputs;
    sweep_job job = {
        .places = of->from->places,
        .values = of->from->values,
        .pixels = over->out[1],
        .bounds_of_pixel = fe_chunks_of(of->from->pixels, of->from->channels).bounds,
        .step = over->skip[1] * conv->inputs,
        .pitch = conv->inputs,
        .one = 1,
    };
    job.last = job.bounds_of_pixel - 1;
    for (int64_t i = first; i < last; i++) {
        const int64_t image = i / conv->height, row = i % conv->height;
        memset(of->grad + i * floats, 0, (size_t)floats * sizeof *of->grad);
        if (row % over->skip[0])
            continue;
        job.bounds = of->from->bounds + (image * over->out[0] + row / over->skip[0]) * over->out[1] * job.bounds_of_pixel;
        for (int64_t c = 0; c < conv->inputs; c += over->cell) {
            job.cells = of->grad + i * floats + c;
            job.panel = of->weight->floats + c;
            of->version->sweep(&job);
        }
    }
}

int fe_sparse_needs_lists(const fe_conv *conv) { return conv->groups > 1; }

int fe_sparse_grad_input(fe_isa ceiling, float *grad, const fe_nonzeros *from, const fe_lists *lists,
                         const fe_sparse_weight *weight, const fe_conv *conv) {
    work of = {.version = fe_sparse_version(ceiling), .conv = conv, .weight = weight, .grad = grad, .parts = 1};
    if (fe_sparse_needs_lists(conv))
        of.lists = lists;
    else
        of.from = from, of.stretches = stretches_of(from);
    fe_tiling_of(&of.over, of.version, conv);
    if (is_direct(&of))
        return fe_parallel_for(conv->images * conv->height, 1, direct_rows, &of);
    /* Where weights are few. Maps go through the caches once, and threads that wrote to neighbouring channels would take lines from
     * each other. */
    of.by_strips = conv->outputs * conv->kernel[0] * conv->kernel[1] <= conv->images * conv->height * conv->width;
    int error = fe_parallel_for(of.over.tiles / of.over.tiles_of_image * of.over.blocks, 1, input_items, &of);
    return atomic_load(&of.out_of_memory) ? -1 : error;
}

/* The cells of a tile, one block of channels; those of the padding are 0 and stay so. */
static void fill(const work *of, int64_t tile, const block *channels, float *cells) {
    const tiling *over = &of->over;
    const fe_conv *conv = of->conv;
    const int64_t row = over->pitch * over->cell, image = tile / over->tiles_of_image * over->images;
    const int64_t top = tile % over->tiles_of_image * over->rows * over->step[0];
    for (int64_t n = 0; n < over->images && image + n < conv->images; n++)
        for (int64_t i = 0; i < over->depth; i++, cells += row) {
            const int64_t at = (top + i) * over->skip[0] - conv->padding[0];
            if (at < 0 || at >= conv->height) {
                memset(cells, 0, (size_t)row * sizeof *cells);
                continue;
            }
            /* Read only, whatever copy_row could do. */
            float *map = (float *)of->x + ((image + n) * conv->height + at) * conv->width * conv->inputs + channels->channel;
            copy_row(of, map, cells, channels, 0);
        }
}

/* Sums of a block of channels go to where they belong. */
static void spread(const work *of, float *grad, int64_t part, const block *channels, const float *sums) {
    const fe_conv *conv = of->conv;
    const int64_t taps = conv->kernel[0] * conv->kernel[1], cell = of->over.cell;
    const int64_t first = part * conv->outputs / of->parts * taps, last = (part + 1) * conv->outputs / of->parts * taps;
    float *to = grad + first * conv->inputs + channels->channel;
    of->version->copy(to, conv->inputs, sums + first * cell, cell, last - first, channels->channels);
}

static void weight_items(int64_t first, int64_t last, void *context) {
    work *of = context;
    const fe_conv *conv = of->conv;
    const int64_t room = of->over.cells * of->over.cell;
    /* Of several tiles: in the gradient itself, sums would lie in few of a cache's sets, and among another thread's. */
    const int is_apart = of->over.tiles > 1 && conv->groups == 1;
    const int64_t floats = is_apart ? conv->outputs * conv->kernel[0] * conv->kernel[1] * of->over.cell : 0;
    void *memory;
    float *cells = take_floats(room + floats, &memory);
    if (!cells) {
        atomic_store(&of->out_of_memory, 1);
        return;
    }
    work sums = *of;
    if (is_apart) {
        sums.grad = cells + room;
        sums.row = of->over.cell;
    }
    for (int64_t i = first; i < last; i++) {
        const int64_t part = i % of->parts, slab = i / of->parts / of->over.blocks;
        const int64_t begin = slab * of->over.tiles / of->slabs, end = (slab + 1) * of->over.tiles / of->slabs;
        const block channels = fe_block_of(&of->over, conv, i / of->parts % of->over.blocks);
        memset(cells, 0, (size_t)room * sizeof *cells);
        for (int64_t tile = begin; tile < end; tile++) {
            fill(of, tile, &channels, cells);
            multiply(&sums, tile, &channels, cells, part, tile == begin);
        }
        if (is_apart)
            spread(of, slab ? of->other : of->grad, part, &channels, sums.grad);
    }
    free(memory);
}

/* One output's gradients after the other. */
static void merge_slabs(int64_t first, int64_t last, void *context) {
    const work *of = context;
    const int64_t filter = of->conv->kernel[0] * of->conv->kernel[1] * of->conv->inputs;
    of->version->add(of->grad + first * filter, of->other + first * filter, (last - first) * filter);
}

int fe_sparse_grad_weight(fe_isa ceiling, float *grad, const fe_lists *lists, const float *x, const fe_conv *conv,
                          int64_t pieces) {
    work of = {.version = fe_sparse_version(ceiling), .lists = lists, .conv = conv, .x = x, .grad = grad, .slabs = 1};
    fe_tiling_of(&of.over, of.version, conv);
    const int64_t filter = conv->kernel[0] * conv->kernel[1] * conv->inputs;
    void *memory = NULL;
    /* Where weights are few, a thread does best with the lists that it has written itself. */
    if (conv->groups == 1 && of.over.tiles > 1 && conv->images * of.over.out[0] * of.over.out[1] >= PIXELS * filter) {
        of.slabs = 2;
        of.other = take_floats(conv->outputs * filter, &memory);
        if (!of.other)
            return -1;
    }
    of.parts = larger(1, smaller(conv->outputs / conv->groups, ceiling_of(pieces, of.slabs * of.over.blocks)));
    int error = fe_parallel_for(of.slabs * of.over.blocks * of.parts, 1, weight_items, &of);
    if (!error && of.slabs > 1 && !atomic_load(&of.out_of_memory))
        error = fe_parallel_for(conv->outputs, ceiling_of(GRAIN, filter), merge_slabs, &of);
    free(memory);
    return atomic_load(&of.out_of_memory) ? -1 : error;
}
