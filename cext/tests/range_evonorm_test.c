/* Every version of Range-EvoNorm that this CPU offers, against double, written down from its definition. Exits 1 on a
 * mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "check.h"
#include "parallel.h"
#include "range_evonorm/range_evonorm.h"

#include <math.h>
#include <string.h>

enum { MOST = 1 << 17, MARGIN = 64, MOST_CHANNELS = 256 };

typedef struct {
    int64_t samples, pixels, channels, groups;
} shape;

/* Fewer pixels than chunks, as many, a multiple, and neither; groups of one channel, within a vector, across vectors. */
static const shape shapes[] = {
    {1, 1, 2, 1},  {2, 7, 7, 7},   {3, 16, 15, 5},  {1, 31, 31, 1},  {2, 33, 33, 3}, {2, 64, 97, 1},
    {3, 64, 64, 8}, {2, 49, 16, 8}, {1, 15, 24, 2}, {2, 100, 66, 2}, {1, 256, 8, 8}, {2, 17, 256, 4},
};

/* What is in memory: with bytes, a number is scale * (byte - zero). */
typedef struct {
    int x_bytes, y_bytes, grad_bytes, activates, affine;
} kind;

static const kind kinds[] = {{0, 0, 0, 1, 1}, {1, 0, 0, 1, 1}, {1, 1, 1, 1, 1}, {0, 1, 1, 0, 1}, {1, 0, 1, 0, 0}};

static float x_floats[MOST + 2 * MARGIN], grad_floats[MOST + 2 * MARGIN], y_floats[2][MOST + MARGIN], dx[2][MOST + MARGIN];
static uint8_t x_bytes[MOST], grad_bytes[MOST], y_bytes[2][MOST + MARGIN];
static float extremes[2][MOST], sums[2][3 * MOST_CHANNELS], weight[MOST_CHANNELS], bias[MOST_CHANNELS], v[MOST_CHANNELS];
static double x_values[MOST], grad_values[MOST], expected_y[MOST], expected_dx[MOST], expected_sums[3 * MOST_CHANNELS];
static double magnitude_dx[MOST], magnitude_sums[3 * MOST_CHANNELS];
static int failures;

static void fail(const char *what, fe_isa isa, const shape *s, const kind *k) {
    printf("FAIL %s: %s, %ldx%ldx%ld, %ld groups, bytes %d%d%d\n", what, fe_isa_name(isa), (long)s->samples, (long)s->pixels,
           (long)s->channels, (long)s->groups, k->x_bytes, k->y_bytes, k->grad_bytes);
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last--)
        task(last - 1, last, context);
    return 0;
}

static int near(double value, double expected, double magnitude) {
    return fabs(value - expected) <= 1e-5 * magnitude + 1e-30;
}

/* Random numbers between NaNs: whatever is read beside them shows. */
static void draw(float *floats, uint8_t *bytes, double *values, int64_t count, int as_bytes, uint64_t *state) {
    for (int64_t i = 0; i < count + 2 * MARGIN; i++)
        floats[i] = i < MARGIN || i >= count + MARGIN ? NAN : 3.0f * check_random(state);
    for (int64_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(128.0f + 40.0f * floats[MARGIN + i]);
        values[i] = as_bytes ? (double)0.0625f * (bytes[i] - 120) : (double)floats[MARGIN + i];
    }
}

static int64_t first_pixel(const shape *s, int64_t chunk) { return chunk * s->pixels / fe_norm_chunks(s->pixels); }

/* Of one chunk of a group, the first element that is extreme. */
static int64_t extreme_at(const shape *s, int64_t sample, int64_t chunk, int64_t group, int sign) {
    int64_t width = s->channels / s->groups, best = -1;
    for (int64_t i = first_pixel(s, chunk); i < first_pixel(s, chunk + 1); i++)
        for (int64_t c = group * width; c < (group + 1) * width; c++) {
            int64_t at = (sample * s->pixels + i) * s->channels + c;
            if (best < 0 || sign * x_values[at] > sign * x_values[best])
                best = at;
        }
    return best;
}

static void expect_group(const fe_range_evonorm *norm, const shape *s, const kind *k, int64_t sample, int64_t group) {
    int64_t width = s->channels / s->groups, chunks = fe_norm_chunks(s->pixels);
    double range = 0.0, through = 0.0, magnitude = 0.0;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        range += x_values[extreme_at(s, sample, chunk, group, 1)] - x_values[extreme_at(s, sample, chunk, group, -1)];
    double scale = 1.0 / (range / (double)chunks * (double)norm->factor + (double)norm->eps);
    for (int64_t i = 0; i < s->pixels; i++)
        for (int64_t c = group * width; c < (group + 1) * width; c++) {
            int64_t at = (sample * s->pixels + i) * s->channels + c;
            double gamma = k->affine ? (double)weight[c] : 1.0, slope = k->activates ? (double)v[c] / 6.0 : 0.0;
            double x = x_values[at], d = grad_values[at], u = k->activates ? x * slope + 0.5 : 1.0;
            double gate = u < 0.0 ? 0.0 : u > 1.0 ? 1.0 : u, inside = u > 0.0 && u < 1.0;
            expected_y[at] = gamma * x * gate * scale + (k->affine ? (double)bias[c] : 0.0);
            expected_dx[at] = d * gamma * scale * (gate + inside * x * slope);
            magnitude_dx[at] = fabs(d * gamma * scale) * (1.0 + fabs(x * slope));
            double parts[] = {d * x * gate * scale, d, d * x * x * inside * gamma * scale / 6.0};
            for (int p = 0; p < 3; p++) {
                expected_sums[p * s->channels + c] += parts[p];
                magnitude_sums[p * s->channels + c] += fabs(parts[p]);
            }
            through += d * gamma * x * gate;
            magnitude += fabs(d * gamma * x * gate);
        }
    double each = (double)norm->factor * scale * scale / (double)chunks;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int sign = -1; sign <= 1; sign += 2) {
            int64_t at = extreme_at(s, sample, chunk, group, sign);
            expected_dx[at] -= sign * through * each;
            magnitude_dx[at] += magnitude * each;
        }
}

static int is_written(const float *floats, const uint8_t *bytes, int as_bytes, const fe_norm_map *map, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        double value = as_bytes ? (double)map->scale * (bytes[i] - (double)map->zero) : (double)floats[i];
        double expected = expected_y[i];
        double slack = 1e-5 * (fabs(expected) + 1.0);
        if (as_bytes) {
            double low = -(double)map->scale * (double)map->zero, high = (double)map->scale * (255.0 - (double)map->zero);
            expected = expected < low ? low : expected > high ? high : expected;
            slack += (double)map->scale / 2;
        }
        if (!(fabs(value - expected) <= slack))
            return 0;
    }
    return 1;
}

static int are_within(const float *bounds, const double *values, int64_t count) {
    double low = 0.0, high = 0.0;
    for (int64_t i = 0; i < count; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    double slack = 1e-4 * (high - low);
    return (double)bounds[0] <= low + slack && (double)bounds[1] >= high - slack;
}

static void check(fe_isa isa, const shape *s, const kind *k, uint64_t *state) {
    int64_t count = s->samples * s->pixels * s->channels;
    draw(x_floats, x_bytes, x_values, count, k->x_bytes, state);
    draw(grad_floats, grad_bytes, grad_values, count, k->grad_bytes, state);
    for (int64_t c = 0; c < s->channels; c++) {
        weight[c] = 1.0f + check_random(state);
        bias[c] = check_random(state);
        v[c] = 1.0f + 2.0f * check_random(state);
    }
    memset(expected_sums, 0, sizeof expected_sums);
    memset(magnitude_sums, 0, sizeof magnitude_sums);
    fe_range_evonorm norm = {s->samples, s->pixels, s->channels, s->groups, 0.21f, 1e-3f, NULL, NULL, NULL};
    if (k->affine) {
        norm.weight = weight;
        norm.bias = bias;
    }
    if (k->activates)
        norm.v = v;
    if (!fe_range_evonorm_is_valid(&norm))
        fail("refused", isa, s, k);
    for (int64_t sample = 0; sample < s->samples; sample++)
        for (int64_t group = 0; group < s->groups; group++)
            expect_group(&norm, s, k, sample, group);

    fe_norm_map x = {x_floats + MARGIN, NULL, 1.0f, 0.0f}, grad = {grad_floats + MARGIN, NULL, 1.0f, 0.0f};
    if (k->x_bytes)
        x = (fe_norm_map){NULL, x_bytes, 0.0625f, 120.0f};
    if (k->grad_bytes)
        grad = (fe_norm_map){NULL, grad_bytes, 0.0625f, 120.0f};
    float y_bounds[2], dx_bounds[2];
    for (int run = 0; run < 2; run++) {
        fe_norm_map y = {y_floats[run], NULL, 1.0f, 0.0f};
        if (k->y_bytes)
            y = (fe_norm_map){NULL, y_bytes[run], 0.02f, 77.0f};
        memset(y_floats[run], 0x5a, sizeof y_floats[run]);
        memset(y_bytes[run], 0x5a, sizeof y_bytes[run]);
        memset(dx[run], 0x5a, sizeof dx[run]);
        fe_set_parallel_for(run ? backwards : NULL);
        fe_range_evonorm_forward(isa, &norm, &x, &y, extremes[run], y_bounds);
        fe_range_evonorm_backward(isa, &norm, &x, extremes[run], &grad, dx[run], sums[run], sums[run] + s->channels,
                                  k->activates ? sums[run] + 2 * s->channels : NULL, dx_bounds);
        fe_set_parallel_for(NULL);
        if (!is_written(y_floats[run], y_bytes[run], k->y_bytes, &y, count) || !are_within(y_bounds, expected_y, count))
            fail("y", isa, s, k);
    }
    /* In two parts, after all of it: the same numbers, and bounds that are known before them. */
    static uint8_t again_bytes[MOST];
    static float again_floats[MOST], again[MOST];
    float early[2];
    fe_norm_map y = k->y_bytes ? (fe_norm_map){NULL, again_bytes, 0.02f, 77.0f} : (fe_norm_map){again_floats, NULL, 1.0f, 0.0f};
    fe_range_evonorm_extremes(isa, &norm, &x, again, early);
    fe_range_evonorm_normalise(isa, &norm, &x, &y, again);
    size_t places = (size_t)(s->samples * fe_norm_chunks(s->pixels) * s->groups * 2);
    if (memcmp(again, extremes[0], places * (k->x_bytes ? 1 : sizeof(float))) != 0 ||
        (k->y_bytes ? memcmp(again_bytes, y_bytes[0], (size_t)count)
                    : memcmp(again_floats, y_floats[0], (size_t)count * sizeof(float))) != 0)
        fail("in two parts", isa, s, k);
    if (!are_within(early, expected_y, count))
        fail("early bounds", isa, s, k);
    if (memcmp(y_floats[0], y_floats[1], sizeof *y_floats) != 0 || memcmp(y_bytes[0], y_bytes[1], sizeof *y_bytes) != 0 ||
        memcmp(dx[0], dx[1], sizeof *dx) != 0 || memcmp(sums[0], sums[1], sizeof *sums) != 0)
        fail("samples in another order", isa, s, k);
    for (int i = 0; i < MARGIN * (int)sizeof(float); i++)
        if (((uint8_t *)(dx[0] + count))[i] != 0x5a || ((uint8_t *)(y_floats[0] + (k->y_bytes ? 0 : count)))[i] != 0x5a ||
            (i < MARGIN && y_bytes[0][(k->y_bytes ? count : 0) + i] != 0x5a)) {
            fail("written beyond the end", isa, s, k);
            break;
        }
    int right = are_within(dx_bounds, expected_dx, count);
    for (int64_t i = 0; right && i < count; i++)
        right = near((double)dx[0][i], expected_dx[i], magnitude_dx[i]);
    if (!right)
        fail("dx", isa, s, k);
    for (int64_t i = 0; i < (k->activates ? 3 : 2) * s->channels; i++)
        if (!near((double)sums[0][i], expected_sums[i], magnitude_sums[i])) {
            fail("sums", isa, s, k);
            break;
        }
}

#define REFUSE(change)                                                                                                 \
    do {                                                                                                               \
        fe_range_evonorm norm = {2, 16, 8, 4, 1.0f, 1.0f, NULL, NULL, NULL};                                           \
        change;                                                                                                        \
        if (fe_range_evonorm_is_valid(&norm)) {                                                                        \
            printf("FAIL accepted: %s\n", #change);                                                                    \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

/* Comparisons pass over a NaN in a parameter; bounds must not. */
static void check_nans(fe_isa isa) {
    enum { PIXELS = 5, CHANNELS = 33, COUNT = 2 * PIXELS * CHANNELS };
    static float found[COUNT];
    static uint8_t bytes[COUNT], extreme_bytes[COUNT];
    fe_range_evonorm norm = {2, PIXELS, CHANNELS, 1, 1.0f, 1.0f, weight, bias, v};
    float *const parameters[] = {weight, bias, v};
    const fe_norm_map x = {NULL, bytes, 0.0625f, 120.0f}, y = {found, NULL, 1.0f, 0.0f};
    for (int i = 0; i < 3; i++) {
        const float before = parameters[i][CHANNELS - 1];
        float bounds[2];
        parameters[i][CHANNELS - 1] = NAN;
        fe_range_evonorm_forward(isa, &norm, &x, &y, extreme_bytes, bounds);
        if (!isnan(bounds[0]) || !isnan(found[CHANNELS - 1])) {
            printf("FAIL a NaN is hidden: %s, parameter %d\n", fe_isa_name(isa), i);
            failures++;
        }
        parameters[i][CHANNELS - 1] = before;
    }
}

static void check_what_is_refused(void) {
    const int64_t huge = (int64_t)1 << 60;
    REFUSE(norm.samples = 0);
    REFUSE(norm.pixels = -1);
    REFUSE(norm.groups = 0);
    REFUSE(norm.groups = 3);
    REFUSE(norm.samples = huge);
    REFUSE(norm.channels = huge);
    REFUSE(norm.pixels = huge);
    REFUSE((norm.pixels = (int64_t)1 << 26, norm.channels = 8));
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("range_evonorm: %s\n", fe_isa_name(fe_range_evonorm_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++)
        for (size_t i = 0; fe_isa_available((fe_isa)isa) && i < sizeof shapes / sizeof *shapes; i++)
            for (size_t j = 0; j < sizeof kinds / sizeof *kinds; j++)
                check((fe_isa)isa, &shapes[i], &kinds[j], &state);
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++)
        if (fe_isa_available((fe_isa)isa))
            check_nans((fe_isa)isa);
    check_what_is_refused();
    printf("%d failures\n", failures);
    return failures != 0;
}
