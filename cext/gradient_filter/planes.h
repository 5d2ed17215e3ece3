/* Kernels whose lanes are neighbouring patches of one channel: contiguous maps. They serve windows whose blocks have a
 * power of two of columns, at most WIDEST in all. Included once for each instruction set, after rows.h. */

/* Floats of a row from `column` on; 0 outside [0, end). */
TARGET FE_INLINE VEC NAME(load_columns)(const float *row, int64_t column, int64_t end) {
    if (column >= 0)
        return NAME(load)(row + column, end - column > LANES ? LANES : end > column ? end - column : 0);
    float lanes[LANES] = {0};
    span real = clip(column, column + LANES, end);
    for (int64_t i = real.begin; i < real.begin + real.count; i++)
        lanes[i - column] = row[i];
    return NAME(load)(lanes, LANES);
}

TARGET FE_INLINE void NAME(store_columns)(float *row, int64_t column, int64_t end, VEC value, int stream) {
    if (column >= 0 && column + LANES <= end) {
        if (stream && (uintptr_t)(row + column) % sizeof(VEC) == 0)
            NAME(stream)(row + column, value);
        else
            NAME(store)(row + column, value, LANES);
        return;
    }
    float lanes[LANES];
    NAME(store)(lanes, value, LANES);
    span real = clip(column, column + LANES, end);
    for (int64_t i = real.begin; i < real.begin + real.count; i++)
        row[i] = lanes[i - column];
}

/* Makes one vector for each of `side` blocks out of side * block vectors of neighbouring cells. */
TARGET FE_INLINE void NAME(separate)(VEC *cells, VEC *raw, int64_t side, int64_t block) {
    for (int64_t count = side * block / 2; block > 1; block /= 2, count /= 2)
        for (int64_t t = 0; t < count; t++)
            raw[t] = NAME(add)(NAME(even)(raw[2 * t], raw[2 * t + 1]), NAME(odd)(raw[2 * t], raw[2 * t + 1]));
    VEC apart[FE_LARGEST_SIDE];
    for (int64_t left = side; left > 1; left /= 2) {
        for (int64_t t = 0; t < side / 2; t++) {
            apart[t] = NAME(even)(raw[2 * t], raw[2 * t + 1]);
            apart[side / 2 + t] = NAME(odd)(raw[2 * t], raw[2 * t + 1]);
        }
        for (int64_t t = 0; t < side; t++)
            raw[t] = apart[t];
    }
    for (int64_t t = 0; t < side; t++)
        cells[t] = raw[t];
}

/* The inverse: each block's value at all cells that it covers. */
TARGET FE_INLINE void NAME(join)(VEC *raw, const VEC *cells, int64_t side, int64_t block) {
    VEC apart[FE_LARGEST_SIDE];
    for (int64_t t = 0; t < side; t++)
        raw[t] = cells[t];
    for (int64_t left = side; left > 1; left /= 2) {
        for (int64_t t = 0; t < side; t++)
            apart[t] = raw[t];
        for (int64_t t = 0; t < side / 2; t++) {
            raw[2 * t] = NAME(zip_low)(apart[t], apart[side / 2 + t]);
            raw[2 * t + 1] = NAME(zip_high)(apart[t], apart[side / 2 + t]);
        }
    }
    for (int64_t count = side; block > 1; block /= 2, count *= 2)
        for (int64_t t = count - 1; t >= 0; t--) {
            VEC value = raw[t];
            raw[2 * t] = NAME(zip_low)(value, value);
            raw[2 * t + 1] = NAME(zip_high)(value, value);
        }
}

/* Components of the LANES windows from q on, of one row of windows. Lanes beyond the last window become 0. */
TARGET FE_INLINE void NAME(analyse_lanes)(VEC *components, const float *plane, const fe_grid *grid, const span *rows,
                                          int64_t real_rows, int64_t q, int means, int64_t side, int64_t block) {
    int64_t width = side * block, begin = q * width - grid->offset[1];
    span columns = covered(grid, 1);
    int64_t end = columns.begin + columns.count;
    int inside = begin >= 0 && begin + width * LANES <= end;
    VEC cells[MOST_CELLS], raw[WIDEST];
    for (int64_t i = 0; i < side; i++) {
        for (int64_t t = 0; t < width; t++)
            raw[t] = NAME(set)(0.0f);
        for (int64_t h = rows[i].begin; h < rows[i].begin + rows[i].count; h++) {
            const float *row = plane + h * grid->width;
            for (int64_t t = 0; t < width; t++)
                raw[t] = NAME(add)(raw[t], inside ? NAME(load)(row + begin + t * LANES, LANES)
                                                  : NAME(load_columns)(row, begin + t * LANES, end));
        }
        NAME(separate)(cells + i * side, raw, side, block);
    }
    VEC part = NAME(set)(1.0f / (float)(width * real_rows));
    if (means && (!inside || real_rows < grid->window[0])) {
        float parts[LANES];
        for (int64_t l = 0; l < LANES; l++) {
            int64_t real = real_rows * clip(begin + l * width, begin + (l + 1) * width, end).count;
            parts[l] = real ? 1.0f / (float)real : 0.0f;
        }
        part = NAME(load)(parts, LANES);
        VEC mean = NAME(set)(0.0f);
        for (int64_t i = 0; side > 1 && i < side * side; i++)
            mean = NAME(add)(mean, cells[i]);
        mean = NAME(multiply)(mean, part);
        /* Blocks of one cell here: column j of a window is in the map or is not. */
        for (int64_t j = 0; side > 1 && j < side; j++) {
            float absent[LANES];
            for (int64_t l = 0; l < LANES; l++)
                absent[l] = begin + l * width + j >= end;
            VEC missing = NAME(load)(absent, LANES);
            for (int64_t i = 0; i < side; i++)
                cells[i * side + j] =
                    rows[i].count ? NAME(multiply_add)(missing, mean, cells[i * side + j]) : mean;
        }
    }
    if (side == 1) {
        components[0] = means ? NAME(multiply)(cells[0], part) : cells[0];
        return;
    }
    NAME(transform)(cells, side);
    VEC factor = NAME(set)(means ? 1.0f / (float)(side * side) : 1.0f);
    for (int64_t u = 0; u < grid->components; u++)
        components[u] = NAME(multiply)(cells[grid->slots[u]], factor);
}

/* Writes the LANES windows from q on. */
TARGET FE_INLINE void NAME(synthesise_lanes)(float *plane, const VEC *components, const fe_grid *grid, const span *rows,
                                             int64_t q, int64_t side, int64_t block, int stream) {
    int64_t width = side * block, begin = q * width - grid->offset[1];
    span columns = covered(grid, 1);
    int64_t end = columns.begin + columns.count;
    VEC cells[MOST_CELLS], raw[WIDEST];
    if (side == 1) {
        cells[0] = components[0];
    } else {
        for (int64_t i = 0; i < side * side; i++)
            cells[i] = NAME(set)(0.0f);
        for (int64_t u = 0; u < grid->components; u++)
            cells[grid->slots[u]] = components[u];
        NAME(transform)(cells, side);
    }
    for (int64_t i = 0; i < side; i++) {
        NAME(join)(raw, cells + i * side, side, block);
        for (int64_t h = rows[i].begin; h < rows[i].begin + rows[i].count; h++)
            for (int64_t t = 0; t < width; t++)
                NAME(store_columns)(plane + h * grid->width, begin + t * LANES, end, raw[t], stream);
    }
}

TARGET FE_INLINE int64_t NAME(lanes_left)(const fe_grid *grid, int64_t q) {
    return grid->patches[1] - q < LANES ? grid->patches[1] - q : LANES;
}

TARGET FE_INLINE void NAME(pool_plane_of)(const patch_job *job, int64_t image, int64_t channel, int64_t side,
                                          int64_t block) {
    const fe_grid *grid = job->map.grid;
    int64_t patches = grid->patches[0] * grid->patches[1];
    const float *plane = job->in + (image * grid->channels + channel) * grid->height * grid->width;
    float *out = job->out + (channel * grid->images + image) * patches;
    VEC components[MOST_CELLS];
    for (int64_t p = 0; p < grid->patches[0]; p++, out += grid->patches[1]) {
        span rows[FE_LARGEST_SIDE];
        int64_t real = blocks_of(rows, grid, 0, p, side);
        for (int64_t q = 0; q < grid->patches[1]; q += LANES) {
            NAME(analyse_lanes)(components, plane, grid, rows, real, q, job->means, side, block);
            for (int64_t u = 0; u < grid->components; u++)
                NAME(store)(out + u * job->map.component + q, components[u], NAME(lanes_left)(grid, q));
        }
    }
}

TARGET FE_INLINE void NAME(fill_plane_of)(const patch_job *job, int64_t image, int64_t channel, int64_t side,
                                          int64_t block) {
    const fe_grid *grid = job->map.grid;
    int64_t patches = grid->patches[0] * grid->patches[1];
    float *plane = job->out + (image * grid->channels + channel) * grid->height * grid->width;
    const float *in = job->in + (channel * grid->images + image) * patches;
    VEC components[MOST_CELLS], scale = NAME(set)(job->scale);
    for (int64_t p = 0; p < grid->patches[0]; p++, in += grid->patches[1]) {
        span rows[FE_LARGEST_SIDE];
        blocks_of(rows, grid, 0, p, side);
        zero_rows(plane, grid->width, grid, p);
        NAME(zero_columns)(plane, &job->map, rows, side);
        for (int64_t q = 0; q < grid->patches[1]; q += LANES) {
            for (int64_t u = 0; u < grid->components; u++)
                components[u] = NAME(multiply)(
                    scale, NAME(load)(in + u * job->map.component + q, NAME(lanes_left)(grid, q)));
            NAME(synthesise_lanes)(plane, components, grid, rows, q, side, block, job->stream);
        }
    }
    if (job->stream)
        NAME(fence)();
}

TARGET FE_INLINE void NAME(depthwise_plane_of)(const depthwise_job *job, int64_t image, int64_t channel, float *gram,
                                               int64_t side, int64_t block) {
    const fe_grid *grid = job->grad.grid, *x_grid = job->x.grid;
    int64_t point = (channel * grid->images + image) * grid->patches[0] * grid->patches[1];
    const float *plane = job->in + (image * grid->channels + channel) * grid->height * grid->width;
    float *x = job->grad_x ? job->grad_x + (image * grid->channels + channel) * x_grid->height * x_grid->width : NULL;
    VEC means[MOST_CELLS], sums[MOST_CELLS];
    for (int64_t u = 0; u < grid->components; u++)
        sums[u] = NAME(set)(0.0f);
    for (int64_t p = 0; p < grid->patches[0]; p++, point += grid->patches[1]) {
        span rows[FE_LARGEST_SIDE], x_rows[FE_LARGEST_SIDE];
        int64_t real = blocks_of(rows, grid, 0, p, side);
        blocks_of(x_rows, x_grid, 0, p, side);
        if (x) {
            zero_rows(x, x_grid->width, x_grid, p);
            NAME(zero_columns)(x, &job->x, x_rows, side);
        }
        for (int64_t q = 0; q < grid->patches[1]; q += LANES) {
            NAME(analyse_lanes)(means, plane, grid, rows, real, q, 1, side, block);
            for (int64_t u = 0; gram && u < grid->components; u++)
                sums[u] = NAME(multiply_add)(means[u],
                                             NAME(load)(job->x_sums + u * job->grad.component + point + q,
                                                        NAME(lanes_left)(grid, q)),
                                             sums[u]);
            if (!x)
                continue;
            for (int64_t u = 0; u < grid->components; u++)
                means[u] = NAME(multiply)(
                    means[u], NAME(set)(job->scale * job->tap_sums[u * grid->channels + channel]));
            NAME(synthesise_lanes)(x, means, x_grid, x_rows, q, side, x_grid->window[1] / side, job->stream);
        }
    }
    for (int64_t u = 0; gram && u < grid->components; u++) {
        float lanes[LANES];
        NAME(store)(lanes, sums[u], LANES);
        for (int64_t l = 0; l < LANES; l++)
            gram[u] += lanes[l];
    }
    if (job->stream)
        NAME(fence)();
}

/* The usual shapes with all loops over cells unrolled. */
#define FOR_USUAL_SHAPES(function, job, grid, ...)                                                                    \
    do {                                                                                                              \
        int64_t blocks = (grid)->window[1] / (grid)->side;                                                            \
        if ((grid)->side == 1 && blocks == 2)                                                                         \
            NAME(function)(job, __VA_ARGS__, 1, 2);                                                                   \
        else if ((grid)->side == 1 && blocks == 4)                                                                    \
            NAME(function)(job, __VA_ARGS__, 1, 4);                                                                   \
        else if ((grid)->side == 2 && blocks == 1)                                                                    \
            NAME(function)(job, __VA_ARGS__, 2, 1);                                                                   \
        else                                                                                                          \
            NAME(function)(job, __VA_ARGS__, (grid)->side, blocks);                                                   \
    } while (0)

TARGET static void NAME(pool_plane)(const patch_job *job, int64_t image, int64_t channel) {
    FOR_USUAL_SHAPES(pool_plane_of, job, job->map.grid, image, channel);
}

TARGET static void NAME(fill_plane)(const patch_job *job, int64_t image, int64_t channel) {
    FOR_USUAL_SHAPES(fill_plane_of, job, job->map.grid, image, channel);
}

TARGET static void NAME(depthwise_plane)(const depthwise_job *job, int64_t image, int64_t channel, float *gram) {
    FOR_USUAL_SHAPES(depthwise_plane_of, job, job->grad.grid, image, channel, gram);
}

#undef FOR_USUAL_SHAPES
