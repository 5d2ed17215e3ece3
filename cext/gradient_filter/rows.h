/* Kernels whose lanes are channels: maps with channels last. Included once for each instruction set, which defines VEC,
 * LANES, NAME, TARGET and the primitives. A trailing `side` or `block` of an inlined function is a compile-time constant
 * where that matters, or 0 for "look it up". */

/* Walsh-Hadamard transform, without reordering; its own inverse up to the factor side * side. */
TARGET FE_INLINE void NAME(transform)(VEC *cells, int64_t side) {
    for (int64_t half = 1; half < side * side; half *= 2)
        for (int64_t begin = 0; begin < side * side; begin += 2 * half)
            for (int64_t i = begin; i < begin + half; i++) {
                VEC a = cells[i], b = cells[i + half];
                cells[i] = NAME(add)(a, b);
                cells[i + half] = NAME(subtract)(a, b);
            }
}

TARGET FE_INLINE VEC NAME(block_sum)(const float *x, const view *map, int64_t rows, int64_t columns, int64_t n) {
    VEC sum = NAME(set)(0.0f);
    for (int64_t h = 0; h < rows; h++)
        for (int64_t w = 0; w < columns; w++)
            sum = NAME(add)(sum, NAME(load)(x + h * map->row + w * map->cell, n));
    return sum;
}

/* Components of one window and of `n` channels, at `components[u]`. */
TARGET FE_INLINE void NAME(analyse)(VEC *components, const float *x, const view *map, const span *rows,
                                    const span *columns, int64_t real, int means, int64_t side, int64_t block,
                                    int64_t n) {
    const fe_grid *grid = map->grid;
    if (side == 1) {
        components[0] = NAME(block_sum)(x + rows[0].begin * map->row + columns[0].begin * map->cell, map,
                                        block ? block : rows[0].count, block ? block : columns[0].count, n);
        if (means)
            components[0] = NAME(multiply)(components[0], NAME(set)(real ? 1.0f / (float)real : 0.0f));
        return;
    }
    VEC cells[MOST_CELLS];
    int64_t edge = side ? side : grid->side, count = edge * edge;
    for (int64_t i = 0; i < edge; i++)
        for (int64_t j = 0; j < edge; j++)
            cells[i * edge + j] = NAME(block_sum)(x + rows[i].begin * map->row + columns[j].begin * map->cell, map,
                                                  block ? block : rows[i].count, block ? block : columns[j].count, n);
    if (means && real < count) {
        VEC mean = NAME(set)(0.0f);
        for (int64_t i = 0; i < count; i++)
            mean = NAME(add)(mean, cells[i]);
        mean = NAME(multiply)(mean, NAME(set)(real ? 1.0f / (float)real : 0.0f));
        for (int64_t i = 0; i < count; i++)
            if (rows[i / edge].count == 0 || columns[i % edge].count == 0)
                cells[i] = mean;
    }
    NAME(transform)(cells, edge);
    VEC factor = NAME(set)(means ? 1.0f / (float)count : 1.0f);
    for (int64_t u = 0; u < grid->components; u++)
        components[u] = NAME(multiply)(cells[grid->slots[u]], factor);
}

/* The inverse: the values of a window's blocks, `width` floats apart. */
TARGET FE_INLINE void NAME(synthesise)(float *stage, int64_t width, const VEC *components, const fe_grid *grid,
                                       int64_t side, int64_t n) {
    if (side == 1) {
        NAME(store)(stage, components[0], n);
        return;
    }
    VEC cells[MOST_CELLS];
    int64_t edge = side ? side : grid->side;
    for (int64_t i = 0; i < edge * edge; i++)
        cells[i] = NAME(set)(0.0f);
    for (int64_t u = 0; u < grid->components; u++)
        cells[grid->slots[u]] = components[u];
    NAME(transform)(cells, edge);
    for (int64_t i = 0; i < edge * edge; i++)
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
TARGET FE_INLINE void NAME(write_window)(float *x, const view *map, const span *rows, const span *columns,
                                         const float *stage, int64_t width, int64_t side, int stream) {
    for (int64_t i = 0; i < side; i++)
        for (int64_t h = rows[i].begin; h < rows[i].begin + rows[i].count; h++)
            for (int64_t j = 0; j < side; j++)
                for (int64_t w = columns[j].begin; w < columns[j].begin + columns[j].count; w++)
                    NAME(copy)(x + h * map->row + w * map->cell, stage + (i * side + j) * width, width, stream);
}

TARGET FE_INLINE void NAME(pool_window)(const patch_job *job, const float *x, float *out, const span *rows,
                                        const span *columns, int64_t real, int64_t side, int64_t block) {
    const view *map = &job->map;
    VEC components[MOST_CELLS];
    int64_t c = 0;
    for (; c + LANES <= map->lanes; c += LANES) {
        NAME(analyse)(components, x + c, map, rows, columns, real, job->means, side, block, LANES);
        for (int64_t u = 0; u < (side == 1 ? 1 : map->grid->components); u++)
            NAME(store)(out + u * map->component + c, components[u], LANES);
    }
    if (c < map->lanes) {
        int64_t n = map->lanes - c;
        NAME(analyse)(components, x + c, map, rows, columns, real, job->means, side, block, n);
        for (int64_t u = 0; u < map->grid->components; u++)
            NAME(store)(out + u * map->component + c, components[u], n);
    }
}

TARGET FE_INLINE void NAME(pool_row_of)(const patch_job *job, int64_t image, int64_t p, int64_t side, int64_t block) {
    const view *map = &job->map;
    const fe_grid *grid = map->grid;
    span rows[FE_LARGEST_SIDE], columns[FE_LARGEST_SIDE];
    int64_t edge = side ? side : grid->side;
    int64_t real_rows = blocks_of(rows, grid, 0, p, edge);
    const float *x = job->in + image * map->image;
    float *out = job->out + (image * grid->patches[0] + p) * grid->patches[1] * map->lanes;
    for (int64_t q = 0; q < grid->patches[1]; q++, out += map->lanes) {
        int64_t real = real_rows * blocks_of(columns, grid, 1, q, edge);
        if (block && real == grid->window[0] * grid->window[1])
            NAME(pool_window)(job, x, out, rows, columns, real, side, block);
        else
            NAME(pool_window)(job, x, out, rows, columns, real, side, 0);
    }
}

TARGET static void NAME(pool_row)(const patch_job *job, int64_t image, int64_t p) {
    const fe_grid *grid = job->map.grid;
    int64_t block = grid->window[0] == grid->window[1] ? grid->window[0] / grid->side : 0;
    if (grid->side == 1 && block == 2)
        NAME(pool_row_of)(job, image, p, 1, 2);
    else if (grid->side == 1 && block == 4)
        NAME(pool_row_of)(job, image, p, 1, 4);
    else if (grid->side == 1)
        NAME(pool_row_of)(job, image, p, 1, 0);
    else if (grid->side == 2 && block == 1)
        NAME(pool_row_of)(job, image, p, 2, 1);
    else if (grid->side == 4 && block == 1)
        NAME(pool_row_of)(job, image, p, 4, 1);
    else
        NAME(pool_row_of)(job, image, p, 0, 0);
}

/* Cells of a row of windows that no window covers. */
TARGET FE_INLINE void NAME(zero_columns)(float *x, const view *map, const span *rows, int64_t side) {
    span columns = covered(map->grid, 1);
    int64_t end = columns.begin + columns.count;
    if (columns.begin == 0 && end == map->grid->width)
        return;
    for (int64_t i = 0; i < side; i++)
        for (int64_t h = rows[i].begin; h < rows[i].begin + rows[i].count; h++) {
            zero(x + h * map->row, columns.begin * map->cell);
            zero(x + h * map->row + end * map->cell, (map->grid->width - end) * map->cell);
        }
}

/* Channels of a window that are staged at a time: whole cache lines. */
TARGET FE_INLINE int64_t NAME(stage_width)(int64_t lanes, int64_t side) {
    int64_t most = STAGE / (side * side) / 16 * 16;
    return lanes < most ? lanes : most;
}

TARGET FE_INLINE void NAME(fill_row_of)(const patch_job *job, int64_t image, int64_t p, int64_t side) {
    const view *map = &job->map;
    const fe_grid *grid = map->grid;
    span rows[FE_LARGEST_SIDE], columns[FE_LARGEST_SIDE];
    _Alignas(64) float stage[STAGE];
    VEC components[MOST_CELLS];
    VEC scale = NAME(set)(job->scale);
    int64_t edge = side ? side : grid->side, most = NAME(stage_width)(map->lanes, edge);
    float *x = job->out + image * map->image;
    const float *in = job->in + (image * grid->patches[0] + p) * grid->patches[1] * map->lanes;
    blocks_of(rows, grid, 0, p, edge);
    zero_rows(x, map->row, grid, p);
    NAME(zero_columns)(x, map, rows, edge);
    for (int64_t q = 0; q < grid->patches[1]; q++, in += map->lanes) {
        blocks_of(columns, grid, 1, q, edge);
        for (int64_t begin = 0; begin < map->lanes; begin += most) {
            int64_t width = map->lanes - begin < most ? map->lanes - begin : most, c = 0;
            for (; c + LANES <= width; c += LANES) {
                for (int64_t u = 0; u < (side == 1 ? 1 : grid->components); u++)
                    components[u] = NAME(multiply)(scale, NAME(load)(in + begin + c + u * map->component, LANES));
                NAME(synthesise)(stage + c, width, components, grid, side, LANES);
            }
            if (c < width) {
                for (int64_t u = 0; u < grid->components; u++)
                    components[u] = NAME(multiply)(scale, NAME(load)(in + begin + c + u * map->component, width - c));
                NAME(synthesise)(stage + c, width, components, grid, side, width - c);
            }
            NAME(write_window)(x + begin, map, rows, columns, stage, width, edge, job->stream);
        }
    }
    if (job->stream)
        NAME(fence)();
}

TARGET static void NAME(fill_row)(const patch_job *job, int64_t image, int64_t p) {
    if (job->map.grid->side == 1)
        NAME(fill_row_of)(job, image, p, 1);
    else if (job->map.grid->side == 2)
        NAME(fill_row_of)(job, image, p, 2);
    else if (job->map.grid->side == 4)
        NAME(fill_row_of)(job, image, p, 4);
    else
        NAME(fill_row_of)(job, image, p, 0);
}

/* One window of `grad`, `n` channels from c on: adds to the gram, stages the window of `grad_x`. */
TARGET FE_INLINE void NAME(depthwise_chunk)(const depthwise_job *job, const float *grad, int64_t point, int64_t c,
                                            const span *rows, const span *columns, int64_t real, float *gram,
                                            float *stage, int64_t width, int64_t side, int64_t block, int64_t n) {
    const fe_grid *grid = job->grad.grid;
    int64_t lanes = job->grad.lanes, channels = grid->channels;
    VEC means[MOST_CELLS];
    NAME(analyse)(means, grad + c, &job->grad, rows, columns, real, 1, side, block, n);
    for (int64_t u = 0; u < (side == 1 ? 1 : grid->components); u++) {
        if (gram) {
            VEC sums = NAME(load)(job->x_sums + u * job->grad.component + point * lanes + c, n);
            float *sum = gram + u * lanes + c;
            NAME(store)(sum, NAME(multiply_add)(means[u], sums, NAME(load)(sum, n)), n);
        }
        if (job->grad_x)
            means[u] = NAME(multiply)(means[u], NAME(multiply)(NAME(set)(job->scale),
                                                               NAME(load)(job->tap_sums + u * channels + c, n)));
    }
    if (job->grad_x)
        NAME(synthesise)(stage, width, means, grid, side, n);
}

TARGET FE_INLINE void NAME(depthwise_row_of)(const depthwise_job *job, int64_t image, int64_t p, float *gram,
                                             int64_t side, int64_t block) {
    const fe_grid *grid = job->grad.grid, *x_grid = job->x.grid;
    span rows[FE_LARGEST_SIDE], columns[FE_LARGEST_SIDE], x_rows[FE_LARGEST_SIDE], x_columns[FE_LARGEST_SIDE];
    _Alignas(64) float stage[STAGE];
    int64_t edge = side ? side : grid->side, lanes = job->grad.lanes, most = NAME(stage_width)(lanes, edge);
    const float *grad = job->in + image * job->grad.image;
    float *x = job->grad_x ? job->grad_x + image * job->x.image : NULL;
    int64_t real_rows = blocks_of(rows, grid, 0, p, edge);
    blocks_of(x_rows, x_grid, 0, p, edge);
    if (x) {
        zero_rows(x, job->x.row, x_grid, p);
        NAME(zero_columns)(x, &job->x, x_rows, edge);
    }
    for (int64_t q = 0; q < grid->patches[1]; q++) {
        int64_t point = (image * grid->patches[0] + p) * grid->patches[1] + q;
        int64_t real = real_rows * blocks_of(columns, grid, 1, q, edge);
        int full = block && real == grid->window[0] * grid->window[1];
        blocks_of(x_columns, x_grid, 1, q, edge);
        for (int64_t begin = 0; begin < lanes; begin += most) {
            int64_t width = lanes - begin < most ? lanes - begin : most, c = 0;
            for (; full && c + LANES <= width; c += LANES)
                NAME(depthwise_chunk)(job, grad, point, begin + c, rows, columns, real, gram, stage + c, width, side,
                                      block, LANES);
            for (; c < width; c += LANES)
                NAME(depthwise_chunk)(job, grad, point, begin + c, rows, columns, real, gram, stage + c, width, side,
                                      0, width - c < LANES ? width - c : LANES);
            if (x)
                NAME(write_window)(x + begin, &job->x, x_rows, x_columns, stage, width, edge, job->stream);
        }
    }
    if (job->stream)
        NAME(fence)();
}

TARGET static void NAME(depthwise_row)(const depthwise_job *job, int64_t image, int64_t p, float *gram) {
    const fe_grid *grid = job->grad.grid;
    int64_t block = grid->window[0] == grid->window[1] ? grid->window[0] / grid->side : 0;
    if (grid->side == 1 && block == 2)
        NAME(depthwise_row_of)(job, image, p, gram, 1, 2);
    else if (grid->side == 1 && block == 4)
        NAME(depthwise_row_of)(job, image, p, gram, 1, 4);
    else if (grid->side == 1)
        NAME(depthwise_row_of)(job, image, p, gram, 1, 0);
    else if (grid->side == 2 && block == 1)
        NAME(depthwise_row_of)(job, image, p, gram, 2, 1);
    else
        NAME(depthwise_row_of)(job, image, p, gram, 0, 0);
}
