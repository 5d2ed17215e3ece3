/* Calls a family's kernels as often as it is told to, for whoever counts instructions: `calls FAMILY COUNT`, with
 * FLOWER_EDGE_ISA as everywhere. Says which version ran. Exits 2 on wrong arguments. */
#include "check.h"
#include "gradient_filter/gradient_filter.h"
#include "mix/mix.h"
#include "sign_bits/sign_bits.h"
#include "spectrum/spectrum.h"

#include <math.h>
#include <string.h>

enum {
    LENGTH = 16384,
    ROWS = 4,
    /* A map of 64 channels and 16 x 16 cells, in windows of 8 x 8 with up to two periods along each side. */
    CHANNELS = 64,
    SIDE = 16,
    WINDOW = 8,
    PERIODS = 2,
    FREQUENCIES = 12,
    SPECTRA = (1 + 3 * FREQUENCIES) * (SIDE / WINDOW) * (SIDE / WINDOW) * CHANNELS,
};

static float rows[ROWS][LENGTH], out[LENGTH], spectra[SPECTRA];
static uint8_t bits[LENGTH / 8];
static float waves[(2 * PERIODS + 1) * WINDOW / 2];
static signed char frequencies[2 * FREQUENCIES];

static void mix(fe_isa isa) {
    static const float weights[ROWS] = {0.4f, 0.3f, 0.2f, 0.1f};
    const fe_float *vectors[ROWS];
    for (int k = 0; k < ROWS; k++)
        vectors[k] = rows[k];
    fe_mix(isa, out, vectors, weights, ROWS, LENGTH);
}

static void sign_bits(fe_isa isa) {
    fe_relu_bits(isa, out, bits, rows[0], LENGTH, 6.0f);
    fe_mask_by_bits(isa, out, rows[1], bits, LENGTH);
}

static void gradient_filter(fe_isa isa) {
    static const unsigned char constant[] = {0};
    const fe_grid grid = {
        .images = 1,
        .channels = CHANNELS,
        .height = SIDE,
        .width = SIDE,
        .window = {2, 2},
        .patches = {SIDE / 2, SIDE / 2},
        .side = 1,
        .components = 1,
        .slots = constant,
    };
    fe_patch_pool(isa, rows[1], rows[0], &grid, FE_CHANNELS_LAST, 1);
    fe_patch_fill(isa, out, rows[1], &grid, FE_CHANNELS_LAST, 1.0f);
    fe_depthwise_backward(isa, out, rows[3], rows[0], rows[1], rows[2], &grid, &grid, FE_CHANNELS_LAST, 1.0f);
}

static void spectrum(fe_isa isa) {
    const fe_tiling tiling = {
        .images = 1,
        .channels = CHANNELS,
        .height = SIDE,
        .width = SIDE,
        .tiles = {SIDE / WINDOW, SIDE / WINDOW},
        .step = {WINDOW, WINDOW},
        .window = {WINDOW, WINDOW},
        .highest = {PERIODS, PERIODS},
        .waves = {waves, waves},
        .frequencies = FREQUENCIES,
        .waves_of = frequencies,
    };
    fe_analyse(isa, spectra, rows[0], &tiling, 1);
    fe_synthesise(isa, out, spectra, &tiling);
}

static const struct {
    const char *name;
    void (*call)(fe_isa isa);
    fe_isa (*version)(fe_isa ceiling);
} families[] = {
    {"mix", mix, fe_mix_isa},
    {"sign_bits", sign_bits, fe_sign_bits_isa},
    {"gradient_filter", gradient_filter, fe_gradient_filter_isa},
    {"spectrum", spectrum, fe_spectrum_isa},
};

/* Half of the plane of frequencies, since the other half has the same waves. */
static void choose_waves(void) {
    int kept = 0;
    for (int f = 0; f <= PERIODS; f++)
        for (int g = f ? -PERIODS : 1; g <= PERIODS; g++) {
            frequencies[2 * kept] = (signed char)f;
            frequencies[2 * kept++ + 1] = (signed char)g;
        }
    for (int h = 0; h < WINDOW / 2; h++)
        for (int f = 0; f <= PERIODS; f++) {
            double angle = 2 * acos(-1.0) / WINDOW * f * (h - (WINDOW - 1) / 2.0);
            waves[f * WINDOW / 2 + h] = (float)cos(angle);
            if (f)
                waves[(PERIODS + f) * WINDOW / 2 + h] = (float)sin(angle);
        }
}

int main(int argc, char **argv) {
    fe_isa ceiling = check_ceiling();
    uint64_t state = 88172645463325252u;
    for (int k = 0; k < ROWS; k++)
        for (int i = 0; i < LENGTH; i++)
            rows[k][i] = 8.0f * check_random(&state);
    choose_waves();
    for (size_t family = 0; argc == 3 && family < sizeof families / sizeof *families; family++)
        if (strcmp(argv[1], families[family].name) == 0) {
            printf("%s: %s\n", argv[1], fe_isa_name(families[family].version(ceiling)));
            for (int call = 0; call < atoi(argv[2]); call++)
                families[family].call(ceiling);
            return 0;
        }
    fprintf(stderr, "usage: calls FAMILY COUNT\n");
    return 2;
}
