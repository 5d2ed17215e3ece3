/* Every version of the one-bit activations that this CPU offers, against their definition. Exits 1 on a mismatch, 2 on a
 * wrong FLOWER_EDGE_ISA. */
#include "check.h"
#include "parallel.h"
#include "sign_bits/sign_bits.h"

#include <math.h>
#include <string.h>

enum {
    LONGEST = 70003,
    /* Room for a canary on both sides and for the byte offset. */
    MARGIN = 64,
    ROW = LONGEST * (int)sizeof(float) + 2 * MARGIN,
    CANARY = 0xa5,
};

static const size_t lengths[] = {0, 1, 7, 8, 9, 31, 33, 63, 64, 65, 97, 511, 513, 1000, 4099, LONGEST};
/* In bytes: on a cache line, one float off, and an address that no float would normally have. */
static const size_t offsets[] = {0, 4, 13};
static const float special[] = {0.0f, -0.0f, 6.0f, INFINITY, -INFINITY, NAN, -NAN, 1e-45f, -1e-45f};

static float given[LONGEST];
static _Alignas(64) unsigned char source[ROW], target[ROW], bits[ROW];

static int failures;

static void fail(const char *what, fe_isa isa, size_t length, size_t offset, float cap) {
    printf("FAIL %s: %s, %zu floats, %zu bytes off a cache line, cap %g\n", what, fe_isa_name(isa), length, offset,
           (double)cap);
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last -= 3)
        task(last - 3 > begin ? last - 3 : begin, last, context);
    return 0;
}

static float at(const unsigned char *row, size_t offset, size_t i) {
    float value;
    memcpy(&value, row + MARGIN + offset + i * sizeof value, sizeof value);
    return value;
}

/* A NaN equals a NaN here, and 0 equals -0. */
static int same(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

static int untouched(const unsigned char *row, size_t begin, size_t end) {
    for (size_t i = 0; i < ROW; i++)
        if ((i < begin || i >= end) && row[i] != CANARY)
            return 0;
    return 1;
}

static int passes(float value, float cap) { return isnan(value) || (value > 0 && (isnan(cap) || value < cap)); }

static void check(fe_isa isa, size_t length, size_t offset, float cap, int inplace) {
    const size_t begin = MARGIN + offset, end = begin + length * sizeof(float);
    unsigned char *out = inplace ? source : target;
    memset(source, CANARY, ROW);
    memset(target, CANARY, ROW);
    memset(bits, CANARY, ROW);
    memcpy(source + begin, given, length * sizeof(float));

    if (fe_relu_bits(isa, (fe_float *)(out + begin), bits + MARGIN, (const fe_float *)(source + begin), length, cap) != 0)
        fail("error in relu", isa, length, offset, cap);
    int wrong = 0;
    for (size_t i = 0; i < length; i++) {
        float value = given[i], expected = value <= 0 ? 0 : value > cap ? cap : value;
        wrong |= !same(at(out, offset, i), expected) || (bits[MARGIN + i / 8] >> i % 8 & 1) != passes(value, cap);
    }
    for (size_t i = length; i % 8; i++)
        wrong |= bits[MARGIN + i / 8] >> i % 8 & 1;
    if (wrong)
        fail("relu", isa, length, offset, cap);
    if (!untouched(out, begin, end) || !untouched(bits, MARGIN, MARGIN + (length + 7) / 8))
        fail("relu wrote outside", isa, length, offset, cap);

    memcpy(source + begin, given, length * sizeof(float));
    if (fe_mask_by_bits(isa, (fe_float *)(out + begin), (const fe_float *)(source + begin), bits + MARGIN, length) != 0)
        fail("error in mask", isa, length, offset, cap);
    wrong = 0;
    for (size_t i = 0; i < length; i++)
        wrong |= !same(at(out, offset, i), passes(given[i], cap) ? given[i] : 0);
    if (wrong)
        fail("mask", isa, length, offset, cap);
    if (!untouched(out, begin, end))
        fail("mask wrote outside", isa, length, offset, cap);
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("sign_bits: %s\n", fe_isa_name(fe_sign_bits_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < LONGEST; i++)
        given[i] = i % 5 ? 8.0f * check_random(&state) : special[i / 5 % (sizeof special / sizeof *special)];
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
        if (!fe_isa_available((fe_isa)isa))
            continue;
        for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++)
            for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++)
                for (int way = 0; way < 8; way++) {
                    fe_set_parallel_for(way & 4 ? backwards : NULL);
                    check((fe_isa)isa, lengths[n], offsets[o], way & 1 ? 6.0f : NAN, way & 2);
                }
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
