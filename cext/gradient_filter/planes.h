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

TARGET FE_INLINE void NAME(store_columns)(float *row, int64_t column, int64_t end, VEC value) {
    if (column >= 0) {
        NAME(store)(row + column, value, end - column > LANES ? LANES : end > column ? end - column : 0);
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

/* What the inner loops need of a map and its windows, in variables of their own: vectors may alias anything. */
typedef struct {
    /* `rows`: of a whole window. */
    int64_t width, offset, end, patches, rows, components, component;
    int64_t slots[MOST_CELLS];
} NAME(strip);

TARGET FE_INLINE void NAME(read_strip)(NAME(strip) *strip, const view *map) {
    span columns = covered(map->grid, 1);
    strip->width = map->grid->width;
    strip->offset = map->grid->offset[1];
    strip->end = columns.begin + columns.count;
    strip->patches = map->grid->patches[1];
    strip->rows = map->grid->window[0];
    strip->components = map->grid->components;
    strip->component = map->component;
    for (int64_t u = 0; u < strip->components; u++)
        strip->slots[u] = map->grid->slots[u];
}

/* Transforms the LANES windows from q on, of one row of windows: afterwards, component u is at cells[slots[u]]. Lanes
 * beyond the last window become 0. */
TARGET FE_INLINE void NAME(analyse_lanes)(VEC *cells, const float *plane, const NAME(strip) *strip, const span *rows,
                                          int64_t real_rows, int64_t q, int means, int64_t side, int64_t block) {
    const int64_t width = side * block, begin = q * width - strip->offset, end = strip->end, pitch = strip->width;
    const int inside = begin >= 0 && begin + width * LANES <= end;
    VEC raw[WIDEST];
    for (int64_t i = 0; i < side; i++) {
        const float *row = plane + rows[i].begin * pitch;
        const int64_t count = rows[i].count;
        for (int64_t t = 0; t < width; t++)
            raw[t] = NAME(set)(0.0f);
        if (inside)
            for (int64_t h = 0; h < count; h++, row += pitch)
                for (int64_t t = 0; t < width; t++) {
                    __builtin_prefetch((const char *)(row + begin + t * LANES) + AHEAD, 0, 2);
                    raw[t] = NAME(add)(raw[t], NAME(load)(row + begin + t * LANES, LANES));
                }
        else
            for (int64_t h = 0; h < count; h++, row += pitch)
                for (int64_t t = 0; t < width; t++)
                    raw[t] = NAME(add)(raw[t], NAME(load_columns)(row, begin + t * LANES, end));
        NAME(separate)(cells + i * side, raw, side, block);
    }
    VEC part = NAME(set)(real_rows ? 1.0f / (float)(width * real_rows) : 0.0f);
    if (means && (!inside || real_rows < strip->rows)) {
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
        if (means)
            cells[0] = NAME(multiply)(cells[0], part);
        return;
    }
    NAME(transform)(cells, side);
    for (int64_t i = 0; means && i < side * side; i++)
        cells[i] = NAME(multiply)(cells[i], NAME(set)(1.0f / (float)(side * side)));
}

/* Writes the LANES windows from q on, out of components put at their slots. */
TARGET FE_INLINE void NAME(synthesise_lanes)(float *plane, VEC *cells, const NAME(strip) *strip, const span *rows,
                                             int64_t q, int64_t side, int64_t block, int stream) {
    const int64_t width = side * block, begin = q * width - strip->offset, end = strip->end, pitch = strip->width;
    const int inside = begin >= 0 && begin + width * LANES <= end;
    VEC raw[WIDEST];
    if (side > 1)
        NAME(transform)(cells, side);
    for (int64_t i = 0; i < side; i++) {
        NAME(join)(raw, cells + i * side, side, block);
        float *row = plane + rows[i].begin * pitch;
        for (int64_t h = 0; h < rows[i].count; h++, row += pitch) {
            if (inside && stream && (uintptr_t)(row + begin) % sizeof(VEC) == 0)
                for (int64_t t = 0; t < width; t++)
                    NAME(stream)(row + begin + t * LANES, raw[t]);
            else if (inside)
                for (int64_t t = 0; t < width; t++)
                    NAME(store)(row + begin + t * LANES, raw[t], LANES);
            else
                for (int64_t t = 0; t < width; t++)
                    NAME(store_columns)(row, begin + t * LANES, end, raw[t]);
        }
    }
}

TARGET FE_INLINE void NAME(pool_plane_of)(const patch_job *job, int64_t image, int64_t channel, int64_t side,
                                          int64_t block) {
    const fe_grid *grid = job->map.grid;
    const int64_t patch_rows = grid->patches[0];
    const int means = job->means;
    const float *plane = job->in + (image * grid->channels + channel) * grid->height * grid->width;
    float *out = job->out + (channel * grid->images + image) * patch_rows * grid->patches[1];
    NAME(strip) strip;
    NAME(read_strip)(&strip, &job->map);
    VEC cells[MOST_CELLS];
    for (int64_t p = 0; p < patch_rows; p++, out += strip.patches) {
        span rows[FE_LARGEST_SIDE];
        int64_t real = blocks_of(rows, grid, 0, p, side);
        for (int64_t q = 0; q < strip.patches; q += LANES) {
            int64_t n = strip.patches - q < LANES ? strip.patches - q : LANES;
            NAME(analyse_lanes)(cells, plane, &strip, rows, real, q, means, side, block);
            for (int64_t u = 0; u < strip.components; u++)
                NAME(store)(out + u * strip.component + q, cells[side == 1 ? 0 : strip.slots[u]], n);
        }
    }
}

TARGET FE_INLINE void NAME(fill_plane_of)(const patch_job *job, int64_t image, int64_t channel, int64_t side,
                                          int64_t block) {
    const fe_grid *grid = job->map.grid;
    const int64_t patch_rows = grid->patches[0];
    const int stream = job->stream;
    float *plane = job->out + (image * grid->channels + channel) * grid->height * grid->width;
    const float *in = job->in + (channel * grid->images + image) * patch_rows * grid->patches[1];
    NAME(strip) strip;
    NAME(read_strip)(&strip, &job->map);
    VEC cells[MOST_CELLS], scale = NAME(set)(job->scale);
    for (int64_t p = 0; p < patch_rows; p++, in += strip.patches) {
        span rows[FE_LARGEST_SIDE];
        blocks_of(rows, grid, 0, p, side);
        zero_rows(plane, grid->width, grid, p);
        zero_columns(plane, &job->map, rows, side);
        for (int64_t q = 0; q < strip.patches; q += LANES) {
            int64_t n = strip.patches - q < LANES ? strip.patches - q : LANES;
            for (int64_t i = 0; i < side * side; i++)
                cells[i] = NAME(set)(0.0f);
            for (int64_t u = 0; u < strip.components; u++)
                cells[side == 1 ? 0 : strip.slots[u]] =
                    NAME(multiply)(scale, NAME(load)(in + u * strip.component + q, n));
            NAME(synthesise_lanes)(plane, cells, &strip, rows, q, side, block, stream);
        }
    }
    if (stream)
        NAME(fence)();
}

TARGET FE_INLINE void NAME(depthwise_plane_of)(const depthwise_job *job, int64_t image, int64_t channel, float *gram,
                                               int64_t side, int64_t block) {
    const fe_grid *grid = job->grad.grid, *x_grid = job->x.grid;
    const int64_t patch_rows = grid->patches[0], x_block = x_grid->window[1] / side;
    const int64_t point = (channel * grid->images + image) * patch_rows * grid->patches[1];
    const int stream = job->stream;
    const float *plane = job->in + (image * grid->channels + channel) * grid->height * grid->width;
    const float *x_sums = gram ? job->x_sums + point : NULL;
    float *x = job->grad_x ? job->grad_x + (image * grid->channels + channel) * x_grid->height * x_grid->width : NULL;
    NAME(strip) strip, x_strip;
    NAME(read_strip)(&strip, &job->grad);
    NAME(read_strip)(&x_strip, &job->x);
    VEC cells[MOST_CELLS], coefficients[MOST_CELLS], sums[MOST_CELLS], factors[MOST_CELLS];
    for (int64_t u = 0; u < strip.components; u++) {
        sums[u] = NAME(set)(0.0f);
        factors[u] = NAME(set)(x ? job->scale * job->tap_sums[u * grid->channels + channel] : 0.0f);
    }
    for (int64_t p = 0; p < patch_rows; p++) {
        span rows[FE_LARGEST_SIDE], x_rows[FE_LARGEST_SIDE];
        int64_t real = blocks_of(rows, grid, 0, p, side);
        blocks_of(x_rows, x_grid, 0, p, side);
        if (x) {
            zero_rows(x, x_grid->width, x_grid, p);
            zero_columns(x, &job->x, x_rows, side);
        }
        for (int64_t q = 0; q < strip.patches; q += LANES) {
            int64_t n = strip.patches - q < LANES ? strip.patches - q : LANES;
            NAME(analyse_lanes)(cells, plane, &strip, rows, real, q, 1, side, block);
            for (int64_t u = 0; gram && u < strip.components; u++)
                sums[u] = NAME(multiply_add)(
                    cells[side == 1 ? 0 : strip.slots[u]],
                    NAME(load)(x_sums + u * strip.component + p * strip.patches + q, n), sums[u]);
            if (!x)
                continue;
            for (int64_t i = 0; i < side * side; i++)
                coefficients[i] = NAME(set)(0.0f);
            for (int64_t u = 0; u < strip.components; u++) {
                int64_t slot = side == 1 ? 0 : strip.slots[u];
                coefficients[slot] = NAME(multiply)(cells[slot], factors[u]);
            }
            NAME(synthesise_lanes)(x, coefficients, &x_strip, x_rows, q, side, x_block, stream);
        }
    }
    for (int64_t u = 0; gram && u < strip.components; u++) {
        float lanes[LANES];
        NAME(store)(lanes, sums[u], LANES);
        for (int64_t l = 0; l < LANES; l++)
            gram[u] += lanes[l];
    }
    if (stream)
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
