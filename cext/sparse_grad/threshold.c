/* The threshold of a pruning, from the distribution of magnitudes. */
#include "common.h"

#include "parallel.h"
#include "seed.h"

#include <math.h>
#include <stdlib.h>

enum {
    /* A bin is an exponent and so many leading bits of the mantissa. */
    LEADING = 2,
    SHIFT = 23 - LEADING,
    BINS = 256 << LEADING,
    /* From here on, infinity and NaN. */
    FINITE = 255 << LEADING,
    /* Neighbours that are counted together, and how many such runs: of a longer x, one out of each of so many parts. */
    SIDE_BY_SIDE = 8,
    RUNS = 16384,
    PIECES = 4,
    /* Neighbours are counted apart, since a count that has just been written is slow to read. */
    APART = 4,
    /* Runs lie too far apart for the hardware to see what is next. */
    FETCHED = 16,
    GRAIN = RUNS / PIECES,
};

typedef struct {
    const float *x;
    /* Runs of x and those that are counted; the length of a part, in 2^-16 runs; elements behind the last run. */
    int64_t runs, taken, part, rest;
    uint32_t counts[PIECES][APART][BINS];
    /* Elements below this bound, in each piece: how many, and their sum. */
    float bound;
    int64_t below[PIECES];
    double sums[PIECES];
} histogram;

static void count_run(uint32_t counts[APART][BINS], const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        counts[i % APART][(bits & 0x7fffffffu) >> SHIFT]++;
    }
}

/* Of each of `taken` parts of equal length, a run anywhere in it. */
static int64_t run_of(const histogram *of, int64_t i) {
    if (of->taken == of->runs)
        return i;
    int64_t begin = i * of->part >> 16, end = (i + 1) * of->part >> 16;
    return begin + (int64_t)((fe_mixed((uint64_t)i) >> 32) * (uint64_t)(end - begin) >> 32);
}

static void count_pieces(int64_t first, int64_t last, void *context) {
    histogram *of = context;
    for (int64_t piece = first; piece < last; piece++) {
        const int64_t begin = piece * of->taken / PIECES, end = (piece + 1) * of->taken / PIECES;
        for (int64_t i = begin; i < end; i++) {
            if (i + FETCHED < end)
                __builtin_prefetch(of->x + run_of(of, i + FETCHED) * SIDE_BY_SIDE);
            count_run(of->counts[piece], of->x + run_of(of, i) * SIDE_BY_SIDE, SIDE_BY_SIDE);
        }
    }
}

static void sum_run(float bound, int32_t below[SIDE_BY_SIDE], double sums[SIDE_BY_SIDE], const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(x[i]);
        below[i] += magnitude < bound;
        sums[i] += magnitude < bound ? (double)magnitude : 0.0;
    }
}

static void sum_pieces(int64_t first, int64_t last, void *context) {
    histogram *of = context;
    for (int64_t piece = first; piece < last; piece++) {
        int32_t below[SIDE_BY_SIDE] = {0};
        double sums[SIDE_BY_SIDE] = {0.0};
        for (int64_t i = piece * of->taken / PIECES; i < (piece + 1) * of->taken / PIECES; i++)
            sum_run(of->bound, below, sums, of->x + run_of(of, i) * SIDE_BY_SIDE, SIDE_BY_SIDE);
        for (int i = 0; i < SIDE_BY_SIDE; i++) {
            of->below[piece] += below[i];
            of->sums[piece] += sums[i];
        }
    }
}

static double edge_of(int64_t bin) {
    const int64_t exponent = bin >> LEADING, leading = bin & ((1 << LEADING) - 1);
    return exponent ? ldexp((double)((1 << LEADING) + leading), (int)exponent - 127 - LEADING)
                    : ldexp((double)leading, -126 - LEADING);
}

/* With `below` elements below the bin and their sum, where in the bin below - sum / threshold is `wanted`; elements of the bin
 * lie evenly. */
static double within(int64_t bin, double below, double sum, double count, double wanted) {
    const double low = edge_of(bin), high = edge_of(bin + 1), density = count / (high - low);
    const double b = below - wanted - density * low, c = density * low * low / 2 - sum;
    const double root = sqrt(fmax(b * b - 2 * density * c, 0.0));
    const double found = b > 0 ? -2 * c / (b + root) : (root - b) / density;
    return fmin(fmax(found, low), high);
}

static double threshold_of(const uint32_t *counts, double wanted) {
    double below = counts[0], sum = 0.0;
    if (below >= wanted)
        return 0.0;
    for (int64_t bin = 1; bin < FINITE; bin++) {
        if (!counts[bin])
            continue;
        const double count = counts[bin], high = edge_of(bin + 1), more = sum + count * (edge_of(bin) + high) / 2;
        if (below + count - more / high >= wanted)
            return within(bin, below, sum, count, wanted);
        below += count;
        sum = more;
    }
    return sum / (below - wanted);
}

/* A bin does not say where its elements lie; but those below its threshold nearly are those below the true one. */
static int refine(histogram *of, double wanted, double *threshold) {
    int32_t rest[SIDE_BY_SIDE] = {0};
    double rests[SIDE_BY_SIDE] = {0.0}, below = 0.0, sum = 0.0;
    of->bound = (float)*threshold;
    int error = fe_parallel_for(PIECES, of->taken < GRAIN ? PIECES : 1, sum_pieces, of);
    if (of->taken == of->runs)
        sum_run(of->bound, rest, rests, of->x + of->runs * SIDE_BY_SIDE, of->rest);
    for (int i = 0; i < PIECES; i++) {
        below += (double)of->below[i];
        sum += of->sums[i];
    }
    for (int i = 0; i < SIDE_BY_SIDE; i++) {
        below += rest[i];
        sum += rests[i];
    }
    if (below > wanted)
        *threshold = sum / (below - wanted);
    return error;
}

int fe_pruning_threshold(float *threshold, const float *x, int64_t count, double sparsity) {
    histogram *of = calloc(1, sizeof *of);
    if (!of)
        return -1;
    of->x = x;
    of->runs = count / SIDE_BY_SIDE;
    of->taken = smaller(of->runs, RUNS);
    of->part = of->taken ? (of->runs << 16) / of->taken : 0;
    of->rest = count % SIDE_BY_SIDE;
    int error = fe_parallel_for(PIECES, of->taken < GRAIN ? PIECES : 1, count_pieces, of);
    if (of->taken == of->runs)
        count_run(of->counts[0], x + of->runs * SIDE_BY_SIDE, of->rest);
    uint32_t counts[BINS] = {0};
    double total = 0.0;
    for (int64_t bin = 0; bin < BINS; bin++) {
        for (int i = 0; i < PIECES * APART; i++)
            counts[bin] += of->counts[i / APART][i % APART][bin];
        total += bin < FINITE ? counts[bin] : 0;
    }
    double found = threshold_of(counts, sparsity * total);
    if (!error && found > 0.0)
        error = refine(of, sparsity * total, &found);
    *threshold = (float)fmin(found, 0x1.fffffep127);
    free(of);
    return error;
}
