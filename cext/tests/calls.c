/* Calls a family's kernels as often as it is told to, for whoever counts instructions: `calls FAMILY COUNT`, with
 * FLOWER_EDGE_ISA as everywhere. Says which version ran. Exits 2 on wrong arguments. */
#include "batch_norm/batch_norm.h"
#include "byte_sums/byte_sums.h"
#include "check.h"
#include "gradient_filter/gradient_filter.h"
#include "int8/int8.h"
#include "mix/mix.h"
#include "range_evonorm/range_evonorm.h"
#include "sign_bits/sign_bits.h"
#include "sparse_grad/sparse_grad.h"
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
    GROUPS = 8,
    /* Channels and side of a convolution of bytes. */
    INPUTS = 16,
    OUTPUTS = 32,
    PIXELS = 8 * 8,
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

static const fe_conv small_conv = {
    .images = 1,
    .inputs = INPUTS,
    .outputs = OUTPUTS,
    .height = 8,
    .width = 8,
    .kernel = {3, 3},
    .stride = {1, 1},
    .padding = {1, 1},
    .dilation = {1, 1},
    .groups = 1,
};

/* What a layer does in a training step: the input and the gradient of the output become bytes, three products. */
static void int8(fe_isa isa) {
    static uint8_t x[PIXELS * INPUTS], error[PIXELS * OUTPUTS];
    static float grad_weight[OUTPUTS * 9 * INPUTS];
    const fe_conv conv = small_conv;
    const fe_rounding nearest = {.inverse = 15.0f, .zero = 128, .most = 255};
    const fe_rounding by_chance = {.inverse = 15.0f, .zero = FE_ERROR_ZERO, .least = 1, .most = 255, .stochastic = 1, .seed = 1};
    fe_quantise(isa, x, rows[0], PIXELS * INPUTS, &nearest);
    fe_quantise(isa, error, rows[1], PIXELS * OUTPUTS, &by_chance);
    for (int transposed = 0; transposed < 2; transposed++) {
        fe_packed_sizes sizes = fe_int8_packed(isa, &conv, transposed);
        fe_packed packed = {malloc((size_t)sizes.bytes), malloc((size_t)sizes.sums * sizeof(int32_t)),
                            malloc((size_t)sizes.scales * sizeof(float))};
        fe_conv_out to = {.floats = out};
        if (!packed.bytes || !packed.sums || !packed.scales || fe_int8_pack(isa, &packed, rows[2], &conv, transposed) ||
            fe_int8_conv(isa, &to, transposed ? error : x, 128, 0.1f, &packed, NULL, &conv, transposed))
            exit(1);
        free(packed.bytes);
        free(packed.sums);
        free(packed.scales);
    }
    if (fe_int8_grad_weight(isa, grad_weight, x, 128, 0.1f, error, NULL, &conv, 1))
        exit(1);
}

/* The backward pass of a layer without four fifths of its gradient. */
static void sparse_grad(fe_isa isa) {
    /* More than the map has: a chunk is a piece of a larger one. */
    enum { ROOM = 2 * LENGTH };
    static uint32_t places[ROOM];
    static float values[ROOM], grad_weight[OUTPUTS * 9 * INPUTS];
    static int32_t counts[ROOM], bounds[ROOM], starts[ROOM];
    static fe_listed entries[ROOM];
    const fe_nonzeros left = {PIXELS, OUTPUTS, places, values, counts, bounds};
    const fe_lists lists = {starts, entries};
    const fe_sparse_weight weight = {.floats = rows[2]};
    const fe_chunks chunks = fe_chunks_of(PIXELS, OUTPUTS);
    float threshold;
    if (chunks.chunks * chunks.room > ROOM || PIXELS * chunks.bounds > ROOM ||
        fe_sparse_tiles(isa, &small_conv) * (OUTPUTS + 1) > ROOM ||
        fe_pruning_threshold(&threshold, rows[1], PIXELS * OUTPUTS, 0.8) || fe_prune(isa, &left, rows[1], threshold, 1) ||
        fe_sparse_lists(isa, &lists, &left, &small_conv) ||
        fe_sparse_grad_input(isa, out, &left, &lists, &weight, &small_conv) ||
        fe_sparse_grad_weight(isa, grad_weight, &lists, rows[0], &small_conv, 1))
        exit(1);
}

static void byte_sums(fe_isa isa) {
    static uint8_t bytes[LENGTH];
    const fe_byte_map x = {(const uint8_t *)rows[0], 0.1f, 128}, y = {(const uint8_t *)rows[1], 0.2f, 7};
    float ends[2];
    if (fe_byte_sum_ends(isa, ends, &x, &y, LENGTH) || fe_byte_sum(isa, bytes, 5.0f, 100, &x, &y, LENGTH) ||
        fe_mask_by_bytes(isa, out, rows[2], bytes, 100, LENGTH))
        exit(1);
}

static void range_evonorm(fe_isa isa) {
    static float extremes[FE_CHUNKS * GROUPS * 2], grads[3][CHANNELS];
    const fe_range_evonorm norm = {
        .samples = 1,
        .pixels = SIDE * SIDE,
        .channels = CHANNELS,
        .groups = GROUPS,
        .factor = 0.25f,
        .eps = 1e-5f,
        .weight = rows[3],
        .bias = rows[3] + CHANNELS,
        .v = rows[3] + 2 * CHANNELS,
    };
    const fe_norm_map x = {.floats = rows[0]}, y = {.floats = out}, grad = {.floats = rows[1]};
    if (fe_range_evonorm_forward(isa, &norm, &x, &y, extremes, NULL) ||
        fe_range_evonorm_backward(isa, &norm, &x, extremes, &grad, out, grads[0], grads[1], grads[2], NULL))
        exit(1);
}

static void batch_norm(fe_isa isa) {
    static float statistics[3 * CHANNELS], grads[2][CHANNELS];
    const fe_batch_norm norm = {.pixels = LENGTH / CHANNELS, .channels = CHANNELS, .eps = 1e-5, .cap = 6.0f};
    if (fe_batch_norm_forward(isa, &norm, rows[0], out, bits, statistics) ||
        fe_batch_norm_backward(isa, &norm, rows[0], statistics, bits, rows[1], out, grads[0], grads[1]))
        exit(1);
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
    {"int8", int8, fe_int8_isa},
    {"range_evonorm", range_evonorm, fe_range_evonorm_isa},
    {"byte_sums", byte_sums, fe_byte_sums_isa},
    {"sparse_grad", sparse_grad, fe_sparse_grad_isa},
    {"batch_norm", batch_norm, fe_batch_norm_isa},
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
