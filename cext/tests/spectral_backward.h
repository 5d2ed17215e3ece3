/* The backward pass of a convolution by low frequencies, against its definition in double; part of spectrum_test.c. */

typedef struct {
    int64_t images, outputs, inputs, size[2], kernel[2], tile[2];
    int64_t stride, dilation, padding, highest[2], kept;
} layer;

/* Channels that fill panels, fall short of vectors and of panels, or need several; tiles that the map is no multiple of,
 * overlapping windows, gaps between them, and a kernel that is not square; images in
 * groups of which only some are few points. */
static const layer layers[] = {
    {3, 16, 16, {8, 8}, {3, 3}, {8, 8}, 1, 1, 1, {2, 2}, 10},
    {2, 7, 33, {7, 5}, {3, 3}, {4, 3}, 1, 1, 1, {2, 1}, 7},
    {2, 70, 15, {5, 6}, {3, 3}, {5, 6}, 1, 2, 2, {3, 3}, 24},
    {4, 15, 70, {6, 6}, {3, 3}, {2, 3}, 2, 1, 1, {1, 1}, 4},
    {1, 1, 1, {4, 3}, {2, 3}, {4, 2}, 1, 1, 0, {1, 2}, 5},
    {3, 31, 97, {3, 3}, {1, 1}, {1, 1}, 2, 1, 0, {0, 0}, 0},
    {2, 64, 64, {4, 4}, {5, 1}, {4, 4}, 1, 1, 0, {2, 1}, 6},
    {2, 97, 6, {3, 7}, {3, 3}, {3, 3}, 3, 1, 0, {2, 2}, 3},
    {4, 65, 66, {5, 7}, {1, 1}, {1, 1}, 1, 1, 0, {0, 0}, 0},
};

enum { MOST_FLOATS = 1 << 16, MOST_SCRATCH = 1 << 22 };

typedef struct {
    float grad_x[MOST_FLOATS], grad_weight[MOST_FLOATS];
} gradients;

static tiles of_y, of_x, of_taps;
static float grad_map[MOST_FLOATS], saved[MOST_FLOATS], weights[MOST_FLOATS], scratch[MOST_SCRATCH];
static gradients first_found, found;

static void fail_layer(const char *what, fe_isa isa, const layer *l, int innermost) {
    printf("FAIL %s: %s, %ldx%ldx%ld, %s\n", what, fe_isa_name(isa), (long)l->images, (long)l->outputs, (long)l->inputs,
           innermost ? "inputs innermost" : "taps innermost");
    failures++;
}

/* How gradient, input and weight are cut; returns the cells of a period. */
static int64_t cut_layer(const layer *l, fe_spectral_conv *conv) {
    shape y = {.images = l->images, .channels = l->outputs, .kept = l->kept}, x = y, taps = y;
    shape *all[] = {&y, &x, &taps};
    int64_t area = 1, windows[2], input[2];
    for (int axis = 0; axis < 2; axis++) {
        int64_t stride = l->stride, tile = l->tile[axis], kernel = l->kernel[axis];
        int64_t count = (l->size[axis] + tile - 1) / tile;
        windows[axis] = stride * (tile - 1) + l->dilation * (kernel - 1) + 1;
        input[axis] = stride * (l->size[axis] - 1) + l->dilation * (kernel - 1) + 1 - 2 * l->padding;
        area *= windows[axis];
        y.tiles[axis] = x.tiles[axis] = count;
        taps.tiles[axis] = 1;
        y.step[axis] = y.window[axis] = tile;
        x.step[axis] = stride * tile, x.window[axis] = windows[axis], x.offset[axis] = l->padding;
        taps.step[axis] = taps.window[axis] = kernel;
        x.period[axis] = (double)windows[axis];
        y.period[axis] = (double)windows[axis] / (double)stride;
        taps.period[axis] = (double)windows[axis] / (double)l->dilation;
        for (int i = 0; i < 3; i++)
            all[i]->highest[axis] = l->highest[axis];
    }
    y.height = l->size[0], y.width = l->size[1];
    x.height = input[0], x.width = input[1], x.channels = l->inputs;
    taps.images = l->outputs, taps.channels = l->inputs, taps.height = l->kernel[0], taps.width = l->kernel[1];
    cut(&of_y, &y);
    cut(&of_x, &x);
    cut(&of_taps, &taps);
    *conv = (fe_spectral_conv){.y = &of_y.tiling, .x = &of_x.tiling, .taps = &of_taps.tiling, .cells = area};
    return area;
}

/* Of row 0 the constant, then of each frequency the cosine or the sine part, at one cell of a window. */
static double wave_at(const tiles *of, int64_t row, int64_t cell) {
    int64_t kept = of->tiling.frequencies;
    return row == 0 ? 1.0 : row <= kept ? of->cosine[row - 1][cell] : of->sine[row - 1 - kept][cell];
}

/* Calls `visit` for all cells of all windows that lie in the map. */
typedef void (*visitor)(const fe_spectral_conv *conv, int64_t point, int64_t at, int64_t cell);

static void each_cell(const fe_spectral_conv *conv, const fe_tiling *t, visitor visit) {
    for (int64_t point = 0; point < t->images * t->tiles[0] * t->tiles[1]; point++) {
        int64_t n = point / (t->tiles[0] * t->tiles[1]), p = point / t->tiles[1] % t->tiles[0], q = point % t->tiles[1];
        for (int64_t i = 0; i < t->window[0]; i++)
            for (int64_t j = 0; j < t->window[1]; j++) {
                int64_t h = p * t->step[0] - t->offset[0] + i, w = q * t->step[1] - t->offset[1] + j;
                if (h >= 0 && h < t->height && w >= 0 && w < t->width)
                    visit(conv, point, ((n * t->height + h) * t->width + w) * t->channels, i * t->window[1] + j);
            }
    }
}

enum { MOST_ROWS = 2 * MOST_FREQUENCIES + 1 };

/* Spectra in double: (point, channel, row), and (output, input, row) of the weight. */
static double spectra_y[MOST_FLOATS * 4], spectra_w[MOST_FLOATS * 4];
static double sums[MOST_FLOATS], magnitudes[MOST_FLOATS];

static void add_to_spectra(const fe_spectral_conv *conv, int64_t point, int64_t at, int64_t cell) {
    const int64_t rows = 1 + 2 * conv->y->frequencies;
    for (int64_t o = 0; o < conv->y->channels; o++)
        for (int64_t row = 0; row < rows; row++)
            spectra_y[(point * conv->y->channels + o) * rows + row] +=
                wave_at(&of_y, row, cell) * (double)conv->grad[at + o];
}

/* a b, or conj(a) b, at one cell; both hold `rows` numbers. */
static double product_at(const tiles *of, const double *a, const double *b, int64_t cell, int conjugate, double *magnitude) {
    const int64_t kept = of->tiling.frequencies;
    double sum = 0.5 * a[0] * b[0], sign = conjugate ? -1.0 : 1.0;
    *magnitude += fabs(a[0] * b[0]);
    for (int64_t k = 1; k <= kept; k++) {
        double real = a[k] * b[k] - sign * a[k + kept] * b[k + kept];
        double imaginary = a[k] * b[k + kept] + sign * a[k + kept] * b[k];
        sum += real * of->cosine[k - 1][cell] + imaginary * of->sine[k - 1][cell];
        *magnitude += (fabs(a[k]) + fabs(a[k + kept])) * (fabs(b[k]) + fabs(b[k + kept]));
    }
    return sum;
}

static void add_to_map(const fe_spectral_conv *conv, int64_t point, int64_t at, int64_t cell) {
    const int64_t rows = 1 + 2 * conv->y->frequencies, outputs = conv->y->channels, inputs = conv->x->channels;
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t o = 0; o < outputs; o++)
            sums[at + i] += product_at(&of_x, spectra_y + (point * outputs + o) * rows, spectra_w + (o * inputs + i) * rows,
                                       cell, 0, &magnitudes[at + i]);
}

static int all_near(const float *received, int64_t count, double part) {
    for (int64_t i = 0; i < count; i++)
        if (!near((double)received[i], part * sums[i], 4 * part * magnitudes[i]))
            return 0;
    return 1;
}

static int64_t weight_at(const fe_spectral_conv *conv, int64_t o, int64_t i, int64_t tap) {
    int64_t inputs = conv->x->channels, taps = conv->taps->height * conv->taps->width;
    return conv->inputs_innermost ? (o * taps + tap) * inputs + i : (o * inputs + i) * taps + tap;
}

static void find_expected_spectra(const fe_spectral_conv *conv) {
    const int64_t rows = 1 + 2 * conv->y->frequencies, outputs = conv->y->channels, inputs = conv->x->channels;
    memset(spectra_y, 0, sizeof spectra_y);
    memset(spectra_w, 0, sizeof spectra_w);
    each_cell(conv, conv->y, add_to_spectra);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t tap = 0; tap < conv->taps->height * conv->taps->width; tap++)
                    spectra_w[(o * inputs + i) * rows + row] +=
                        wave_at(&of_taps, row, tap) * (double)conv->weight[weight_at(conv, o, i, tap)];
}

static int grad_weight_is_right(const fe_spectral_conv *conv, int64_t points) {
    const int64_t rows = 1 + 2 * conv->y->frequencies, outputs = conv->y->channels, inputs = conv->x->channels;
    const int64_t taps = conv->taps->height * conv->taps->width;
    memset(sums, 0, sizeof sums);
    memset(magnitudes, 0, sizeof magnitudes);
    for (int64_t point = 0; point < points; point++)
        for (int64_t i = 0; i < inputs; i++) {
            double x[MOST_ROWS];
            for (int64_t row = 0; row < rows; row++)
                x[row] = (double)conv->spectra[(row * points + point) * inputs + i];
            for (int64_t o = 0; o < outputs; o++)
                for (int64_t tap = 0; tap < taps; tap++) {
                    int64_t at = weight_at(conv, o, i, tap);
                    sums[at] += product_at(&of_taps, spectra_y + (point * outputs + o) * rows, x, tap, 1, &magnitudes[at]);
                }
        }
    return all_near(conv->grad_weight, outputs * inputs * taps, 2.0 / (double)conv->cells);
}

static int grad_x_is_right(const fe_spectral_conv *conv, int64_t cells) {
    memset(sums, 0, sizeof sums);
    memset(magnitudes, 0, sizeof magnitudes);
    each_cell(conv, conv->x, add_to_map);
    return all_near(conv->grad_x, cells, 2.0 / (double)conv->cells);
}

static int backward(fe_isa isa, fe_spectral_conv *conv, fe_division division, gradients *into) {
    int64_t needed = fe_spectral_scratch(conv, division);
    if (needed < 0 || needed > MOST_SCRATCH)
        return 0;
    for (int64_t i = 0; i < needed; i++)
        scratch[i] = NAN;
    for (int64_t i = 0; i < MOST_FLOATS; i++)
        into->grad_x[i] = into->grad_weight[i] = -77.0f;
    conv->grad_x = into->grad_x, conv->grad_weight = into->grad_weight;
    return fe_spectral_backward(isa, conv, division, scratch) == 0;
}

static void check_layer(fe_isa isa, const layer *l, int innermost, uint64_t *state) {
    fe_spectral_conv conv;
    cut_layer(l, &conv);
    conv.grad = grad_map, conv.spectra = saved, conv.weight = weights, conv.inputs_innermost = innermost;
    for (int64_t i = 0; i < MOST_FLOATS; i++)
        grad_map[i] = check_random(state), saved[i] = check_random(state), weights[i] = check_random(state);
    const int64_t points = l->images * conv.x->tiles[0] * conv.x->tiles[1];
    const int64_t cells = l->images * conv.x->height * conv.x->width * l->inputs;
    const int64_t taps = l->outputs * l->inputs * l->kernel[0] * l->kernel[1];
    if (!fe_tiling_is_valid(conv.y) || !fe_tiling_is_valid(conv.x) || !fe_tiling_is_valid(conv.taps) ||
        !backward(isa, &conv, (fe_division){1, l->images, 2}, &first_found)) {
        fail_layer("refused", isa, l, innermost);
        return;
    }
    find_expected_spectra(&conv);
    if (!grad_weight_is_right(&conv, points) || first_found.grad_weight[taps] != -77.0f)
        fail_layer("grad_weight", isa, l, innermost);
    if (!grad_x_is_right(&conv, cells) || first_found.grad_x[cells] != -77.0f)
        fail_layer("grad_x", isa, l, innermost);
    fe_set_parallel_for(backwards);
    if (!backward(isa, &conv, (fe_division){3, l->images, 1}, &found) || memcmp(&found, &first_found, sizeof found) != 0)
        fail_layer("divided otherwise", isa, l, innermost);
    fe_set_parallel_for(NULL);
    if (!backward(isa, &conv, (fe_division){3, l->images, 64}, &found) || memcmp(&found, &first_found, sizeof found) != 0)
        fail_layer("in groups", isa, l, innermost);
    if (!backward(isa, &conv, (fe_division){2, 1, 64}, &found) || !grad_weight_is_right(&conv, points) ||
        memcmp(found.grad_x, first_found.grad_x, sizeof found.grad_x) != 0)
        fail_layer("in slabs", isa, l, innermost);
}

static void check_backward(fe_isa isa, uint64_t *state) {
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        for (int innermost = 0; innermost < 2; innermost++)
            check_layer(isa, &layers[i], innermost, state);
    fe_spectral_conv conv;
    cut_layer(&layers[0], &conv);
    if (fe_spectral_scratch(&conv, (fe_division){1, (int64_t)1 << 60, 1}) >= 0 ||
        fe_spectral_scratch(&conv, (fe_division){(int64_t)1 << 60, 1, 1}) >= 0 ||
        fe_spectral_scratch(&conv, (fe_division){1, 1, (int64_t)1 << 60}) >= 0)
        fail_layer("scratch overflows", isa, &layers[0], 0);
}
