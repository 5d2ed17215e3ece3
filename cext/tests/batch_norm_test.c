/* Every version of batch normalisation that this CPU offers, against double, written down from its definition. Exits 1 on a
 * mismatch, 2 on a wrong FLOWER_EDGE_ISA. */
#include "batch_norm/batch_norm.h"
#include "check.h"
#include "parallel.h"

#include <math.h>
#include <string.h>

enum { MOST = 1 << 17, MARGIN = 64, MOST_CHANNELS = 256 };

typedef struct {
    int64_t pixels, channels;
} shape;

/* Less than a vector, between two, whole ones; a block, many, and more than one chunk for each of a few threads. */
static const shape shapes[] = {
    {1, 7},   {2, 1},    {15, 7},   {7, 15},  {33, 16}, {31, 24},   {97, 31},    {15, 32},     {31, 33},
    {7, 64},  {100, 66}, {300, 97}, {9, 130}, {15, 256}, {257, 144}, {5000, 24}, {MOST / 8, 7}, {MOST / 16, 15},
};

/* What a norm has: an activation, and if so with which cap; parameters; and how its input lies. */
typedef enum { USUAL, FAR_FROM_ZERO, OUTLIERS_GUESSED, EQUAL } input;
typedef struct {
    int activates;
    float cap;
    int affine;
    input input;
} kind;

static const kind kinds[] = {
    {0, NAN, 1, USUAL}, {1, NAN, 1, FAR_FROM_ZERO}, {1, 1.5f, 0, USUAL}, {0, NAN, 0, OUTLIERS_GUESSED}, {1, NAN, 1, EQUAL},
};

static float x_room[MOST + 2 * MARGIN], grad_room[MOST + 2 * MARGIN], y[2][MOST + MARGIN], grad_x[2][MOST + MARGIN];
static uint8_t bits[2][MOST + MARGIN];
static float statistics[2][3 * MOST_CHANNELS], grad_weight[2][MOST_CHANNELS], grad_bias[2][MOST_CHANNELS];
static float weight[MOST_CHANNELS], bias[MOST_CHANNELS];
static const float *const x = x_room + MARGIN, *const grad = grad_room + MARGIN;
static int failures;

static void fail(const char *what, fe_isa isa, const shape *s, const kind *k) {
    printf("FAIL %s: %s, %ldx%ld, kind %d\n", what, fe_isa_name(isa), (long)s->pixels, (long)s->channels, (int)(k - kinds));
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
    return fabs(value - expected) <= 1e-5 * magnitude + 1e-30 || (isnan(value) && isnan(expected));
}

/* Random numbers between NaNs: whatever is read beside them shows. */
static void draw(float *room, int64_t count, float scale, float offset, uint64_t *state) {
    for (int64_t i = 0; i < count + 2 * MARGIN; i++)
        room[i] = i < MARGIN || i >= count + MARGIN ? NAN : offset + scale * check_random(state);
}

/* Where the kernel looks for a first guess of the mean, everything lies far from it. */
static void set_outliers(const shape *s) {
    for (int guess = 0; guess < 16; guess++) {
        double place = (guess + 0.5) * 0.6180339887498949;
        float *pixel = x_room + MARGIN + (int64_t)((place - (int64_t)place) * (double)s->pixels) * s->channels;
        for (int64_t c = 0; c < s->channels; c++)
            pixel[c] = 1e4f;
    }
}

static void draw_all(const shape *s, const kind *k, uint64_t *state) {
    int64_t count = s->pixels * s->channels;
    draw(x_room, count, k->input == EQUAL ? 0.0f : 3.0f, k->input == USUAL ? 0.5f : 40.0f, state);
    draw(grad_room, count, 2.0f, 0.1f, state);
    if (k->input == OUTLIERS_GUESSED)
        set_outliers(s);
    for (int64_t c = 0; c < s->channels; c++) {
        weight[c] = 1.0f + check_random(state);
        bias[c] = check_random(state);
    }
}

static int passes(const uint8_t *of, const shape *s, int64_t i, int64_t c) {
    return of[i * ((s->channels + 7) / 8) + c / 8] >> c % 8 & 1;
}

static void check_channel(fe_isa isa, const fe_batch_norm *norm, const shape *s, const kind *k, int64_t c) {
    const int64_t channels = s->channels;
    const double pixels = (double)s->pixels;
    double mean = 0.0, spread = 0.0, sum = 0.0, product = 0.0, magnitude[2] = {0.0, 0.0};
    for (int64_t i = 0; i < s->pixels; i++)
        mean += (double)x[i * channels + c];
    mean /= pixels;
    for (int64_t i = 0; i < s->pixels; i++)
        spread += ((double)x[i * channels + c] - mean) * ((double)x[i * channels + c] - mean);
    double inverse = 1.0 / sqrt(spread / pixels + norm->eps), gamma = k->affine ? (double)weight[c] : 1.0;
    if (!near((double)statistics[0][c], mean, fabs(mean) / 10.0 + sqrt(spread / pixels)) ||
        !near((double)statistics[0][channels + c], inverse, inverse) ||
        !near((double)statistics[0][2 * channels + c], spread / (pixels - 1.0), spread / (pixels - 1.0)))
        fail("statistics", isa, s, k);
    for (int64_t i = 0; i < s->pixels; i++) {
        double n = ((double)x[i * channels + c] - mean) * inverse, value = gamma * n + (k->affine ? (double)bias[c] : 0.0);
        double most = isnan(k->cap) ? (double)INFINITY : (double)k->cap, slack = 1e-4 * (fabs(n) + 1.0);
        double cut = !k->activates ? value : value < 0.0 ? 0.0 : value > most ? most : value;
        if (!near((double)y[0][i * channels + c], cut, 10.0 * (fabs(n) + 1.0)))
            fail("y", isa, s, k);
        int inside = k->activates ? passes(bits[0], s, i, c) : 1;
        if (k->activates && fabs(value) > slack && fabs(value - most) > slack && inside != (value > 0.0 && value < most))
            fail("bits", isa, s, k);
        double d = inside ? (double)grad[i * channels + c] : 0.0;
        sum += d;
        product += d * n;
        magnitude[0] += fabs(d);
        magnitude[1] += fabs(d * n);
    }
    if (!near((double)grad_bias[0][c], sum, magnitude[0]) || !near((double)grad_weight[0][c], product, magnitude[1]))
        fail("gradients of parameters", isa, s, k);
    for (int64_t i = 0; i < s->pixels; i++) {
        double n = ((double)x[i * channels + c] - mean) * inverse;
        double d = !k->activates || passes(bits[0], s, i, c) ? (double)grad[i * channels + c] : 0.0;
        double expected = gamma * inverse * (d - sum / pixels - n * product / pixels);
        double size = fabs(gamma) * inverse * (fabs(d) + magnitude[0] / pixels + fabs(n) * magnitude[1] / pixels);
        if (!near((double)grad_x[0][i * channels + c], expected, 5.0 * size))
            fail("gradient of x", isa, s, k);
    }
}

static void check(fe_isa isa, const shape *s, const kind *k, uint64_t *state) {
    int64_t count = s->pixels * s->channels, bytes = s->pixels * ((s->channels + 7) / 8);
    draw_all(s, k, state);
    fe_batch_norm norm = {s->pixels, s->channels, 1e-3, NULL, NULL, k->cap};
    if (k->affine) {
        norm.weight = weight;
        norm.bias = bias;
    }
    if (!fe_batch_norm_is_valid(&norm))
        fail("refused", isa, s, k);
    for (int run = 0; run < 2; run++) {
        memset(y[run], 0x5a, sizeof y[run]);
        memset(grad_x[run], 0x5a, sizeof grad_x[run]);
        memset(bits[run], 0x5a, sizeof bits[run]);
        uint8_t *of = k->activates ? bits[run] : NULL;
        fe_set_parallel_for(run ? backwards : NULL);
        fe_batch_norm_forward(isa, &norm, x, y[run], of, statistics[run]);
        fe_batch_norm_backward(isa, &norm, x, statistics[run], of, grad, grad_x[run], grad_weight[run], grad_bias[run]);
        fe_set_parallel_for(NULL);
    }
    size_t row = (size_t)s->channels * sizeof(float);
    if (memcmp(y[0], y[1], sizeof *y) != 0 || memcmp(bits[0], bits[1], sizeof *bits) != 0 ||
        memcmp(grad_x[0], grad_x[1], sizeof *grad_x) != 0 || memcmp(statistics[0], statistics[1], 3 * row) != 0 ||
        memcmp(grad_weight[0], grad_weight[1], row) != 0 || memcmp(grad_bias[0], grad_bias[1], row) != 0)
        fail("pixels in another order", isa, s, k);
    for (int i = 0; i < MARGIN; i++)
        if (((uint8_t *)(y[0] + count))[i] != 0x5a || ((uint8_t *)(grad_x[0] + count))[i] != 0x5a ||
            bits[0][(k->activates ? bytes : 0) + i] != 0x5a) {
            fail("written beyond the end", isa, s, k);
            break;
        }
    for (int64_t c = 0; c < s->channels; c++)
        check_channel(isa, &norm, s, k, c);
    float alone[2][MOST_CHANNELS];
    fe_batch_norm_backward(isa, &norm, x, statistics[0], k->activates ? bits[0] : NULL, grad, NULL, alone[0], alone[1]);
    if (memcmp(alone[0], grad_weight[0], row) != 0 || memcmp(alone[1], grad_bias[0], row) != 0)
        fail("without the gradient of x", isa, s, k);
}

/* A NaN, and what becomes infinite, is no reason to cut or to stop a gradient, and stays with its channel. */
static void check_nan(fe_isa isa) {
    enum { PIXELS = 40, CHANNELS = 18 };
    const shape s = {PIXELS, CHANNELS};
    const fe_batch_norm norm = {PIXELS, CHANNELS, 1e-5, NULL, NULL, 6.0f};
    for (int64_t i = 0; i < PIXELS * CHANNELS; i++)
        x_room[MARGIN + i] = (float)(i % 5);
    x_room[MARGIN + 3 * CHANNELS + 17] = NAN;
    fe_batch_norm_forward(isa, &norm, x, y[0], bits[0], statistics[0]);
    for (int64_t i = 0; i < PIXELS; i++)
        for (int64_t c = 0; c < CHANNELS; c++)
            if (isnan(y[0][i * CHANNELS + c]) != (c == 17) || (c == 17 && !passes(bits[0], &s, i, c))) {
                fail("a NaN", isa, &s, kinds);
                return;
            }
}

#define REFUSE(change)                                                                                                 \
    do {                                                                                                               \
        fe_batch_norm norm = {16, 8, 1.0, NULL, NULL, NAN};                                                            \
        change;                                                                                                        \
        if (fe_batch_norm_is_valid(&norm)) {                                                                           \
            printf("FAIL accepted: %s\n", #change);                                                                    \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

static void check_what_is_refused(void) {
    REFUSE(norm.pixels = 0);
    REFUSE(norm.channels = -1);
    REFUSE(norm.pixels = (int64_t)1 << 60);
    REFUSE(norm.channels = (int64_t)1 << 60);
}

int main(void) {
    fe_isa ceiling = check_ceiling();
    printf("batch_norm: %s\n", fe_isa_name(fe_batch_norm_isa(ceiling)));
    uint64_t state = 88172645463325252u;
    for (int isa = FE_SERIAL; isa <= (int)ceiling; isa++) {
        if (!fe_isa_available((fe_isa)isa))
            continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (size_t j = 0; j < sizeof kinds / sizeof *kinds; j++)
                check((fe_isa)isa, &shapes[i], &kinds[j], &state);
        check_nan((fe_isa)isa);
    }
    check_what_is_refused();
    printf("%d failures\n", failures);
    return failures != 0;
}
