/* Every version of mix that this CPU offers, against sums in double. Exits 1 on a mismatch, 2 on a wrong
 * FLOWER_EDGE_ISA. */
#include "check.h"
#include "mix/mix.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

enum {
    LONGEST = 100003,
    MOST = 64,
    /* Room for a canary on both sides and for the byte offset. */
    MARGIN = 64,
    ROW = LONGEST * (int)sizeof(float) + 2 * MARGIN,
};

static const size_t lengths[] = {0, 1, 7, 15, 31, 33, 97, 1000, 4099, LONGEST};
static const size_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, MOST};
/* In bytes: on a cache line, one float off, and an address that no float would normally have. */
static const size_t offsets[] = {0, 4, 13};

static _Alignas(64) unsigned char rows[MOST][ROW], apart[ROW], before[ROW];
static float weights[MOST];

static int failures;

static void fail(const char *what, fe_isa isa, size_t count, size_t length, size_t offset) {
    printf("FAIL %s: %s, %zu vectors of %zu floats, %zu bytes off a cache line\n", what, fe_isa_name(isa), count, length,
           offset);
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last -= 3)
        task(last - 3 > begin ? last - 3 : begin, last, context);
    return 0;
}

static float at(const unsigned char *row, size_t i) {
    float value;
    memcpy(&value, row + MARGIN + i * sizeof value, sizeof value);
    return value;
}

static void check(fe_isa isa, size_t count, size_t length, size_t offset, int inplace) {
    const fe_float *vectors[MOST];
    for (size_t k = 0; k < count; k++)
        vectors[k] = (const fe_float *)(rows[k] + MARGIN + offset);
    /* The last vector: a version that writes `out` before all groups are summed would be caught. */
    unsigned char *target = inplace ? rows[count - 1] : apart;
    memcpy(before, target, ROW);
    if (fe_mix(isa, (fe_float *)(target + MARGIN + offset), vectors, weights, count, length) != 0)
        fail("error", isa, count, length, offset);
    for (size_t i = 0; i < length; i++) {
        double sum = 0, magnitude = 0;
        for (size_t k = 0; k < count; k++) {
            double term = (double)weights[k] * at(target == rows[k] ? before + offset : rows[k] + offset, i);
            sum += term;
            magnitude += fabs(term);
        }
        if (!(fabs(at(target + offset, i) - sum) <= 1e-6 * magnitude)) {
            fail(inplace ? "in place" : "apart", isa, count, length, offset);
            break;
        }
    }
    size_t end = MARGIN + offset + length * sizeof(float);
    if (memcmp(before, target, MARGIN + offset) != 0 || memcmp(before + end, target + end, ROW - end) != 0)
        fail("written outside", isa, count, length, offset);

    if (!inplace) {
        memcpy(before, target, ROW);
        fe_set_parallel_for(backwards);
        fe_mix(isa, (fe_float *)(target + MARGIN + offset), vectors, weights, count, length);
        fe_set_parallel_for(NULL);
        if (memcmp(before, target, ROW) != 0)
            fail("split otherwise", isa, count, length, offset);
        /* Without the first float every other one falls to another lane, tail or block. */
        if (length > 0) {
            for (size_t k = 0; k < count; k++)
                vectors[k]++;
            fe_mix(isa, (fe_float *)(target + MARGIN + offset) + 1, vectors, weights, count, length - 1);
            if (memcmp(before, target, ROW) != 0)
                fail("cut otherwise", isa, count, length, offset);
        }
    } else {
        memcpy(target, before, ROW);
    }
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("mix: %s\n", fe_isa_name(fe_mix_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (size_t k = 0; k < MOST; k++) {
        weights[k] = check_random(&state);
        for (size_t offset = 0; offset + sizeof(float) <= ROW; offset += sizeof(float)) {
            float value = check_random(&state);
            memcpy(rows[k] + offset, &value, sizeof value);
        }
    }
    /* At another offset the same bytes would be other floats, NaN among them: move the rows along. */
    for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
        for (size_t k = 0; o && k < MOST; k++)
            memmove(rows[k] + offsets[o], rows[k] + offsets[o - 1], ROW - offsets[o]);
        for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
            if (!fe_isa_available((fe_isa)isa))
                continue;
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++) {
                    /* The long ones go through blocks and groups; a few of them do, and emulators are slow. */
                    if (lengths[n] == LONGEST && counts[c] != 1 && counts[c] != 4 && counts[c] != 9)
                        continue;
                    check((fe_isa)isa, counts[c], lengths[n], offsets[o], 0);
                    check((fe_isa)isa, counts[c], lengths[n], offsets[o], 1);
                }
        }
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
