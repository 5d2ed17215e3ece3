/* Every version of the spectra's kernels that this CPU offers, against sums in double that are written down from their
 * definition. Exits 1 on a mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "check.h"
#include "parallel.h"
#include "spectrum/spectrum.h"

#include <math.h>
#include <string.h>

enum { MOST = 1 << 18, MARGIN = 64, MOST_FREQUENCIES = 40, CELLS = FE_WIDEST_WINDOW * FE_WIDEST_WINDOW };

typedef struct {
    int64_t images, channels, height, width;
    int64_t tiles[2], step[2], offset[2], window[2];
    /* Periods of the slowest wave, in cells. */
    double period[2];
    int64_t highest[2], kept;
} shape;

/* Windows that tile the map, overlap, leave gaps, lie partly or wholly outside; odd and even ones; the highest frequencies
 * that have kernels of their own (2 and 3) and others; kept ones with the highest missing. */
static const shape shapes[] = {
    {2, 16, 8, 8, {2, 2}, {4, 4}, {0, 0}, {4, 4}, {4, 4}, {1, 1}, 4},
    {1, 1, 9, 11, {3, 3}, {3, 4}, {1, 1}, {5, 6}, {5, 6}, {2, 2}, 12},
    {2, 7, 10, 7, {2, 1}, {5, 7}, {1, 1}, {7, 9}, {7, 9}, {3, 3}, 10},
    {1, 15, 6, 9, {2, 3}, {3, 3}, {-1, 2}, {3, 5}, {3, 5}, {1, 2}, 7},
    {3, 31, 5, 6, {3, 2}, {2, 3}, {4, 3}, {4, 5}, {8, 10}, {2, 2}, 9},
    {1, 33, 12, 5, {3, 4}, {4, 2}, {9, 6}, {6, 3}, {6.5, 3}, {2, 1}, 6},
    {2, 97, 4, 4, {1, 1}, {8, 8}, {2, 2}, {8, 8}, {15, 15}, {2, 2}, 10},
    {1, 64, 6, 6, {2, 2}, {3, 3}, {0, 0}, {3, 3}, {5, 5}, {3, 3}, 24},
    {1, 130, 5, 5, {2, 2}, {3, 3}, {1, 1}, {5, 5}, {5, 5}, {2, 2}, 5},
    {1, 17, 3, 40, {1, 3}, {1, 14}, {0, 2}, {1, 32}, {1, 32}, {0, 7}, 7},
    {1, 5, 35, 2, {2, 2}, {16, 1}, {3, 0}, {31, 1}, {31, 1}, {7, 0}, 6},
    {2, 9, 17, 16, {1, 1}, {15, 15}, {-1, 0}, {15, 15}, {15, 15}, {7, 7}, 40},
    {1, 3, 3, 3, {2, 2}, {1, 1}, {-4, 5}, {2, 2}, {3, 3}, {1, 1}, 3},
    {1, 8, 3, 4, {3, 3}, {5, 6}, {6, 7}, {3, 3}, {3, 3}, {1, 1}, 4},
    {2, 24, 4, 4, {2, 2}, {2, 2}, {0, 0}, {2, 2}, {2, 2}, {0, 0}, 0},
    {1, 12, 7, 7, {2, 2}, {4, 4}, {1, 1}, {6, 6}, {6, 6}, {3, 2}, 1},
};

static float map[MOST + 2 * MARGIN], products[MOST + 2 * MARGIN], out[MOST + MARGIN], again[MOST + MARGIN];
static int failures;

static void fail(const char *what, fe_isa isa, const shape *s) {
    printf("FAIL %s: %s, %ldx%ldx%ldx%ld, windows of %ldx%ld, %ld frequencies\n", what, fe_isa_name(isa), (long)s->images,
           (long)s->channels, (long)s->height, (long)s->width, (long)s->window[0], (long)s->window[1], (long)s->kept);
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last -= 3)
        task(last - 3 > begin ? last - 3 : begin, last, context);
    return 0;
}

typedef struct {
    fe_tiling tiling;
    float waves[2][(2 * FE_HIGHEST + 1) * ((FE_WIDEST_WINDOW + 1) / 2)];
    signed char frequencies[2 * MOST_FREQUENCIES];
    /* Of every frequency at every cell of a window. */
    double cosine[MOST_FREQUENCIES][CELLS], sine[MOST_FREQUENCIES][CELLS];
} tiles;

static double place(const shape *s, int axis, int64_t cell) {
    return 2 * acos(-1.0) / s->period[axis] * ((double)cell - (double)(s->window[axis] - 1) / 2);
}

/* `of` is filled in, since its tiling points into it. */
static void cut(tiles *of, const shape *s) {
    for (int axis = 0; axis < 2; axis++) {
        int64_t half = (s->window[axis] + 1) / 2, highest = s->highest[axis];
        for (int64_t h = 0; h < half; h++)
            for (int64_t f = 0; f <= highest; f++) {
                float *waves = of->waves[axis] + h * (2 * highest + 1);
                waves[f] = (float)cos((double)f * place(s, axis, h));
                if (f)
                    waves[highest + f] = (float)sin((double)f * place(s, axis, h));
            }
    }
    int64_t kept = 0;
    for (int64_t f = s->highest[0]; f >= 0; f--)
        for (int64_t g = -s->highest[1]; g <= s->highest[1] && kept < s->kept; g++) {
            if (!f && !g)
                continue;
            of->frequencies[2 * kept] = (signed char)f;
            of->frequencies[2 * kept + 1] = (signed char)g;
            for (int64_t i = 0; i < s->window[0]; i++)
                for (int64_t j = 0; j < s->window[1]; j++) {
                    double angle = (double)f * place(s, 0, i) + (double)g * place(s, 1, j);
                    of->cosine[kept][i * s->window[1] + j] = cos(angle);
                    of->sine[kept][i * s->window[1] + j] = sin(angle);
                }
            kept++;
        }
    of->tiling = (fe_tiling){
        .images = s->images,
        .channels = s->channels,
        .height = s->height,
        .width = s->width,
        .tiles = {s->tiles[0], s->tiles[1]},
        .step = {s->step[0], s->step[1]},
        .offset = {s->offset[0], s->offset[1]},
        .window = {s->window[0], s->window[1]},
        .highest = {s->highest[0], s->highest[1]},
        .waves = {of->waves[0], of->waves[1]},
        .frequencies = kept,
        .waves_of = of->frequencies,
    };
}

static int near(double value, double expected, double magnitude) {
    return fabs(value - expected) <= 1e-5 * magnitude + 1e-30;
}

/* Where a cell of a window is in the map, in floats; -1 outside. */
static int64_t cell_at(const shape *s, int64_t n, int64_t p, int64_t q, int64_t i, int64_t j) {
    int64_t h = p * s->step[0] - s->offset[0] + i, w = q * s->step[1] - s->offset[1] + j;
    if (h < 0 || h >= s->height || w < 0 || w >= s->width)
        return -1;
    return ((n * s->height + h) * s->width + w) * s->channels;
}

static int64_t points_of(const shape *s) { return s->images * s->tiles[0] * s->tiles[1]; }

/* One coefficient: row 0 is the constant, then come cosine parts, sine parts, and sums of both. */
static int coefficient_is_right(const float *received, const float *x, const tiles *of, const shape *s, int64_t row,
                                int64_t point, int64_t c) {
    int64_t kept = of->tiling.frequencies, k = row ? (row - 1) % kept : 0, kind = row ? (row - 1) / kept : -1;
    int64_t n = point / (s->tiles[0] * s->tiles[1]), p = point / s->tiles[1] % s->tiles[0], q = point % s->tiles[1];
    double sum = 0.0, magnitude = 0.0;
    for (int64_t i = 0; i < s->window[0]; i++)
        for (int64_t j = 0; j < s->window[1]; j++) {
            int64_t at = cell_at(s, n, p, q, i, j), cell = i * s->window[1] + j;
            if (at < 0)
                continue;
            double wave = kind < 0 ? 1.0 : kind == 1 ? 0.0 : of->cosine[k][cell];
            wave += kind > 0 ? of->sine[k][cell] : 0.0;
            sum += wave * (double)x[at + c];
            magnitude += fabs((double)x[at + c]);
        }
    return near(received[(row * points_of(s) + point) * s->channels + c], sum, magnitude);
}

static int spectra_are_right(const float *received, const float *x, const tiles *of, const shape *s, int64_t rows) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t point = 0; point < points_of(s); point++)
            for (int64_t c = 0; c < s->channels; c++)
                if (!coefficient_is_right(received, x, of, s, row, point, c))
                    return 0;
    return 1;
}

/* What one window adds to all its cells of one channel. */
static void add_window(double *sums, double *magnitudes, const float *in, const tiles *of, const shape *s, int64_t point,
                       int64_t c) {
    int64_t n = point / (s->tiles[0] * s->tiles[1]), p = point / s->tiles[1] % s->tiles[0], q = point % s->tiles[1];
    int64_t kept = of->tiling.frequencies, a_row = points_of(s) * s->channels;
    const float *first = in + point * s->channels + c;
    for (int64_t i = 0; i < s->window[0]; i++)
        for (int64_t j = 0; j < s->window[1]; j++) {
            int64_t at = cell_at(s, n, p, q, i, j), cell = i * s->window[1] + j;
            if (at < 0)
                continue;
            sums[at + c] += (double)first[0];
            magnitudes[at + c] += fabs((double)first[0]);
            for (int64_t k = 0; k < kept; k++) {
                double u = (double)first[(1 + k) * a_row], w = (double)first[(1 + kept + k) * a_row];
                double v = (double)first[(1 + 2 * kept + k) * a_row];
                sums[at + c] += (u - w) * of->cosine[k][cell] + (v - u - w) * of->sine[k][cell];
                magnitudes[at + c] += 2 * fabs(u) + 2 * fabs(w) + fabs(v);
            }
        }
}

static int map_is_right(const float *received, const float *in, const tiles *of, const shape *s) {
    int64_t cells = s->images * s->height * s->width * s->channels;
    double *sums = calloc((size_t)cells, sizeof *sums), *magnitudes = calloc((size_t)cells, sizeof *magnitudes);
    int right = sums && magnitudes;
    for (int64_t point = 0; right && point < points_of(s); point++)
        for (int64_t c = 0; c < s->channels; c++)
            add_window(sums, magnitudes, in, of, s, point, c);
    for (int64_t i = 0; right && i < cells; i++)
        right = near(received[i], sums[i], magnitudes[i]);
    free(sums);
    free(magnitudes);
    return right;
}

static float *guarded(float *buffer, int64_t count) {
    for (int64_t i = 0; i < count + MARGIN; i++)
        buffer[i] = -77.0f;
    return buffer;
}

static int is_intact(const float *buffer, int64_t count) {
    for (int64_t i = 0; i < MARGIN; i++)
        if (buffer[count + i] != -77.0f)
            return 0;
    return 1;
}

/* Random numbers between NaNs: whatever is read beside them shows in every sum. */
static const float *fenced(float *buffer, int64_t count, uint64_t *state) {
    for (int64_t i = 0; i < count + 2 * MARGIN; i++)
        buffer[i] = i < MARGIN || i >= count + MARGIN ? NAN : check_random(state);
    return buffer + MARGIN;
}

static void check(fe_isa isa, const shape *s, uint64_t *state) {
    static tiles of;
    cut(&of, s);
    if (!fe_tiling_is_valid(&of.tiling) || of.tiling.frequencies != s->kept) {
        fail("refused", isa, s);
        return;
    }
    int64_t cells = s->images * s->height * s->width * s->channels, row = points_of(s) * s->channels;
    int64_t spectra = (1 + 2 * s->kept) * row, with_sums = (1 + 3 * s->kept) * row;
    const float *x = fenced(map, cells, state), *in = fenced(products, with_sums, state);

    fe_analyse(isa, guarded(out, with_sums), x, &of.tiling, 1);
    if (!spectra_are_right(out, x, &of, s, 1 + 3 * s->kept) || !is_intact(out, with_sums))
        fail("spectra", isa, s);
    fe_set_parallel_for(backwards);
    fe_analyse(isa, guarded(again, spectra), x, &of.tiling, 0);
    fe_set_parallel_for(NULL);
    if (memcmp(out, again, (size_t)spectra * sizeof *out) != 0 || !is_intact(again, spectra))
        fail("spectra split otherwise, without sums", isa, s);

    fe_synthesise(isa, guarded(out, cells), in, &of.tiling);
    if (!map_is_right(out, in, &of, s) || !is_intact(out, cells))
        fail("map", isa, s);
    fe_set_parallel_for(backwards);
    fe_synthesise(isa, guarded(again, cells), in, &of.tiling);
    fe_set_parallel_for(NULL);
    if (memcmp(out, again, (size_t)cells * sizeof *out) != 0)
        fail("map split otherwise", isa, s);
}

#include "spectral_backward.h"

static void refuse(const char *what, const fe_tiling *tiling) {
    if (!fe_tiling_is_valid(tiling))
        return;
    printf("FAIL accepted: %s\n", what);
    failures++;
}

#define REFUSE(change)                                                                                                 \
    do {                                                                                                               \
        fe_tiling t = good;                                                                                            \
        change;                                                                                                        \
        refuse(#change, &t);                                                                                           \
    } while (0)

static void check_what_is_refused(void) {
    static tiles of;
    static const signed char too_high[] = {1, 3}, rows_below_0[] = {-1, 1};
    const int64_t huge = (int64_t)1 << 61;
    cut(&of, &shapes[1]);
    const fe_tiling good = of.tiling;
    REFUSE(t.images = -1);
    REFUSE(t.channels = -1);
    REFUSE(t.height = -1);
    REFUSE(t.width = -1);
    REFUSE(t.tiles[1] = 0);
    REFUSE(t.step[0] = 0);
    REFUSE(t.window[1] = 0);
    REFUSE(t.window[0] = FE_WIDEST_WINDOW + 1);
    REFUSE(t.highest[0] = -1);
    REFUSE(t.highest[1] = FE_HIGHEST + 1);
    REFUSE(t.frequencies = -1);
    REFUSE(t.frequencies = 1000);
    REFUSE((t.frequencies = 1, t.waves_of = too_high));
    REFUSE((t.frequencies = 1, t.waves_of = rows_below_0));
    REFUSE(t.height = huge);
    REFUSE(t.tiles[0] = huge);
    REFUSE(t.step[1] = huge);
    REFUSE(t.offset[0] = huge);
    REFUSE(t.offset[1] = -huge);
    REFUSE((t.images = 0, t.channels = huge, t.width = 8));
    REFUSE((t.channels = 1 << 20, t.width = 1 << 20, t.height = 1, t.offset[0] = 1 << 24));
    REFUSE((t.channels = 1 << 20, t.width = 1 << 20, t.height = 1, t.step[0] = 1 << 22));
    REFUSE((t.channels = 1 << 20, t.offset[1] = -((int64_t)1 << 42)));
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("spectrum: %s\n", fe_isa_name(fe_spectrum_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++)
        for (size_t i = 0; fe_isa_available((fe_isa)isa) && i < sizeof shapes / sizeof *shapes; i++)
            check((fe_isa)isa, &shapes[i], &state);
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++)
        if (fe_isa_available((fe_isa)isa))
            check_backward((fe_isa)isa, &state);
    check_what_is_refused();
    printf("%d failures\n", failures);
    return failures != 0;
}
