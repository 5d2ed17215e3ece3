/* Every version of sums of bytes that this CPU offers, against their definition. Exits 1 on a mismatch, 2 on a wrong
 * FLOWER_EDGE_ISA. */
#include "byte_sums/byte_sums.h"
#include "check.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

enum { MOST = 3 * 4096 + 77, MARGIN = 64, CANARY = 0x5a };

static const int64_t lengths[] = {0, 1, 7, 15, 16, 31, 33, 97, 4096, 4097, MOST};

static uint8_t x_bytes[MOST], y_bytes[MOST], out[MOST + MARGIN];
static float grad[MOST], masked[MOST + MARGIN];
static int failures;

static void fail(const char *what, fe_isa isa, int64_t length) {
    printf("FAIL %s: %s, %ld bytes\n", what, fe_isa_name(isa), (long)length);
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last--)
        task(last - 1, last, context);
    return 0;
}

static float at(const fe_byte_map *map, int64_t i) { return (float)(map->bytes[i] - map->zero) * map->scale; }

static void check(fe_isa isa, int64_t length, const fe_byte_map *x, const fe_byte_map *y) {
    float ends[2] = {1.0f, -1.0f}, low = 0.0f, high = 0.0f;
    for (int64_t i = 0; i < length; i++) {
        float sum = at(x, i) + at(y, i);
        low = sum < low ? sum : low;
        high = sum > high ? sum : high;
    }
    if (fe_byte_sum_ends(isa, ends, x, y, length) != 0 || memcmp(&ends[0], &low, sizeof low) != 0 ||
        memcmp(&ends[1], &high, sizeof high) != 0)
        fail("ends", isa, length);
    /* Half of the range is cut off. */
    float inverse = high > low ? 510.0f / (high - low) : 1.0f;
    int zero = 100;
    memset(out, CANARY, sizeof out);
    if (fe_byte_sum(isa, out, inverse, zero, x, y, length) != 0)
        fail("error in sum", isa, length);
    int wrong = 0;
    for (int64_t i = 0; i < length; i++) {
        float steps = (at(x, i) + at(y, i)) * inverse + (float)zero;
        float cut = steps < 0.0f ? 0.0f : steps > 255.0f ? 255.0f : steps;
        wrong |= out[i] != (uint8_t)nearbyintf(cut);
    }
    if (wrong)
        fail("sum", isa, length);
    memset(masked, CANARY, sizeof masked);
    if (fe_mask_by_bytes(isa, masked, grad, x->bytes, x->zero, length) != 0)
        fail("error in mask", isa, length);
    for (int64_t i = 0; i < length; i++) {
        float expected = x->bytes[i] > x->zero ? grad[i] : 0.0f;
        wrong |= memcmp(masked + i, &expected, sizeof expected) != 0;
    }
    if (wrong)
        fail("mask", isa, length);
    for (int64_t i = 0; i < MARGIN; i++)
        wrong |= out[length + i] != CANARY || ((uint8_t *)(masked + length))[i] != CANARY;
    if (wrong)
        fail("written beyond the end", isa, length);
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("byte_sums: %s\n", fe_isa_name(fe_byte_sums_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < MOST; i++) {
        x_bytes[i] = (uint8_t)(128.0f + 128.0f * check_random(&state));
        y_bytes[i] = (uint8_t)(128.0f + 128.0f * check_random(&state));
        grad[i] = i % 11 ? check_random(&state) : NAN;
    }
    const fe_byte_map maps[] = {{x_bytes, 0.1f, 128}, {y_bytes, 0.03f, 7}, {y_bytes, 2.5f, 255}, {x_bytes, 1e-4f, 0}};
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
        if (!fe_isa_available((fe_isa)isa))
            continue;
        for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++)
            for (int way = 0; way < 8; way++) {
                fe_set_parallel_for(way & 1 ? backwards : NULL);
                check((fe_isa)isa, lengths[n], &maps[way >> 1], &maps[(way / 2 + 1) % 4]);
            }
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
