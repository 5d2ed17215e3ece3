/* Products of listed values with cells, and the version itself. Included once for each instruction set.
 *
 * A list belongs to one output. So the weights of some of its taps, or the sums that become their gradient, stay in registers
 * while the list goes by; the cells are in the L1 cache. A `careful` kernel leaves lanes beyond the block's channels alone. */

TARGET FE_INLINE VEC NAME(weights)(const product_job *job, int64_t output, int64_t tap, int64_t v, int64_t n, const int packed) {
    const int64_t at = output * job->kernel[0] * job->kernel[1] + tap, c = job->channel + v * LANES;
    if (!packed)
        return NAME(load)(job->weight.floats + at * job->inputs + c, n);
    const float scale = job->weight.scales[output];
    return NAME(signs)(job->weight.bits + at * ceiling_of(job->inputs, 8), c, NAME(set)(scale), NAME(set)(-scale));
}

#define SPARSE_TAPS                                                                                                          \
    UNROLL(3) for (int r = 0; r < rows; r++)                                                                                 \
        UNROLL(3) for (int s = 0; s < columns; s++)                                                                          \
            UNROLL(8) for (int v = 0; v < vectors; v++)

/* Lanes of vector v that the block has: a constant for kernels that are not careful. */
#define LANES_OF(v) (careful ? smaller(LANES, larger(0, job->channels - (v) * LANES)) : LANES)

TARGET FE_INLINE void NAME(scatter_of)(const product_job *job, int64_t r, int64_t s, const int rows, const int columns,
                                       const int vectors, const int packed, const int careful) {
    const int64_t row = job->row;
    float *cells = job->cells + r * row + s * job->column;
    for (int64_t k = job->first; k < job->last; k++) {
        const fe_listed *entry = job->entries + job->starts[k], *end = job->entries + job->starts[k + 1];
        if (entry == end)
            continue;
        VEC w[3][3][8];
        UNROLL(3)
        for (int i = 0; i < rows; i++)
            UNROLL(3)
            for (int j = 0; j < columns; j++)
                UNROLL(8)
                for (int v = 0; v < vectors; v++)
                    w[i][j][v] = LANES_OF(v) <= 0
                                     ? NAME(set)(0.0f)
                                     : NAME(weights)(job, k, (r + i) * job->kernel[1] + s + j, v, LANES_OF(v), packed);
        for (; entry < end; entry++) {
            const VEC value = NAME(set)(entry->value);
            float *to = cells + entry->place;
            UNROLL(3)
            for (int i = 0; i < rows; i++)
                UNROLL(3)
                for (int j = 0; j < columns; j++)
                    UNROLL(8)
                    for (int v = 0; v < vectors; v++) {
                        float *sums = to + i * row + (j * vectors + v) * LANES;
                        if (careful && LANES_OF(v) <= 0)
                            continue;
                        VEC sum = NAME(load)(sums, LANES_OF(v));
                        NAME(store)(sums, NAME(multiply_add)(value, w[i][j][v], sum), LANES_OF(v));
                    }
        }
    }
}

/* The sums of a pixel's taps stay in registers while its non-zeros go by; the weights are in the L1 cache. */
TARGET FE_INLINE void NAME(sweep_of)(const sweep_job *job, const int rows, const int columns, const int vectors) {
    const int64_t row = job->row;
    const int32_t *bounds = job->bounds;
    float *cells = job->cells;
    for (int64_t pixel = 0; pixel < job->pixels; pixel++, bounds += job->bounds_of_pixel, cells += job->step) {
        int64_t i = bounds[job->first], end = bounds[job->last];
        if (i == end)
            continue;
        VEC sum[3][3][8];
        SPARSE_TAPS
        sum[r][s][v] = NAME(load)(cells + r * row + (s * vectors + v) * LANES, LANES);
        for (; i < end; i++) {
            const VEC value = NAME(set)(job->values[i]);
            const float *w = job->panel + (int64_t)(job->places[i] % FE_MOST_CHANNELS) * job->pitch;
            SPARSE_TAPS
            sum[r][s][v] = NAME(multiply_add)(value, NAME(load)(w + ((r * columns + s) * vectors + v) * LANES, LANES), sum[r][s][v]);
        }
        SPARSE_TAPS
        NAME(store)(cells + r * row + (s * vectors + v) * LANES, sum[r][s][v], LANES);
    }
}

/* One pixel of a row whose sums slide through the registers: column s of its taps is in sum[r][(s + phase) % 3]. Columns that the
 * pixel before had, it has left there. */
TARGET FE_INLINE void NAME(slide)(const sweep_job *job, VEC sum[3][3][VECTORS], int64_t pixel, const int phase, const int slide) {
    enum { CELL = VECTORS * LANES };
    float *cells = job->cells + pixel * slide * CELL;
    UNROLL(3)
    for (int r = 0; r < 3; r++)
        UNROLL(3)
        for (int s = 3 - slide; s < 3; s++)
            UNROLL(8)
            for (int v = 0; v < VECTORS; v++)
                sum[r][(s + phase) % 3][v] = NAME(load)(cells + r * job->row + s * CELL + v * LANES, LANES);
    const int32_t *bounds = job->bounds + pixel * job->bounds_of_pixel;
    int64_t i = bounds[job->first], end = bounds[job->last];
    __builtin_prefetch(job->values + end + FAR / 4);
    __builtin_prefetch(job->places + end + FAR / 4);
    for (; i < end; i++) {
        const VEC value = NAME(set)(job->values[i]);
        const float *w = job->panel + (int64_t)(job->places[i] % FE_MOST_CHANNELS) * (9 * CELL);
        UNROLL(3)
        for (int r = 0; r < 3; r++)
            UNROLL(3)
            for (int s = 0; s < 3; s++)
                UNROLL(8)
                for (int v = 0; v < VECTORS; v++)
                    sum[r][(s + phase) % 3][v] = NAME(multiply_add)(
                        value, NAME(load)(w + (r * 3 + s) * CELL + v * LANES, LANES), sum[r][(s + phase) % 3][v]);
    }
    UNROLL(3)
    for (int r = 0; r < 3; r++)
        UNROLL(3)
        for (int s = 0; s < slide; s++)
            UNROLL(8)
            for (int v = 0; v < VECTORS; v++)
                NAME(store)(cells + r * job->row + s * CELL + v * LANES, sum[r][(s + phase) % 3][v], LANES);
}

TARGET FE_INLINE void NAME(slide_over)(const sweep_job *job, const int slide) {
    enum { CELL = VECTORS * LANES };
    VEC sum[3][3][VECTORS];
    UNROLL(3)
    for (int r = 0; r < 3; r++)
        UNROLL(3)
        for (int s = 0; s < 3; s++)
            UNROLL(8)
            for (int v = 0; v < VECTORS; v++)
                sum[r][s][v] = NAME(load)(job->cells + r * job->row + s * CELL + v * LANES, LANES);
    int64_t pixel = 0;
    for (; pixel + 3 <= job->pixels; pixel += 3) {
        NAME(slide)(job, sum, pixel, 0, slide);
        NAME(slide)(job, sum, pixel + 1, slide, slide);
        NAME(slide)(job, sum, pixel + 2, 2 * slide, slide);
    }
    const int64_t rest = job->pixels - pixel;
    if (rest > 0)
        NAME(slide)(job, sum, pixel, 0, slide);
    if (rest > 1)
        NAME(slide)(job, sum, pixel + 1, slide, slide);
    float *cells = job->cells + job->pixels * slide * CELL;
    UNROLL(3)
    for (int r = 0; r < 3; r++)
        UNROLL(3)
        for (int s = 0; s < 3 - slide; s++)
            UNROLL(8)
            for (int v = 0; v < VECTORS; v++) {
                VEC left = rest == 0 ? sum[r][s][v] : rest == 1 ? sum[r][(s + slide) % 3][v] : sum[r][(s + 2 * slide) % 3][v];
                NAME(store)(cells + r * job->row + s * CELL + v * LANES, left, LANES);
            }
}

TARGET static void NAME(sweep)(const sweep_job *job) {
    if (job->one)
        NAME(sweep_of)(job, 1, 1, VECTORS_OF_ONE);
    else if (job->of.rows == 3 && job->step == VECTORS * LANES)
        NAME(slide_over)(job, 1);
    else if (job->of.rows == 3 && job->step == 2 * VECTORS * LANES)
        NAME(slide_over)(job, 2);
    else if (job->of.rows == 3)
        NAME(sweep_of)(job, 3, 3, VECTORS);
    else if (job->of.columns == 3)
        NAME(sweep_of)(job, 1, 3, VECTORS);
    else
        NAME(sweep_of)(job, 1, 1, VECTORS);
}

TARGET static void NAME(panel)(const panel_job *job) {
    const int64_t bytes = ceiling_of(job->inputs, 8);
    float *to = job->panel;
    for (int64_t k = 0; k < job->outputs; k++)
        for (int r = 0; r < job->of.rows; r++)
            for (int s = 0; s < job->of.columns; s++, to += job->cell) {
                int64_t at = (k * job->kernel[0] + job->of.row + r) * job->kernel[1] + job->of.column + s;
                if (job->weight->floats)
                    for (int64_t c = 0; c < job->channels; c += LINE / (int64_t)sizeof(float))
                        __builtin_prefetch(job->weight->floats + (at + AHEAD) * job->inputs + job->channel + c);
                for (int64_t c = 0; c < job->cell; c += LANES) {
                    const int64_t n = smaller(LANES, job->channels - c);
                    VEC w = NAME(set)(0.0f);
                    if (n > 0 && job->weight->floats)
                        w = NAME(load)(job->weight->floats + at * job->inputs + job->channel + c, n);
                    else if (n > 0)
                        w = NAME(signs)(job->weight->bits + at * bytes, job->channel + c, NAME(set)(job->weight->scales[k]),
                                        NAME(set)(-job->weight->scales[k]));
                    NAME(store)(to + c, w, LANES);
                }
            }
}

TARGET FE_INLINE void NAME(gather_of)(const product_job *job, int64_t r, int64_t s, const int rows, const int columns,
                                      const int vectors, const int is_first, const int careful) {
    const int64_t row = job->row, taps = job->kernel[0] * job->kernel[1];
    const float *cells = job->cells + r * row + s * job->column;
    for (int64_t k = job->first; k < job->last; k++) {
        const fe_listed *entry = job->entries + job->starts[k], *end = job->entries + job->starts[k + 1];
        if (entry == end && !is_first)
            continue;
        float *grad = job->grad + (k * taps + r * job->kernel[1] + s) * job->inputs + job->channel;
        VEC sum[3][3][8];
        UNROLL(3)
        for (int i = 0; i < rows; i++)
            UNROLL(3)
            for (int j = 0; j < columns; j++)
                UNROLL(8)
                for (int v = 0; v < vectors; v++) {
                    const float *from = grad + (i * job->kernel[1] + j) * job->inputs + v * LANES;
                    sum[i][j][v] = is_first || LANES_OF(v) <= 0 ? NAME(set)(0.0f) : NAME(load)(from, LANES_OF(v));
                }
        for (; entry < end; entry++) {
            const VEC value = NAME(set)(entry->value);
            const float *from = cells + entry->place;
            UNROLL(3)
            for (int i = 0; i < rows; i++)
                UNROLL(3)
                for (int j = 0; j < columns; j++)
                    UNROLL(8)
                    for (int v = 0; v < vectors; v++) {
                        if (careful && LANES_OF(v) <= 0)
                            continue;
                        VEC x = NAME(load)(from + i * row + (j * vectors + v) * LANES, LANES_OF(v));
                        sum[i][j][v] = NAME(multiply_add)(value, x, sum[i][j][v]);
                    }
        }
        UNROLL(3)
        for (int i = 0; i < rows; i++)
            UNROLL(3)
            for (int j = 0; j < columns; j++)
                UNROLL(8)
                for (int v = 0; v < vectors; v++)
                    if (!careful || LANES_OF(v) > 0)
                        NAME(store)(grad + (i * job->kernel[1] + j) * job->inputs + v * LANES, sum[i][j][v], LANES_OF(v));
    }
}

#define SPARSE_KERNELS(name, rows, columns, vectors)                                                                         \
    TARGET static void NAME(scatter_##name)(const product_job *job, int64_t r, int64_t s) {                                  \
        const int careful = !IS_USUAL(job->channels == (vectors) * LANES);                                                   \
        if (job->weight.floats) {                                                                                            \
            if (careful)                                                                                                     \
                NAME(scatter_of)(job, r, s, rows, columns, vectors, 0, 1);                                                   \
            else                                                                                                             \
                NAME(scatter_of)(job, r, s, rows, columns, vectors, 0, 0);                                                   \
        } else if (careful) {                                                                                                \
            NAME(scatter_of)(job, r, s, rows, columns, vectors, 1, 1);                                                       \
        } else {                                                                                                             \
            NAME(scatter_of)(job, r, s, rows, columns, vectors, 1, 0);                                                       \
        }                                                                                                                    \
    }                                                                                                                        \
    TARGET static void NAME(gather_##name)(const product_job *job, int64_t r, int64_t s) {                                   \
        const int careful = !IS_USUAL(job->channels == (vectors) * LANES);                                                   \
        if (job->is_first) {                                                                                                 \
            if (careful)                                                                                                     \
                NAME(gather_of)(job, r, s, rows, columns, vectors, 1, 1);                                                    \
            else                                                                                                             \
                NAME(gather_of)(job, r, s, rows, columns, vectors, 1, 0);                                                    \
        } else if (careful) {                                                                                                \
            NAME(gather_of)(job, r, s, rows, columns, vectors, 0, 1);                                                        \
        } else {                                                                                                             \
            NAME(gather_of)(job, r, s, rows, columns, vectors, 0, 0);                                                        \
        }                                                                                                                    \
    }

SPARSE_KERNELS(square, 3, 3, VECTORS)
SPARSE_KERNELS(row, 1, 3, VECTORS)
SPARSE_KERNELS(tap, 1, 1, VECTORS)
SPARSE_KERNELS(one, 1, 1, VECTORS_OF_ONE)

#undef SPARSE_KERNELS
#undef LANES_OF
#undef SPARSE_TAPS

/* Taps by threes where they lie side by side, in squares where there are as many rows of them. */
FE_INLINE void NAME(over_taps)(const product_job *job, void (*square)(const product_job *, int64_t, int64_t),
                               void (*row)(const product_job *, int64_t, int64_t),
                               void (*tap)(const product_job *, int64_t, int64_t)) {
    const int64_t rows = job->kernel[0], columns = job->column == VECTORS * LANES ? job->kernel[1] / 3 * 3 : 0;
    int64_t r = 0;
    for (; columns && r + 3 <= rows; r += 3)
        for (int64_t s = 0; s < columns; s += 3)
            square(job, r, s);
    for (; r < rows; r++)
        for (int64_t s = 0; s < columns; s += 3)
            row(job, r, s);
    for (r = 0; r < rows; r++)
        for (int64_t s = columns; s < job->kernel[1]; s++)
            tap(job, r, s);
}

TARGET static void NAME(scatter)(const product_job *job) {
    if (job->kernel[0] * job->kernel[1] == 1)
        NAME(scatter_one)(job, 0, 0);
    else
        NAME(over_taps)(job, NAME(scatter_square), NAME(scatter_row), NAME(scatter_tap));
}

TARGET static void NAME(gather)(const product_job *job) {
    if (job->kernel[0] * job->kernel[1] == 1)
        NAME(gather_one)(job, 0, 0);
    else
        NAME(over_taps)(job, NAME(gather_square), NAME(gather_row), NAME(gather_tap));
}

TARGET static void NAME(copy)(float *to, int64_t step, const float *from, int64_t from_step, int64_t count, int64_t channels) {
    const int64_t whole = channels / LANES * LANES;
    for (int64_t i = 0; i < count; i++, to += step, from += from_step) {
        for (int64_t c = 0; c < channels; c += LINE / (int64_t)sizeof(float)) {
            /* The map is where steps are long. */
            if (from_step > step)
                __builtin_prefetch(from + AHEAD * from_step + c);
            else
                __builtin_prefetch(to + AHEAD * step + c, 1);
        }
        for (int64_t c = 0; c < whole; c += LANES)
            NAME(store)(to + c, NAME(load)(from + c, LANES), LANES);
        if (whole < channels)
            NAME(store)(to + whole, NAME(load)(from + whole, channels - whole), channels - whole);
    }
}

TARGET static void NAME(add_to)(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t n = smaller(LANES, count - i);
        NAME(store)(to + i, NAME(add)(NAME(load)(to + i, n), NAME(load)(from + i, n)), n);
    }
}

static const sparse_version NAME(version) = {
    .lanes = LANES,
    .vectors = VECTORS,
    .vectors_of_one = VECTORS_OF_ONE,
    .bytes = BYTES,
    .bytes_of_one = BYTES_OF_ONE,
    .prune = NAME(prune),
    .signs = NAME(signs_of),
    .panel = NAME(panel),
    .sweep = NAME(sweep),
    .scatter = NAME(scatter),
    .gather = NAME(gather),
    .copy = NAME(copy),
    .add = NAME(add_to),
};
