/* Kernels whose lanes are channels. Included once for each instruction set, which defines VEC, LANES, NAME, TARGET and the
 * primitives. `highest` of an inlined function is a compile-time constant for the usual numbers of frequencies. */

/* Adds a pair of cells that lie opposite each other to the waves along one axis. */
TARGET FE_INLINE void NAME(gather)(VEC *cosines, VEC *sines, VEC even, VEC odd, const float *waves, int64_t half,
                                   int64_t h, int64_t highest) {
    cosines[0] = NAME(add)(cosines[0], even);
    for (int64_t f = 1; f <= highest; f++) {
        cosines[f] = NAME(multiply_add)(NAME(set)(waves[f * half + h]), even, cosines[f]);
        sines[f] = NAME(multiply_add)(NAME(set)(waves[(highest + f) * half + h]), odd, sines[f]);
    }
}

/* The transpose: values of two opposite cells, up to their sum and difference. */
TARGET FE_INLINE void NAME(scatter)(VEC *even, VEC *odd, const VEC *cosines, const VEC *sines, int64_t step,
                                    const float *waves, int64_t half, int64_t h, int64_t highest) {
    VEC e = cosines[0], o = NAME(set)(0.0f);
    for (int64_t f = 1; f <= highest; f++) {
        e = NAME(multiply_add)(NAME(set)(waves[f * half + h]), cosines[f * step], e);
        o = NAME(multiply_add)(NAME(set)(waves[(highest + f) * half + h]), sines[f * step], o);
    }
    *even = e;
    *odd = o;
}

TARGET FE_INLINE void NAME(clear)(VEC *values, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        values[i] = NAME(set)(0.0f);
}

/* `n` channels of one window, the first of which are at x: afterwards cosine f of the columns' cosine g is at
 * spectrum[f * DOFS + g]; sines stand at f + highest and g + highest. Rows and columns outside the spans are 0. */
TARGET FE_INLINE void NAME(analyse_window)(VEC *spectrum, const float *x, const fe_tiling *tiling, int64_t row,
                                           int64_t cell, span rows, span columns, int64_t highest0, int64_t highest1,
                                           int64_t n) {
    VEC lines[DOFS * FE_WIDEST_WINDOW], cosines[FE_HIGHEST + 1], sines[FE_HIGHEST + 1];
    const int64_t height = tiling->window[0], width = tiling->window[1];
    const int64_t half0 = (height + 1) / 2, half1 = (width + 1) / 2, dofs = 2 * highest1 + 1;
    const VEC nothing = NAME(set)(0.0f);
    for (int64_t i = 0; i < height; i++) {
        NAME(clear)(cosines, highest1 + 1);
        NAME(clear)(sines, highest1 + 1);
        for (int64_t h = 0; i >= rows.begin && i < rows.end && h < half1; h++) {
            int64_t other = width - 1 - h;
            VEC a = h >= columns.begin && h < columns.end ? NAME(load)(x + i * row + h * cell, n) : nothing;
            VEC b = other > h && other >= columns.begin && other < columns.end ? NAME(load)(x + i * row + other * cell, n)
                                                                               : nothing;
            NAME(gather)(cosines, sines, NAME(add)(a, b), NAME(subtract)(a, b), tiling->waves[1], half1, h, highest1);
        }
        for (int64_t f = 0; f <= highest1; f++)
            lines[f * FE_WIDEST_WINDOW + i] = cosines[f];
        for (int64_t f = 1; f <= highest1; f++)
            lines[(highest1 + f) * FE_WIDEST_WINDOW + i] = sines[f];
    }
    for (int64_t g = 0; g < dofs; g++) {
        const VEC *line = lines + g * FE_WIDEST_WINDOW;
        NAME(clear)(cosines, highest0 + 1);
        NAME(clear)(sines, highest0 + 1);
        for (int64_t h = 0; h < half0; h++) {
            VEC a = line[h], b = height - 1 - h > h ? line[height - 1 - h] : nothing;
            NAME(gather)(cosines, sines, NAME(add)(a, b), NAME(subtract)(a, b), tiling->waves[0], half0, h, highest0);
        }
        for (int64_t f = 0; f <= highest0; f++)
            spectrum[f * DOFS + g] = cosines[f];
        for (int64_t f = 1; f <= highest0; f++)
            spectrum[(highest0 + f) * DOFS + g] = sines[f];
    }
}

/* What is kept of a window's spectrum, for n of a row's channels. */
TARGET FE_INLINE void NAME(store_spectrum)(float *out, const tile_job *job, const VEC *spectrum, int64_t highest0,
                                           int64_t highest1, int64_t n) {
    const fe_tiling *tiling = job->tiling;
    const int64_t kept = tiling->frequencies, a_row = job->rows.points * job->rows.width;
    const VEC scale = NAME(set)(job->scale), nothing = NAME(set)(0.0f);
    NAME(store)(out, NAME(multiply_add)(NAME(set)(job->constant_scale), spectrum[0], nothing), n);
    for (int64_t k = 0; k < kept; k++) {
        int64_t f = tiling->waves_of[2 * k], g = tiling->waves_of[2 * k + 1], other = g < 0 ? -g : g;
        const VEC *cosine = spectrum + f * DOFS, *sine = spectrum + (highest0 + f) * DOFS;
        VEC cc = cosine[other], ss = f && other ? sine[highest1 + other] : nothing;
        VEC sc = f ? sine[other] : nothing, cs = other ? cosine[highest1 + other] : nothing;
        VEC real = NAME(multiply_add)(scale, g < 0 ? NAME(add)(cc, ss) : NAME(subtract)(cc, ss), nothing);
        VEC imaginary = NAME(multiply_add)(scale, g < 0 ? NAME(subtract)(sc, cs) : NAME(add)(sc, cs), nothing);
        NAME(store)(out + (1 + k) * a_row, real, n);
        NAME(store)(out + (1 + kept + k) * a_row, imaginary, n);
        if (job->sums)
            NAME(store)(out + (1 + 2 * kept + k) * a_row, NAME(add)(real, imaginary), n);
    }
}

TARGET FE_INLINE void NAME(analyse_row_of)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end,
                                           int64_t highest0, int64_t highest1) {
    const fe_tiling *tiling = job->tiling;
    const int64_t channels = tiling->channels, row = tiling->width * channels;
    VEC spectrum[DOFS * DOFS];
    span rows = inside(tiling, 0, p);
    for (int64_t q = 0; q < tiling->tiles[1]; q++) {
        span columns = inside(tiling, 1, q);
        const float *x = job->map + image * tiling->height * row + first_cell(tiling, 0, p) * row +
                         first_cell(tiling, 1, q) * channels;
        float *out = job->spectra + row_at(job, image, p, q);
        int64_t c = first;
        for (; c + LANES <= end; c += LANES) {
            NAME(analyse_window)(spectrum, x + c, tiling, row, channels, rows, columns, highest0, highest1, LANES);
            NAME(store_spectrum)(out + c - first, job, spectrum, highest0, highest1, LANES);
        }
        if (c < end) {
            int64_t room = job->rows.width - (c - first);
            NAME(analyse_window)(spectrum, x + c, tiling, row, channels, rows, columns, highest0, highest1, end - c);
            NAME(store_spectrum)(out + c - first, job, spectrum, highest0, highest1, room < LANES ? room : LANES);
        }
    }
}

/* The transpose of `analyse_window`, added to the map. */
TARGET FE_INLINE void NAME(synthesise_window)(float *x, const VEC *spectrum, const fe_tiling *tiling, int64_t row,
                                              int64_t cell, span rows, span columns, int64_t highest0, int64_t highest1,
                                              int64_t n) {
    VEC lines[DOFS * FE_WIDEST_WINDOW], even, odd;
    const int64_t height = tiling->window[0], width = tiling->window[1];
    const int64_t half0 = (height + 1) / 2, half1 = (width + 1) / 2, dofs = 2 * highest1 + 1;
    for (int64_t g = 0; g < dofs; g++) {
        VEC *line = lines + g * FE_WIDEST_WINDOW;
        for (int64_t h = 0; h < half0; h++) {
            NAME(scatter)(&even, &odd, spectrum + g, spectrum + highest0 * DOFS + g, DOFS, tiling->waves[0], half0, h,
                          highest0);
            line[height - 1 - h] = NAME(subtract)(even, odd);
            line[h] = NAME(add)(even, odd);
        }
    }
    for (int64_t i = rows.begin; i < rows.end; i++)
        for (int64_t h = 0; h < half1; h++) {
            int64_t other = width - 1 - h;
            float *left = x + i * row + h * cell, *right = x + i * row + other * cell;
            NAME(scatter)(&even, &odd, lines + i, lines + highest1 * FE_WIDEST_WINDOW + i, FE_WIDEST_WINDOW,
                          tiling->waves[1], half1, h, highest1);
            if (h >= columns.begin && h < columns.end)
                NAME(store)(left, NAME(add)(NAME(load)(left, n), NAME(add)(even, odd)), n);
            if (other > h && other >= columns.begin && other < columns.end)
                NAME(store)(right, NAME(add)(NAME(load)(right, n), NAME(subtract)(even, odd)), n);
        }
}

/* A window's spectrum from the products at `in`. */
TARGET FE_INLINE void NAME(load_products)(VEC *spectrum, const float *in, const tile_job *job, int64_t highest0,
                                          int64_t highest1, int64_t n) {
    const fe_tiling *tiling = job->tiling;
    const int64_t kept = tiling->frequencies, a_row = job->rows.points * job->rows.width;
    for (int64_t f = 0; f <= 2 * highest0; f++)
        NAME(clear)(spectrum + f * DOFS, 2 * highest1 + 1);
    spectrum[0] = NAME(load)(in, n);
    for (int64_t k = 0; k < kept; k++) {
        int64_t f = tiling->waves_of[2 * k], g = tiling->waves_of[2 * k + 1], other = g < 0 ? -g : g;
        VEC *cosine = spectrum + f * DOFS, *sine = spectrum + (highest0 + f) * DOFS;
        VEC u = NAME(load)(in + (1 + k) * a_row, n), w = NAME(load)(in + (1 + kept + k) * a_row, n);
        VEC s = NAME(load)(in + (1 + 2 * kept + k) * a_row, n);
        VEC sum = NAME(add)(u, w), difference = NAME(subtract)(u, w);
        VEC real = job->conjugate ? sum : difference;
        VEC imaginary = job->conjugate ? NAME(add)(s, difference) : NAME(subtract)(s, sum);
        cosine[other] = NAME(add)(cosine[other], real);
        if (f)
            sine[other] = NAME(add)(sine[other], imaginary);
        if (other) {
            VEC *cs = cosine + highest1 + other;
            *cs = g < 0 ? NAME(subtract)(*cs, imaginary) : NAME(add)(*cs, imaginary);
        }
        if (f && other) {
            VEC *ss = sine + highest1 + other;
            *ss = g < 0 ? NAME(add)(*ss, real) : NAME(subtract)(*ss, real);
        }
    }
}

TARGET FE_INLINE void NAME(synthesise_row_of)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end,
                                              int64_t highest0, int64_t highest1) {
    const fe_tiling *tiling = job->tiling;
    const int64_t channels = tiling->channels, row = tiling->width * channels;
    VEC spectrum[DOFS * DOFS];
    span rows = inside(tiling, 0, p);
    for (int64_t q = 0; q < tiling->tiles[1]; q++) {
        span columns = inside(tiling, 1, q);
        const float *in = job->products + row_at(job, image, p, q);
        float *x = job->out + image * tiling->height * row + first_cell(tiling, 0, p) * row +
                   first_cell(tiling, 1, q) * channels;
        int64_t c = first;
        for (; c + LANES <= end; c += LANES) {
            NAME(load_products)(spectrum, in + c - first, job, highest0, highest1, LANES);
            NAME(synthesise_window)(x + c, spectrum, tiling, row, channels, rows, columns, highest0, highest1, LANES);
        }
        if (c < end) {
            NAME(load_products)(spectrum, in + c - first, job, highest0, highest1, end - c);
            NAME(synthesise_window)(x + c, spectrum, tiling, row, channels, rows, columns, highest0, highest1, end - c);
        }
    }
}

/* Calls of `kernel` with the numbers of frequencies as constants where they are usual. */
#define DISPATCH(kernel)                                                                                               \
    int64_t highest0 = job->tiling->highest[0], highest1 = job->tiling->highest[1];                                    \
    if (highest0 == 2 && highest1 == 2)                                                                                \
        NAME(kernel)(job, image, p, first, end, 2, 2);                                                                 \
    else if (highest0 == 3 && highest1 == 3)                                                                           \
        NAME(kernel)(job, image, p, first, end, 3, 3);                                                                 \
    else                                                                                                               \
        NAME(kernel)(job, image, p, first, end, highest0, highest1);

TARGET static void NAME(analyse_row)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end) {
    DISPATCH(analyse_row_of)
}

TARGET static void NAME(synthesise_row)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end) {
    DISPATCH(synthesise_row_of)
}

#undef DISPATCH

static const tile_version NAME(version) = {LANES, NAME(analyse_row), NAME(synthesise_row), NAME(multiply)};
