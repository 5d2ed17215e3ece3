/* Kernels whose lanes are channels. Included once for each instruction set, which defines VEC, LANES, NAME, TARGET and the
 * primitives. `highest` of an inlined function is a compile-time constant for the usual numbers of frequencies. */

/* Adds a pair of cells that lie opposite each other to the waves along one axis, whose values there are `waves`: cosines from
 * 0 to `highest`, then sines. So lie the sums, too. */
TARGET FE_INLINE void NAME(gather)(VEC *sums, VEC a, VEC b, const float *waves, int64_t highest) {
    VEC even = NAME(add)(a, b), odd = NAME(subtract)(a, b);
    sums[0] = NAME(add)(sums[0], even);
    for (int64_t f = 1; f <= highest; f++) {
        sums[f] = NAME(multiply_add)(NAME(set)(waves[f]), even, sums[f]);
        sums[highest + f] = NAME(multiply_add)(NAME(set)(waves[highest + f]), odd, sums[highest + f]);
    }
}

/* The transpose: values of two opposite cells, up to their sum and difference. Terms lie `step` apart. */
TARGET FE_INLINE void NAME(scatter)(VEC *even, VEC *odd, const VEC *terms, int64_t step, const float *waves,
                                    int64_t highest) {
    VEC e = terms[0], o = NAME(set)(0.0f);
    for (int64_t f = 1; f <= highest; f++) {
        e = NAME(multiply_add)(NAME(set)(waves[f]), terms[f * step], e);
        o = NAME(multiply_add)(NAME(set)(waves[highest + f]), terms[(highest + f) * step], o);
    }
    *even = e;
    *odd = o;
}

TARGET FE_INLINE void NAME(clear)(VEC *values, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        values[i] = NAME(set)(0.0f);
}

/* A pair of which one cell, or both, may lie outside. */
TARGET FE_INLINE void NAME(gather_at_edge)(VEC *sums, const float *x, int64_t cell, int64_t h, int64_t width, span columns,
                                           const float *waves, int64_t highest, int64_t n) {
    int64_t other = width - 1 - h;
    int left = h >= columns.begin && h < columns.end;
    int right = other > h && other >= columns.begin && other < columns.end;
    VEC nothing = NAME(set)(0.0f);
    if (left || right)
        NAME(gather)(sums, left ? NAME(load)(x + h * cell, n) : nothing, right ? NAME(load)(x + other * cell, n) : nothing,
                     waves, highest);
}

/* `n` channels of one window, the first of which are at x: afterwards cosine f of the columns' cosine g is at
 * spectrum[f * DOFS + g]; sines stand at f + highest and g + highest. Rows and columns outside the spans are 0. The
 * next window lies `ahead` floats on. */
TARGET FE_INLINE void NAME(analyse_window)(VEC *spectrum, const float *x, const fe_tiling *tiling, int64_t row,
                                           int64_t cell, int64_t ahead, span rows, span columns,
                                           int64_t highest0, int64_t highest1, int64_t n) {
    VEC lines[DOFS * FE_WIDEST_WINDOW], sums[DOFS];
    const int64_t height = tiling->window[0], width = tiling->window[1];
    const int64_t half0 = (height + 1) / 2, half1 = (width + 1) / 2, dofs0 = 2 * highest0 + 1, dofs1 = 2 * highest1 + 1;
    const span both = both_inside(columns, width);
    for (int64_t i = 0; i < height; i++) {
        const float *line = x + i * row, *waves = tiling->waves[1];
        NAME(clear)(sums, dofs1);
        if (i >= rows.begin && i < rows.end) {
            int64_t h = 0;
            for (; h < both.begin && h < half1; h++)
                NAME(gather_at_edge)(sums, line, cell, h, width, columns, waves + h * dofs1, highest1, n);
            for (; h < both.end; h++) {
                const float *left = line + h * cell, *right = line + (width - 1 - h) * cell;
                NAME(gather)(sums, NAME(load)(left, n), NAME(load)(right, n), waves + h * dofs1, highest1);
                /* Cells of channels last lie too far apart for the hardware to foresee. */
                __builtin_prefetch(left + ahead);
                __builtin_prefetch(right + ahead);
            }
            for (; h < half1; h++)
                NAME(gather_at_edge)(sums, line, cell, h, width, columns, waves + h * dofs1, highest1, n);
        }
        for (int64_t g = 0; g < dofs1; g++)
            lines[i * DOFS + g] = sums[g];
    }
    for (int64_t g = 0; g < dofs1; g++) {
        const float *waves = tiling->waves[0];
        NAME(clear)(sums, dofs0);
        for (int64_t h = 0; h < height / 2; h++)
            NAME(gather)(sums, lines[h * DOFS + g], lines[(height - 1 - h) * DOFS + g], waves + h * dofs0, highest0);
        if (height % 2)
            NAME(gather)(sums, lines[(half0 - 1) * DOFS + g], NAME(set)(0.0f), waves + (half0 - 1) * dofs0, highest0);
        for (int64_t f = 0; f < dofs0; f++)
            spectrum[f * DOFS + g] = sums[f];
    }
}

/* What is kept of a window's spectrum, for n of a row's channels. */
TARGET FE_INLINE void NAME(store_spectrum)(float *out, const tile_job *job, const VEC *spectrum, int64_t n) {
    const int64_t kept = job->tiling->frequencies, a_row = job->rows.stride;
    const VEC scale = NAME(set)(job->scale), nothing = NAME(set)(0.0f);
    float *cosines = out + a_row, *sines = cosines + kept * a_row, *sums = sines + kept * a_row;
    NAME(store)(out, NAME(multiply_add)(NAME(set)(job->constant_scale), spectrum[0], nothing), n);
    for (const wave_slots *at = job->slots; at < job->slots + kept; at++) {
        const VEC sign = NAME(set)(at->sign);
        VEC real = NAME(multiply_add)(NAME(set)(-at->sign), spectrum[at->sine_sine], spectrum[at->cosine_cosine]);
        VEC imaginary = NAME(multiply_add)(sign, spectrum[at->cosine_sine], spectrum[at->sine_cosine]);
        real = NAME(multiply_add)(scale, real, nothing);
        imaginary = NAME(multiply_add)(scale, imaginary, nothing);
        NAME(store)(cosines, real, n);
        NAME(store)(sines, imaginary, n);
        cosines += a_row, sines += a_row;
        if (job->sums) {
            NAME(store)(sums, NAME(add)(real, imaginary), n);
            sums += a_row;
        }
    }
}

TARGET FE_INLINE void NAME(analyse_row_of)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end,
                                           int64_t highest0, int64_t highest1) {
    const fe_tiling *tiling = job->tiling;
    const int64_t channels = tiling->channels, row = tiling->width * channels;
    VEC spectrum[NO_SLOT + 1];
    span rows = inside(tiling, 0, p);
    spectrum[NO_SLOT] = NAME(set)(0.0f);
    for (int64_t q = 0; q < tiling->tiles[1]; q++) {
        span columns = inside(tiling, 1, q);
        const float *x = job->map + image * tiling->height * row + first_cell(tiling, 0, p) * row +
                         first_cell(tiling, 1, q) * channels;
        float *out = job->spectra + row_at(job, image, p, q);
        const int64_t ahead = to_next_window(tiling, p, q);
        int64_t c = first;
        for (; c + LANES <= end; c += LANES) {
            NAME(analyse_window)(spectrum, x + c, tiling, row, channels, ahead, rows, columns, highest0, highest1, LANES);
            NAME(store_spectrum)(out + c - first, job, spectrum, LANES);
        }
        if (c < end) {
            int64_t room = job->rows.width - (c - first);
            NAME(analyse_window)(spectrum, x + c, tiling, row, channels, ahead, rows, columns, highest0, highest1, end - c);
            NAME(store_spectrum)(out + c - first, job, spectrum, room < LANES ? room : LANES);
        }
    }
}

/* Puts one or both of a pair of values into a row of the map: those of the columns from `fresh` on are its first. */
TARGET FE_INLINE void NAME(put)(float *line, int64_t cell, int64_t column, int64_t fresh, VEC value, int64_t n) {
    float *x = line + column * cell;
    NAME(store)(x, column < fresh ? NAME(add)(NAME(load)(x, n), value) : value, n);
}

TARGET FE_INLINE void NAME(scatter_at_edge)(float *line, int64_t cell, int64_t h, int64_t width, int64_t fresh, span columns,
                                            const VEC *terms, const float *waves, int64_t highest, int64_t n) {
    int64_t other = width - 1 - h;
    int left = h >= columns.begin && h < columns.end;
    int right = other > h && other >= columns.begin && other < columns.end;
    VEC even, odd;
    if (left || right)
        NAME(scatter)(&even, &odd, terms, 1, waves, highest);
    if (left)
        NAME(put)(line, cell, h, fresh, NAME(add)(even, odd), n);
    if (right)
        NAME(put)(line, cell, other, fresh, NAME(subtract)(even, odd), n);
}

/* The transpose of `analyse_window`, put into the map. */
TARGET FE_INLINE void NAME(synthesise_window)(float *x, const VEC *spectrum, const fe_tiling *tiling, int64_t row,
                                              int64_t cell, reached before, span rows, span columns,
                                              int64_t highest0, int64_t highest1, int64_t n) {
    VEC lines[DOFS * FE_WIDEST_WINDOW], even, odd;
    const int64_t height = tiling->window[0], width = tiling->window[1];
    const int64_t half0 = (height + 1) / 2, half1 = (width + 1) / 2, dofs0 = 2 * highest0 + 1, dofs1 = 2 * highest1 + 1;
    const span both = both_inside(columns, width);
    for (int64_t g = 0; g < dofs1; g++)
        for (int64_t h = 0; h < half0; h++) {
            NAME(scatter)(&even, &odd, spectrum + g, DOFS, tiling->waves[0] + h * dofs0, highest0);
            lines[(height - 1 - h) * DOFS + g] = NAME(subtract)(even, odd);
            lines[h * DOFS + g] = NAME(add)(even, odd);
        }
    for (int64_t i = rows.begin; i < rows.end; i++) {
        const float *waves = tiling->waves[1];
        const VEC *terms = lines + i * DOFS;
        const int64_t fresh = i < before.rows ? width : before.columns;
        float *line = x + i * row;
        int64_t h = 0;
        for (; h < both.begin && h < half1; h++)
            NAME(scatter_at_edge)(line, cell, h, width, fresh, columns, terms, waves + h * dofs1, highest1, n);
        for (; h < both.end; h++) {
            NAME(scatter)(&even, &odd, terms, 1, waves + h * dofs1, highest1);
            NAME(put)(line, cell, h, fresh, NAME(add)(even, odd), n);
            NAME(put)(line, cell, width - 1 - h, fresh, NAME(subtract)(even, odd), n);
        }
        for (; h < half1; h++)
            NAME(scatter_at_edge)(line, cell, h, width, fresh, columns, terms, waves + h * dofs1, highest1, n);
    }
}

/* A window's spectrum from the products at `in`. */
TARGET FE_INLINE void NAME(load_products)(VEC *spectrum, const float *in, const tile_job *job, int64_t highest0,
                                          int64_t highest1, int64_t n) {
    const int64_t kept = job->tiling->frequencies, a_row = job->rows.stride;
    const float *first = in + a_row, *second = first + kept * a_row, *third = second + kept * a_row;
    const VEC turn = NAME(set)(job->conjugate ? 1.0f : -1.0f);
    for (int64_t f = 0; f <= 2 * highest0; f++)
        NAME(clear)(spectrum + f * DOFS, 2 * highest1 + 1);
    spectrum[0] = NAME(load)(in, n);
    spectrum[NO_SLOT] = NAME(set)(0.0f);
    for (const wave_slots *at = job->slots; at < job->slots + kept; at++) {
        VEC u = NAME(load)(first, n), w = NAME(load)(second, n), s = NAME(load)(third, n);
        first += a_row, second += a_row, third += a_row;
        /* a = u - w and b = s - u - w; of the conjugate u + w and s + u - w. */
        VEC real = NAME(multiply_add)(turn, w, u), imaginary = NAME(subtract)(NAME(multiply_add)(turn, u, s), w);
        VEC *cc = spectrum + at->cosine_cosine, *sc = spectrum + at->sine_cosine;
        VEC *cs = spectrum + at->cosine_sine, *ss = spectrum + at->sine_sine;
        *cc = NAME(add)(*cc, real);
        *sc = NAME(add)(*sc, imaginary);
        *cs = NAME(multiply_add)(NAME(set)(at->sign), imaginary, *cs);
        *ss = NAME(multiply_add)(NAME(set)(-at->sign), real, *ss);
    }
}

TARGET FE_INLINE void NAME(synthesise_row_of)(const tile_job *job, int64_t image, int64_t p, int64_t first, int64_t end,
                                              int64_t highest0, int64_t highest1) {
    const fe_tiling *tiling = job->tiling;
    const int64_t channels = tiling->channels, row = tiling->width * channels;
    VEC spectrum[NO_SLOT + 1];
    span rows = inside(tiling, 0, p);
    for (int64_t q = 0; q < tiling->tiles[1]; q++) {
        span columns = inside(tiling, 1, q);
        const float *in = job->products + row_at(job, image, p, q);
        const reached before = reached_before(job, p, q);
        float *x = job->out + image * tiling->height * row + first_cell(tiling, 0, p) * row +
                   first_cell(tiling, 1, q) * channels;
        int64_t c = first;
        for (; c + LANES <= end; c += LANES) {
            NAME(load_products)(spectrum, in + c - first, job, highest0, highest1, LANES);
            NAME(synthesise_window)(x + c, spectrum, tiling, row, channels, before, rows, columns, highest0, highest1, LANES);
        }
        if (c < end) {
            NAME(load_products)(spectrum, in + c - first, job, highest0, highest1, end - c);
            NAME(synthesise_window)(x + c, spectrum, tiling, row, channels, before, rows, columns, highest0, highest1, end - c);
        }
    }
}

/* Calls of `kernel` with the numbers of frequencies as constants where they are usual. */
#define DISPATCH(kernel)                                                                                               \
    int64_t highest0 = job->tiling->highest[0], highest1 = job->tiling->highest[1];                                    \
    if (IS_USUAL(highest0 == 2 && highest1 == 2))                                                                      \
        NAME(kernel)(job, image, p, first, end, 2, 2);                                                                 \
    else if (IS_USUAL(highest0 == 3 && highest1 == 3))                                                                 \
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

TARGET static void NAME(subtract_rows)(float *out, const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        NAME(store)(out + i, NAME(subtract)(NAME(load)(a + i, n), NAME(load)(b + i, n)), n);
    }
}

static const tile_version NAME(version) = {LANES, NAME(analyse_row), NAME(synthesise_row), NAME(multiply_rows),
                                           NAME(subtract_rows)};
