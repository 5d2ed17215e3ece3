/* The threshold of a pruning, from the distribution of magnitudes. */
#include "common.h"

#include "parallel.h"

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
    SIDE_BY_SIDE = 4,
    RUNS = 8192,
    PIECES = 2,
    GRAIN = RUNS / PIECES,
    /* Neighbours are counted apart, since a count that has just been written is slow to read. */
    APART = 4,
    /* Runs lie too far apart for the hardware to see what is next. */
    FETCHED = 32,
    /* A bin's count is above these bits, and below is the sum of the mantissas' other bits: at most RUNS * SIDE_BY_SIDE of SHIFT
     * bits, and of a few more. */
    SUM_BITS = 40,
};

typedef struct {
    const float *x;
    /* Runs of x and those that are counted; the length of a part, in 2^-16 runs. */
    int64_t runs, taken, part;
    uint64_t bins[PIECES][APART][BINS];
} histogram;

static void count_run(uint64_t bins[APART][BINS], const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bins[i % APART][(bits & 0x7fffffffu) >> SHIFT] += (UINT64_C(1) << SUM_BITS) + (bits & ((1u << SHIFT) - 1));
    }
}

/* Of each of `taken` parts of equal length, a run anywhere in it: the golden section's multiples leave out no channel. */
static int64_t run_of(const histogram *of, int64_t i) {
    if (of->taken == of->runs)
        return i;
    int64_t begin = i * of->part >> 16, end = (i + 1) * of->part >> 16;
    const uint32_t where = (uint32_t)i * 0x9e3779b1u;
    return begin + (int64_t)(where * (uint64_t)(end - begin) >> 32);
}

static void count_pieces(int64_t first, int64_t last, void *context) {
    histogram *of = context;
    for (int64_t piece = first; piece < last; piece++) {
        const int64_t begin = piece * of->taken / PIECES, end = (piece + 1) * of->taken / PIECES;
        const float *fetched[FETCHED];
        for (int64_t i = begin; i < end + FETCHED; i++) {
            if (i >= begin + FETCHED)
                count_run(of->bins[piece], fetched[i % FETCHED], SIDE_BY_SIDE);
            if (i < end) {
                fetched[i % FETCHED] = of->x + run_of(of, i) * SIDE_BY_SIDE;
                __builtin_prefetch(fetched[i % FETCHED]);
            }
        }
    }
}

/* How many elements a bin of all pieces has, and their sum. */
static void read_bin(uint64_t all, int64_t bin, double *count, double *sum) {
    const int64_t exponent = bin >> LEADING, leading = bin & ((1 << LEADING) - 1);
    const uint64_t rest = all & ((UINT64_C(1) << SUM_BITS) - 1);
    *count = (double)(all >> SUM_BITS);
    *sum = ldexp(*count * (double)((((exponent ? 1 << LEADING : 0) + leading) << SHIFT)) + (double)rest,
                 (int)(exponent ? exponent : 1) - 150);
}

/* With each bin's elements at their mean: where, of those below the threshold, count - sum / threshold is what is wanted. */
static double threshold_of(const histogram *of, double sparsity) {
    uint64_t bins[FINITE] = {0};
    for (int i = 0; i < PIECES * APART; i++)
        for (int64_t bin = 0; bin < FINITE; bin++)
            bins[bin] += of->bins[i / APART][i % APART][bin];
    double total = 0.0;
    for (int64_t bin = 0; bin < FINITE; bin++)
        total += (double)(bins[bin] >> SUM_BITS);
    const double wanted = sparsity * total;
    double below = (double)(bins[0] >> SUM_BITS), sum = 0.0;
    if (below >= wanted)
        return 0.0;
    for (int64_t bin = 1; bin < FINITE; bin++) {
        if (!bins[bin])
            continue;
        double of_bin, sum_of_bin;
        read_bin(bins[bin], bin, &of_bin, &sum_of_bin);
        /* (below - wanted) mean >= sum */
        if ((below - wanted) * sum_of_bin >= sum * of_bin)
            break;
        below += of_bin;
        sum += sum_of_bin;
    }
    return sum / (below - wanted);
}

int fe_pruning_threshold(float *threshold, const float *x, int64_t count, double sparsity) {
    histogram *of = malloc(sizeof *of);
    if (!of)
        return -1;
    memset(of, 0, sizeof *of);
    of->x = x;
    of->runs = count / SIDE_BY_SIDE;
    of->taken = smaller(of->runs, RUNS);
    of->part = of->taken ? (of->runs << 16) / of->taken : 0;
    int error = fe_parallel_for(PIECES, of->taken < GRAIN ? PIECES : 1, count_pieces, of);
    if (of->taken == of->runs)
        count_run(of->bins[0], x + of->runs * SIDE_BY_SIDE, count % SIDE_BY_SIDE);
    *threshold = (float)fmin(threshold_of(of, sparsity), 0x1.fffffep127);
    free(of);
    return error;
}
