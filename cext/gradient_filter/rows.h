/* Kernels whose lanes are channels: maps with channels last. Included once for each instruction set, which defines VEC,
 * LANES, NAME, TARGET and the primitives, after means.h, which has windows of one component. `side` and `block` of an inlined function are compile-time constants for
 * the usual shapes; a block of 0 means that its size differs, since a window lies at the border or is unusual. */

TARGET FE_INLINE void NAME(butterfly)(VEC *a, VEC *b) {
    VEC sum = NAME(add)(*a, *b);
    *b = NAME(subtract)(*a, *b);
    *a = sum;
}

/* Walsh-Hadamard transform, without reordering; its own inverse up to the factor side * side. */
TARGET FE_INLINE void NAME(transform)(VEC *cells, int64_t side) {
    if (side == 2) {
        VEC a = cells[0], b = cells[1], c = cells[2], d = cells[3];
        NAME(butterfly)(&a, &b);
        NAME(butterfly)(&c, &d);
        NAME(butterfly)(&a, &c);
        NAME(butterfly)(&b, &d);
        cells[0] = a, cells[1] = b, cells[2] = c, cells[3] = d;
        return;
    }
    for (int64_t half = 1; half < side * side; half *= 2)
        for (int64_t begin = 0; begin < side * side; begin += 2 * half)
            for (int64_t i = begin; i < begin + half; i++)
                NAME(butterfly)(cells + i, cells + i + half);
}

/* Sum over a block of cells, `row` and `cell` floats apart. */
TARGET FE_INLINE VEC NAME(block_sum)(const float *x, int64_t row, int64_t cell, int64_t rows, int64_t columns, int64_t n) {
    VEC sum = NAME(set)(0.0f);
    for (int64_t h = 0; h < rows; h++)
        for (int64_t w = 0; w < columns; w++)
            sum = NAME(add)(sum, NAME(load)(x + h * row + w * cell, n));
    return sum;
}

/* Transforms `n` channels of one window whose first channels are at x: afterwards, component u is at
 * cells[slots[u]]. */
TARGET FE_INLINE void NAME(analyse)(VEC *cells, const float *x, int64_t row, int64_t cell, const span *rows,
                                    const span *columns, int64_t real, int means, int64_t side, int64_t block,
                                    int64_t n) {
    int64_t count = side * side;
    float part = real ? 1.0f / (float)real : 0.0f;
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++)
            cells[i * side + j] =
                block ? NAME(block_sum)(x + (rows[0].begin + i * block) * row + (columns[0].begin + j * block) * cell,
                                        row, cell, block, block, n)
                      : NAME(block_sum)(x + rows[i].begin * row + columns[j].begin * cell, row, cell, rows[i].count,
                                        columns[j].count, n);
    if (means && real < count) {
        VEC mean = NAME(set)(0.0f);
        for (int64_t i = 0; i < count; i++)
            mean = NAME(add)(mean, cells[i]);
        mean = NAME(multiply)(mean, NAME(set)(part));
        for (int64_t i = 0; i < count; i++)
            if (rows[i / side].count == 0 || columns[i % side].count == 0)
                cells[i] = mean;
    }
    NAME(transform)(cells, side);
    for (int64_t i = 0; means && i < count; i++)
        cells[i] = NAME(multiply)(cells[i], NAME(set)(1.0f / (float)count));
}

/* The inverse: makes the values of a window's blocks, `width` floats apart, out of components put at their slots. */
TARGET FE_INLINE void NAME(synthesise)(float *stage, int64_t width, VEC *cells, int64_t side, int64_t n) {
    NAME(transform)(cells, side);
    for (int64_t i = 0; i < side * side; i++)
        NAME(store)(stage + i * width, cells[i], n);
}

TARGET FE_INLINE void NAME(copy)(float *to, const float *from, int64_t count, int stream) {
    int64_t i = 0;
    if (stream)
        for (; i + LANES <= count; i += LANES)
            NAME(stream)(to + i, NAME(load)(from + i, LANES));
    for (; i + LANES <= count; i += LANES)
        NAME(store)(to + i, NAME(load)(from + i, LANES), LANES);
    if (i < count)
        NAME(store)(to + i, NAME(load)(from + i, count - i), count - i);
}

/* Writes the blocks of a window, `width` channels of each, to the cells that they cover. */
TARGET FE_INLINE void NAME(write_window)(float *x, int64_t row, int64_t cell, const span *rows, const span *columns,
                                         const float *stage, int64_t width, int64_t side, int stream) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t h = rows[i].begin; h < rows[i].begin + rows[i].count; h++)
            for (int64_t j = 0; j < side; j++)
                for (int64_t w = columns[j].begin; w < columns[j].begin + columns[j].count; w++)
                    NAME(copy)(x + h * row + w * cell, stage + (i * side + j) * width, width, stream);
}

TARGET FE_INLINE void NAME(pool_row_of)(const patch_job *job, int64_t image, int64_t p, int64_t side, int64_t block) {
    /* Vectors may alias anything: what is read in the inner loop is held in variables of this function. */
    const fe_grid *grid = job->map.grid;
    const int64_t lanes = job->map.lanes, row = job->map.row, cell = job->map.cell, patches = grid->patches[1];
    const int64_t components = grid->components, component = job->map.component;
    const int means = job->means;
    int64_t slots[MOST_CELLS];
    span rows[FE_LARGEST_SIDE], columns[FE_LARGEST_SIDE];
    VEC cells[MOST_CELLS];
    int64_t real_rows = blocks_of(rows, grid, 0, p, side);
    const float *x = job->in + image * job->map.image;
    float *out = job->out + (image * grid->patches[0] + p - job->first) * patches * lanes;
    uintptr_t ahead = next_row(x, row, rows, grid);
    const int64_t vectors = side * side * block * block;
    for (int64_t u = 0; u < components; u++)
        slots[u] = grid->slots[u];
    for (int64_t q = 0; q < patches; q++, out += lanes) {
        int64_t real = real_rows * blocks_of(columns, grid, 1, q, side), c = 0;
        if (block && real == vectors)
            for (; c + LANES <= lanes; c += LANES, ahead += (uintptr_t)vectors * sizeof(VEC)) {
                fetch_lines(ahead, vectors * (int64_t)sizeof(VEC));
                NAME(analyse)(cells, x + c, row, cell, rows, columns, real, means, side, block, LANES);
                for (int64_t u = 0; u < components; u++)
                    NAME(store)(out + u * component + c, cells[slots[u]], LANES);
            }
        for (; c < lanes; c += LANES) {
            int64_t n = lanes - c < LANES ? lanes - c : LANES;
            NAME(analyse)(cells, x + c, row, cell, rows, columns, real, means, side, 0, n);
            for (int64_t u = 0; u < components; u++)
                NAME(store)(out + u * component + c, cells[slots[u]], n);
        }
    }
}

TARGET static void NAME(pool_row)(const patch_job *job, int64_t image, int64_t p) {
    const fe_grid *grid = job->map.grid;
    int64_t block = grid->window[0] == grid->window[1] ? grid->window[0] / grid->side : 0;
    if (grid->side == 1)
        NAME(pool_means_row)(job, image, p);
    else if (IS_USUAL(grid->side == 2 && block == 1))
        NAME(pool_row_of)(job, image, p, 2, 1);
    else if (IS_USUAL(grid->side == 4 && block == 1))
        NAME(pool_row_of)(job, image, p, 4, 1);
    else
        NAME(pool_row_of)(job, image, p, grid->side, 0);
}

/* Channels of a window that are staged at a time: whole cache lines. */
TARGET FE_INLINE int64_t NAME(stage_width)(int64_t lanes, int64_t side) {
    int64_t most = STAGE / (side * side) / 16 * 16;
    return lanes < most ? lanes : most;
}

/* Stages `n` channels of a window. */
TARGET FE_INLINE void NAME(stage_window)(float *stage, int64_t width, const float *in, int64_t component,
                                         const int64_t *slots, int64_t components, VEC scale, int64_t side, int64_t n) {
    VEC cells[MOST_CELLS];
    for (int64_t i = 0; components < side * side && i < side * side; i++)
        cells[i] = NAME(set)(0.0f);
    for (int64_t u = 0; u < components; u++)
        cells[slots[u]] = NAME(multiply)(scale, NAME(load)(in + u * component, n));
    NAME(synthesise)(stage, width, cells, side, n);
}

TARGET FE_INLINE void NAME(fill_row_of)(const patch_job *job, int64_t image, int64_t p, int64_t side) {
    const fe_grid *grid = job->map.grid;
    const int64_t lanes = job->map.lanes, row = job->map.row, cell = job->map.cell, patches = grid->patches[1];
    const int64_t components = grid->components, component = job->map.component;
    const int64_t most = NAME(stage_width)(lanes, side);
    const int stream = job->stream;
    int64_t slots[MOST_CELLS];
    span rows[FE_LARGEST_SIDE], columns[FE_LARGEST_SIDE];
    _Alignas(64) float stage[STAGE];
    VEC scale = NAME(set)(job->scale);
    float *x = job->out + image * job->map.image;
    const float *in = job->in + (image * grid->patches[0] + p - job->first) * patches * lanes;
    blocks_of(rows, grid, 0, p, side);
    zero_rows(x, row, grid, p);
    zero_columns(x, &job->map, rows, side);
    for (int64_t u = 0; u < components; u++)
        slots[u] = grid->slots[u];
    for (int64_t q = 0; q < patches; q++, in += lanes) {
        blocks_of(columns, grid, 1, q, side);
        for (int64_t begin = 0; begin < lanes; begin += most) {
            int64_t width = lanes - begin < most ? lanes - begin : most, c = 0;
            for (; c + LANES <= width; c += LANES)
                NAME(stage_window)(stage + c, width, in + begin + c, component, slots, components, scale, side, LANES);
            if (c < width)
                NAME(stage_window)(stage + c, width, in + begin + c, component, slots, components, scale, side, width - c);
            NAME(write_window)(x + begin, row, cell, rows, columns, stage, width, side, stream);
        }
    }
    if (stream)
        NAME(fence)();
}

TARGET static void NAME(fill_row)(const patch_job *job, int64_t image, int64_t p) {
    if (job->map.grid->side == 1)
        NAME(fill_means_row)(job, image, p);
    else if (IS_USUAL(job->map.grid->side == 2))
        NAME(fill_row_of)(job, image, p, 2);
    else if (IS_USUAL(job->map.grid->side == 4))
        NAME(fill_row_of)(job, image, p, 4);
    else
        NAME(fill_row_of)(job, image, p, job->map.grid->side);
}

TARGET FE_INLINE void NAME(depthwise_row_of)(const depthwise_job *job, int64_t image, int64_t p, float *gram,
                                             int64_t side, int64_t block) {
    const fe_grid *grid = job->grad.grid, *x_grid = job->x.grid;
    const int64_t lanes = job->grad.lanes, row = job->grad.row, cell = job->grad.cell, patches = grid->patches[1];
    const int64_t components = grid->components, component = job->grad.component;
    const int64_t x_row = job->x.row, x_cell = job->x.cell, channels = grid->channels;
    const int64_t most = NAME(stage_width)(lanes, side);
    const int stream = job->stream;
    int64_t slots[MOST_CELLS];
    span rows[FE_LARGEST_SIDE], columns[FE_LARGEST_SIDE], x_rows[FE_LARGEST_SIDE], x_columns[FE_LARGEST_SIDE];
    _Alignas(64) float stage[STAGE];
    VEC cells[MOST_CELLS], scale = NAME(set)(job->scale);
    const float *grad = job->in + image * job->grad.image, *tap_sums = job->tap_sums;
    const float *x_sums = gram ? job->x_sums + (image * grid->patches[0] + p) * patches * lanes : NULL;
    float *x = job->grad_x ? job->grad_x + image * job->x.image : NULL;
    int64_t real_rows = blocks_of(rows, grid, 0, p, side);
    blocks_of(x_rows, x_grid, 0, p, side);
    uintptr_t ahead = next_row(grad, row, rows, grid);
    if (x) {
        zero_rows(x, x_row, x_grid, p);
        zero_columns(x, &job->x, x_rows, side);
    }
    for (int64_t u = 0; u < components; u++)
        slots[u] = grid->slots[u];
    for (int64_t q = 0; q < patches; q++, x_sums = gram ? x_sums + lanes : NULL) {
        int64_t real = real_rows * blocks_of(columns, grid, 1, q, side);
        int full = block && real == side * side * block * block;
        blocks_of(x_columns, x_grid, 1, q, side);
        for (int64_t begin = 0; begin < lanes; begin += most) {
            int64_t width = lanes - begin < most ? lanes - begin : most;
            for (int64_t at = 0; at < width; at += LANES) {
                int64_t c = begin + at, n = width - at < LANES ? width - at : LANES;
                VEC coefficients[MOST_CELLS];
                if (full && n == LANES) {
                    fetch_lines(ahead, real * (int64_t)sizeof(VEC));
                    NAME(analyse)(cells, grad + c, row, cell, rows, columns, real, 1, side, block, LANES);
                    ahead += (uintptr_t)real * sizeof(VEC);
                } else {
                    NAME(analyse)(cells, grad + c, row, cell, rows, columns, real, 1, side, 0, n);
                }
                for (int64_t i = 0; i < side * side; i++)
                    coefficients[i] = NAME(set)(0.0f);
                for (int64_t u = 0; u < components; u++) {
                    int64_t slot = slots[u];
                    if (gram) {
                        VEC sums = NAME(load)(x_sums + u * component + c, n);
                        float *sum = gram + u * lanes + c;
                        NAME(store)(sum, NAME(multiply_add)(cells[slot], sums, NAME(load)(sum, n)), n);
                    }
                    if (x)
                        coefficients[slot] = NAME(multiply)(
                            cells[slot], NAME(multiply)(scale, NAME(load)(tap_sums + u * channels + c, n)));
                }
                if (x)
                    NAME(synthesise)(stage + at, width, coefficients, side, n);
            }
            if (x)
                NAME(write_window)(x + begin, x_row, x_cell, x_rows, x_columns, stage, width, side, stream);
        }
    }
    if (stream)
        NAME(fence)();
}

TARGET static void NAME(depthwise_row)(const depthwise_job *job, int64_t image, int64_t p, float *gram) {
    const fe_grid *grid = job->grad.grid;
    int64_t block = grid->window[0] == grid->window[1] ? grid->window[0] / grid->side : 0;
    if (grid->side == 1)
        NAME(depthwise_means_row)(job, image, p, gram);
    else if (IS_USUAL(grid->side == 2 && block == 1))
        NAME(depthwise_row_of)(job, image, p, gram, 2, 1);
    else
        NAME(depthwise_row_of)(job, image, p, gram, grid->side, 0);
}
