/* The backward pass of a convolution by low frequencies. Images are taken in slabs, whose spectra are found once; then each
 * piece of work forms the gradient of the input for one panel of channels, band by band, and that of the weight for some
 * pairs of channels. Spectrum of the weight, products and their sums belong to a panel, and never exist as a whole. */
#include "common.h"
#include "parallel.h"

#include <string.h>

enum {
    /* Channels of a panel: whole vectors of every instruction set. */
    PANEL = 64,
    MOST_LANES = 16,
    /* Floats between rows: without them, rows that are powers of two apart would meet in the same few lines of a cache. */
    GAP = 16,
    /* Output channels whose gradient of the weight is formed at a time: their sums of products stay in cache. */
    OUTPUTS = 32,
    /* So many points are multiplied with a panel of outputs at a time, when there are no more: their products stay in cache. */
    FEW_POINTS = 64,
    /* Points of a product that are summed up at a time, so that both factors stay in the first cache. */
    INNER = 128,
};

typedef struct {
    const tile_version *version;
    const fe_spectral_conv *conv;
    /* Of gradient, input and weight, whose frequencies are the same. */
    wave_slots slots[MOST_FREQUENCIES];
    fe_division division;
    /* The slab, and its spectra of gradient and input. */
    int64_t first_image, images;
    float *of_grad, *of_x, *scratch;
    int64_t piece_floats;
} conv_work;

/* A panel's channels, and how many panels come before it. */
typedef struct {
    int64_t first, end, width, number;
} panel;

static int64_t panels_of(int64_t channels) { return (channels + PANEL - 1) / PANEL; }

static panel panel_of(const conv_work *work, int64_t channels, int64_t i) {
    int64_t first = i * PANEL, end = first + PANEL < channels ? first + PANEL : channels, lanes = work->version->lanes;
    return (panel){first, end, (end - first + lanes - 1) / lanes * lanes, i};
}

static int64_t padded(int64_t channels) { return (channels + MOST_LANES - 1) / MOST_LANES * MOST_LANES; }
static int64_t rows_of(const conv_work *work) { return 1 + 3 * work->conv->x->frequencies; }
static int64_t points_of(const fe_tiling *tiling) { return tiling->tiles[0] * tiling->tiles[1]; }
static int64_t slab_points(const conv_work *work) { return work->division.slab_images * points_of(work->conv->x); }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* From one row of a panel to the next, which hold so many points. */
static int64_t stride_of(panel of, int64_t points) { return of.width * points + GAP; }

/* A panel of the slab's spectra. */
static float *spectra_of(const conv_work *work, float *spectra, panel of) {
    return spectra + rows_of(work) * (of.first * slab_points(work) + of.number * GAP);
}

/* Floats of the slab's spectra, and those that each piece has for itself: a panel of the weight's spectrum and products of a
 * band, or products of pairs of channels; and some taps. */
static int scratch_floats(const fe_spectral_conv *conv, fe_division division, int64_t *shared, int64_t *own) {
    int64_t rows = 1 + 3 * conv->x->frequencies, outputs = padded(conv->y->channels), inputs = padded(conv->x->channels);
    int64_t points, own_points, taps = conv->taps->height * conv->taps->width * OUTPUTS;
    int64_t gaps = GAP * (panels_of(outputs) + panels_of(inputs));
    return !__builtin_mul_overflow(points_of(conv->x), division.slab_images, &points) &&
           !__builtin_mul_overflow(points, outputs + inputs, shared) && !__builtin_add_overflow(*shared, gaps, shared) &&
           !__builtin_mul_overflow(*shared, rows, shared) &&
           !__builtin_mul_overflow(conv->x->tiles[1], division.band_rows, &own_points) &&
           !__builtin_add_overflow(own_points, panels_of(outputs) * (PANEL + 1) + OUTPUTS + 1, own) &&
           !__builtin_mul_overflow(*own, rows, own) &&
           !__builtin_add_overflow(*own, taps, own) && !__builtin_mul_overflow(*own, PANEL, own);
}

int64_t fe_spectral_scratch(const fe_spectral_conv *conv, fe_division division) {
    int64_t shared, all;
    if (!scratch_floats(conv, division, &shared, &all) || __builtin_mul_overflow(all, division.pieces, &all) ||
        __builtin_add_overflow(all, shared, &all) || all > INT64_MAX / (int64_t)sizeof(float))
        return -1;
    return all;
}

/* Whether the saved spectra are laid out as a panel already, all but the differences of both parts. */
static int is_panel(const conv_work *work, panel of) { return of.width == work->conv->x->channels; }

/* Lays the saved spectra of a row of windows out in panels, with the differences of both parts. */
static void pack_row(const conv_work *work, int64_t first_point) {
    const fe_tiling *x = work->conv->x;
    const int64_t kept = x->frequencies, channels = x->channels;
    const int64_t a_row = x->images * points_of(x) * channels, local = first_point - work->first_image * points_of(x);
    for (int64_t i = 0; i < panels_of(channels); i++) {
        panel of = panel_of(work, channels, i);
        const int64_t stride = stride_of(of, slab_points(work)), count = of.end - of.first;
        for (int64_t row = is_panel(work, of) ? 1 + 2 * kept : 0; row < rows_of(work); row++)
            for (int64_t q = 0; q < x->tiles[1]; q++) {
                float *to = spectra_of(work, work->of_x, of) + row * stride + (local + q) * of.width;
                const float *from = work->conv->spectra + (first_point + q) * channels + of.first;
                if (row > 2 * kept)
                    work->version->subtract(to, from + (row - kept) * a_row, from + (row - 2 * kept) * a_row, count);
                else
                    memcpy(to, from + row * a_row, (size_t)count * sizeof *to);
                for (int64_t c = count; c < of.width; c++)
                    to[c] = 0.0f;
            }
    }
}

static void find_spectra(int64_t first, int64_t last, void *context) {
    const conv_work *work = context;
    const fe_spectral_conv *conv = work->conv;
    const fe_tiling *y = conv->y;
    /* A frequency stands for its opposite, too; the constant does not. */
    const float part = 2.0f / (float)conv->cells;
    for (int64_t i = first; i < last; i++) {
        int64_t image = work->first_image + i / y->tiles[0], p = i % y->tiles[0];
        for (int64_t j = 0; j < panels_of(y->channels); j++) {
            panel of = panel_of(work, y->channels, j);
            tile_job job = {.tiling = y,
                            .slots = work->slots,
                            .map = conv->grad,
                            .spectra = spectra_of(work, work->of_grad, of),
                            .rows = {of.width, stride_of(of, slab_points(work)), work->first_image * points_of(y)},
                            .sums = 1,
                            .constant_scale = 0.5f * part,
                            .scale = part};
            work->version->analyse_row(&job, image, p, of.first, of.end);
        }
        if (conv->grad_weight)
            pack_row(work, (image * y->tiles[0] + p) * y->tiles[1]);
    }
}

/* Where the taps of an output and the first of a panel's inputs lie, if taps are innermost. */
static int64_t pairs_at(const fe_tiling *taps, int64_t output, panel of) {
    return (output * taps->channels + of.first) * taps->height * taps->width;
}

/* Copies the taps of some outputs and a panel of inputs, so that inputs are innermost. */
static void take_taps(const conv_work *work, float *taps, int64_t first, int64_t last, panel of) {
    const fe_tiling *cut = work->conv->taps;
    const int64_t area = cut->height * cut->width, inputs = of.end - of.first;
    for (int64_t o = first; o < last; o++, taps += area * inputs) {
        const float *pairs = work->conv->weight + pairs_at(cut, o, of);
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t t = 0; t < area; t++)
                taps[t * inputs + i] = pairs[i * area + t];
    }
}

/* The way back: the first slab's are stored, those of the others added. */
static void give_taps(const conv_work *work, const float *taps, int64_t first, int64_t last, panel of) {
    const fe_tiling *cut = work->conv->taps;
    const int64_t area = cut->height * cut->width, inputs = of.end - of.first;
    for (int64_t o = first; o < last; o++, taps += area * inputs) {
        float *pairs = work->conv->grad_weight + pairs_at(cut, o, of);
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t t = 0; t < area; t++)
                pairs[i * area + t] = taps[t * inputs + i] + (work->first_image ? pairs[i * area + t] : 0.0f);
    }
}

/* The spectrum of the weights between two panels, (row, output, input). */
static void find_weight_spectrum(const conv_work *work, float *spectrum, float *taps, panel from, panel of) {
    const fe_spectral_conv *conv = work->conv;
    tile_job job = {.tiling = conv->taps,
                    .slots = work->slots,
                    .map = conv->weight,
                    .spectra = spectrum,
                    .rows = {of.width, stride_of(of, from.end - from.first), from.first},
                    .sums = 1,
                    .constant_scale = 1.0f,
                    .scale = 1.0f};
    if (conv->inputs_innermost) {
        for (int64_t o = from.first; o < from.end; o++)
            work->version->analyse_row(&job, o, 0, of.first, of.end);
        return;
    }
    fe_tiling few = *conv->taps;
    few.channels = of.end - of.first;
    job.tiling = &few;
    job.map = taps;
    job.rows.first = 0;
    for (int64_t first = from.first; first < from.end; first += OUTPUTS) {
        int64_t last = smaller(first + OUTPUTS, from.end);
        take_taps(work, taps, first, last, of);
        job.spectra = spectrum + (first - from.first) * of.width;
        for (int64_t o = 0; o < last - first; o++)
            work->version->analyse_row(&job, o, 0, 0, few.channels);
    }
}

/* A band: rows of windows whose products for a panel of inputs are formed together. Where it is all that the weight's
 * spectrum is for, this is found on the way, and else known for all panels of outputs. */
typedef struct {
    int64_t first, last;
    panel of;
    int is_alone;
    float *spectrum, *products;
} band;

static void multiply_row(const conv_work *work, const band *b, int64_t row, panel from, const float *spectrum) {
    const int64_t columns = work->conv->x->tiles[1], points = (b->last - b->first) * columns;
    const int64_t local = b->first * columns - work->first_image * points_of(work->conv->x), outputs = from.end - from.first;
    const float *grad = spectra_of(work, work->of_grad, from) + row * stride_of(from, slab_points(work)) + local * from.width;
    work->version->multiply(b->products + row * stride_of(b->of, points), b->of.width, grad, from.width, 1,
                            spectrum + row * stride_of(b->of, outputs), b->of.width, points, outputs, b->of.width,
                            from.number > 0);
}

static void form_products(const conv_work *work, const band *b) {
    const int64_t rows = rows_of(work), panels = panels_of(work->conv->y->channels);
    for (int64_t i = 0; b->is_alone && i < panels; i++) {
        panel from = panel_of(work, work->conv->y->channels, i);
        float *taps = b->products + rows * stride_of(b->of, (b->last - b->first) * work->conv->x->tiles[1]);
        find_weight_spectrum(work, b->spectrum, taps, from, b->of);
        for (int64_t row = 0; row < rows; row++)
            multiply_row(work, b, row, from, b->spectrum);
    }
    for (int64_t row = 0; !b->is_alone && row < rows; row++)
        for (int64_t i = 0; i < panels; i++)
            multiply_row(work, b, row, panel_of(work, work->conv->y->channels, i),
                         b->spectrum + i * rows * stride_of(b->of, PANEL));
}

static void form_band(const conv_work *work, const band *b) {
    const fe_tiling *x = work->conv->x;
    form_products(work, b);
    tile_job job = {.tiling = x,
                    .slots = work->slots,
                    .products = b->products,
                    .out = work->conv->grad_x,
                    .rows = {b->of.width, stride_of(b->of, (b->last - b->first) * x->tiles[1]), b->first * x->tiles[1]},
                    .adds = !fe_covers_map(x)};
    for (int64_t row = b->first; row < b->last; row++) {
        int64_t image = row / x->tiles[0], p = row % x->tiles[0];
        if (job.adds && p == 0)
            fe_clear_channels(job.out, x, image, b->of.first, b->of.end);
        work->version->synthesise_row(&job, image, p, b->of.first, b->of.end);
    }
}

/* How many groups images are divided into, so that panels and groups are as many as pieces, or a multiple. */
static int64_t groups_of(const conv_work *work) {
    int64_t panels = panels_of(work->conv->x->channels), groups = 1;
    while (groups < work->images && panels * groups % work->division.pieces != 0)
        groups++;
    return groups;
}

/* Whether a group's products are all that the weight's spectrum is for. Groups of a panel share it, so that the largest one
 * decides for all of them. */
static int are_alone(const conv_work *work) {
    const fe_tiling *x = work->conv->x;
    const int64_t groups = groups_of(work), rows = (work->images + groups - 1) / groups * x->tiles[0];
    return panels_of(work->conv->y->channels) > 1 && rows <= work->division.band_rows && rows * x->tiles[1] <= FEW_POINTS;
}

/* One panel of grad_x for some images, whose rows of windows are [first, last). */
static void form_panel(const conv_work *work, float *scratch, panel of, int64_t first, int64_t last, int is_new) {
    const int64_t outputs = work->conv->y->channels, panels = panels_of(outputs), step = work->division.band_rows;
    const int64_t a_block = rows_of(work) * stride_of(of, PANEL);
    band b = {.of = of,
              .is_alone = are_alone(work),
              .spectrum = scratch,
              .products = scratch + panels * rows_of(work) * (PANEL * PANEL + GAP)};
    for (int64_t i = 0; is_new && !b.is_alone && i < panels; i++)
        find_weight_spectrum(work, b.spectrum + i * a_block, b.products, panel_of(work, outputs, i), of);
    for (b.first = first; b.first < last; b.first = b.last) {
        b.last = smaller(b.first + step, last);
        form_band(work, &b);
    }
}

static void form_grad_x(int64_t first, int64_t last, void *context) {
    const conv_work *work = context;
    const fe_tiling *x = work->conv->x;
    const int64_t groups = groups_of(work), units = panels_of(x->channels) * groups, pieces = work->division.pieces;
    for (int64_t piece = first; piece < last; piece++) {
        int64_t begin = units * piece / pieces, end = units * (piece + 1) / pieces;
        for (int64_t unit = begin; unit < end; unit++) {
            int64_t group = unit % groups, image = work->first_image + work->images * group / groups;
            int64_t past = work->first_image + work->images * (group + 1) / groups;
            form_panel(work, work->scratch + piece * work->piece_floats, panel_of(work, x->channels, unit / groups),
                       image * x->tiles[0], past * x->tiles[0], unit == begin || group == 0);
        }
    }
}

/* Some outputs' gradient of the weight for one panel of inputs. */
static void form_pairs(const conv_work *work, float *gram, int64_t first, int64_t last, panel of) {
    const fe_spectral_conv *conv = work->conv;
    const int64_t rows = rows_of(work), points = work->images * points_of(conv->x);
    panel from = panel_of(work, conv->y->channels, first / PANEL);
    const int64_t of_grad = stride_of(from, slab_points(work)), of_x = stride_of(of, slab_points(work));
    float *taps = gram + rows * (OUTPUTS * PANEL + GAP);
    const float *grad = spectra_of(work, work->of_grad, from) + first - from.first;
    for (int64_t row = 0; row < rows; row++) {
        const float *x = spectra_of(work, work->of_x, of) + row * of_x;
        if (is_panel(work, of) && row <= 2 * conv->x->frequencies)
            x = conv->spectra + (row * conv->x->images + work->first_image) * points_of(conv->x) * of.width;
        for (int64_t k = 0; k < points; k += INNER)
            work->version->multiply(gram + row * stride_of(of, OUTPUTS), of.width, grad + row * of_grad + k * from.width, 1,
                                    from.width, x + k * of.width, of.width, last - first, smaller(INNER, points - k),
                                    of.width, k > 0);
    }
    tile_job job = {.tiling = conv->taps,
                    .slots = work->slots,
                    .products = gram,
                    .out = conv->grad_weight,
                    .rows = {of.width, stride_of(of, OUTPUTS), first},
                    .conjugate = 1,
                    .adds = work->first_image > 0};
    if (conv->inputs_innermost) {
        for (int64_t o = first; o < last; o++)
            work->version->synthesise_row(&job, o, 0, of.first, of.end);
        return;
    }
    fe_tiling few = *conv->taps;
    few.channels = of.end - of.first;
    job.tiling = &few;
    job.out = taps;
    job.rows.first = 0;
    job.adds = 0;
    for (int64_t o = 0; o < last - first; o++)
        work->version->synthesise_row(&job, o, 0, 0, few.channels);
    give_taps(work, taps, first, last, of);
}

static void form_grad_weight(int64_t first, int64_t last, void *context) {
    const conv_work *work = context;
    const int64_t inputs = work->conv->x->channels, outputs = work->conv->y->channels;
    const int64_t blocks = (outputs + OUTPUTS - 1) / OUTPUTS, units = panels_of(inputs) * blocks;
    for (int64_t piece = first; piece < last; piece++) {
        float *gram = work->scratch + piece * work->piece_floats;
        for (int64_t unit = units * piece / work->division.pieces; unit < units * (piece + 1) / work->division.pieces; unit++) {
            int64_t begin = unit % blocks * OUTPUTS;
            form_pairs(work, gram, begin, smaller(begin + OUTPUTS, outputs), panel_of(work, inputs, unit / blocks));
        }
    }
}

int fe_spectral_backward(fe_isa ceiling, const fe_spectral_conv *conv, fe_division division, float *scratch) {
    conv_work work = {.version = fe_tile_version(ceiling), .conv = conv, .division = division, .of_grad = scratch};
    int64_t shared = 0;
    scratch_floats(conv, division, &shared, &work.piece_floats);
    work.of_x = scratch + rows_of(&work) * (slab_points(&work) * padded(conv->y->channels) +
                                        GAP * panels_of(conv->y->channels));
    work.scratch = scratch + shared;
    int error = 0;
    fe_find_slots(work.slots, conv->x);
    for (int64_t image = 0; image < conv->x->images && !error; image += division.slab_images) {
        work.first_image = image;
        work.images = smaller(division.slab_images, conv->x->images - image);
        error = fe_parallel_for(work.images * conv->y->tiles[0], work.division.pieces > 1 ? 1 : INT64_MAX, find_spectra, &work);
        if (!error && conv->grad_x)
            error = fe_parallel_for(division.pieces, 1, form_grad_x, &work);
        if (!error && conv->grad_weight)
            error = fe_parallel_for(division.pieces, 1, form_grad_weight, &work);
    }
    return error;
}
