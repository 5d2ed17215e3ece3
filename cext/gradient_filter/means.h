/* Kernels of windows whose only component is the constant, in maps with channels last: sums or means of windows, maps filled
 * with them, and both in one pass. Included once for each instruction set, before rows.h, which has all other windows.
 * `count` vectors of `n` channels are worked on together. `rows` and `columns` are a window's cells in the map,
 * compile-time constants for the usual windows. CELL_BY_CELL: whether maps are written in the order of memory. To write all
 * cells of a window for some channels at a time takes fewer instructions; on x86 it takes up to 1.3 times as long, where a map
 * leaves the cache. */

/* A cache line of channels, or a few vectors where these are small. */
#define RUN (LINE / (int64_t)sizeof(VEC) < 4 ? LINE / (int64_t)sizeof(VEC) : 4)

/* Channels that are left, up to a vector of them. */
#define LEFT(lanes, c) ((lanes) - (c) < LANES ? (lanes) - (c) : LANES)

/* Calls function(..., rows, columns) with constants where a window has one of the usual sizes. */
#define FOR_USUAL_WINDOWS(function, window_rows, window_columns, ...)                                                  \
    do {                                                                                                              \
        if ((window_rows) == 2 && (window_columns) == 2)                                                              \
            NAME(function)(__VA_ARGS__, 2, 2);                                                                        \
        else if ((window_rows) == 4 && (window_columns) == 4)                                                         \
            NAME(function)(__VA_ARGS__, 4, 4);                                                                        \
        else                                                                                                          \
            NAME(function)(__VA_ARGS__, window_rows, window_columns);                                                 \
    } while (0)

TARGET FE_INLINE void NAME(load_run)(VEC *values, const float *from, int64_t count, int64_t n) {
    UNROLL(4)
    for (int64_t i = 0; i < count; i++)
        values[i] = NAME(load)(from + i * LANES, n);
}

TARGET FE_INLINE void NAME(store_run)(float *to, const VEC *values, int64_t count, int64_t n) {
    UNROLL(4)
    for (int64_t i = 0; i < count; i++)
        NAME(store)(to + i * LANES, values[i], n);
}

TARGET FE_INLINE void NAME(scale_run)(VEC *values, VEC factor, int64_t count) {
    UNROLL(4)
    for (int64_t i = 0; i < count; i++)
        values[i] = NAME(multiply)(factor, values[i]);
}

/* Sums over the window at x, whose lines of the next row of windows are fetched. */
TARGET FE_INLINE void NAME(sum_window)(VEC *sums, const float *x, const view *map, uintptr_t *ahead, int64_t count, int64_t n,
                                       int64_t rows, int64_t columns) {
    const int64_t row = map->row, cell = map->cell, bytes = rows * columns * count * (int64_t)sizeof(VEC);
    VEC cells[RUN];
    fetch_lines(*ahead, bytes);
    *ahead += (uintptr_t)bytes;
    UNROLL(4)
    for (int64_t i = 0; i < count; i++)
        sums[i] = NAME(set)(0.0f);
    for (int64_t h = 0; h < rows; h++)
        for (int64_t w = 0; w < columns; w++) {
            NAME(load_run)(cells, x + h * row + w * cell, count, n);
            UNROLL(4)
            for (int64_t i = 0; i < count; i++)
                sums[i] = h + w ? NAME(add)(sums[i], cells[i]) : cells[i];
        }
}

TARGET FE_INLINE void NAME(pool_run)(float *out, const float *x, const view *map, VEC part, uintptr_t *ahead, int64_t count,
                                     int64_t n, int64_t rows, int64_t columns) {
    VEC values[RUN];
    NAME(sum_window)(values, x, map, ahead, count, n, rows, columns);
    NAME(scale_run)(values, part, count);
    NAME(store_run)(out, values, count, n);
}

TARGET FE_INLINE void NAME(pool_window)(float *out, const float *x, const view *map, VEC part, uintptr_t *ahead, int64_t rows,
                                        int64_t columns) {
    const int64_t lanes = map->lanes;
    int64_t c = 0;
    for (; c + RUN * LANES <= lanes; c += RUN * LANES)
        NAME(pool_run)(out + c, x + c, map, part, ahead, RUN, LANES, rows, columns);
    for (; c < lanes; c += LANES)
        NAME(pool_run)(out + c, x + c, map, part, ahead, 1, LEFT(lanes, c), rows, columns);
}

TARGET static __attribute__((noinline)) void NAME(pool_means_row)(const patch_job *job, int64_t image, int64_t p) {
    /* Vectors may alias anything: what is read in the inner loop is held in variables of this function. */
    const view map = job->map;
    const fe_grid grid = *map.grid;
    const int means = job->means;
    const float *x = job->in + image * map.image;
    float *out = job->out + (image * grid.patches[0] + p - job->first) * grid.patches[1] * map.lanes;
    span rows, columns;
    blocks_of(&rows, &grid, 0, p, 1);
    uintptr_t ahead = next_row(x, map.row, &rows, &grid);
    x += rows.begin * map.row;
    for (int64_t q = 0; q < grid.patches[1]; q++, out += map.lanes) {
        int64_t cells = rows.count * blocks_of(&columns, &grid, 1, q, 1);
        VEC part = NAME(set)(!means ? 1.0f : cells ? 1.0f / (float)cells : 0.0f);
        FOR_USUAL_WINDOWS(pool_window, rows.count, columns.count, out, x + columns.begin * map.cell, &map, part, &ahead);
    }
}

TARGET FE_INLINE void NAME(write_run)(float *x, const VEC *values, int64_t count, int64_t n, int stream) {
    if (stream)
        UNROLL(4)
        for (int64_t i = 0; i < count; i++)
            NAME(stream)(x + i * LANES, values[i]);
    else
        NAME(store_run)(x, values, count, n);
}

/* Writes all cells of a window for some channels at a time. */
TARGET FE_INLINE void NAME(fill_cells)(float *x, const view *map, const float *in, VEC scale, int64_t lanes, int stream,
                                       int64_t rows, int64_t columns) {
    const int64_t row = map->row, cell = map->cell;
    VEC values[RUN];
    int64_t c = 0;
    for (; c + RUN * LANES <= lanes; c += RUN * LANES) {
        NAME(load_run)(values, in + c, RUN, LANES);
        NAME(scale_run)(values, scale, RUN);
        for (int64_t h = 0; h < rows; h++)
            for (int64_t w = 0; w < columns; w++)
                NAME(write_run)(x + h * row + w * cell + c, values, RUN, LANES, stream);
    }
    for (; c < lanes; c += LANES) {
        NAME(load_run)(values, in + c, 1, LEFT(lanes, c));
        NAME(scale_run)(values, scale, 1);
        for (int64_t h = 0; h < rows; h++)
            for (int64_t w = 0; w < columns; w++)
                NAME(write_run)(x + h * row + w * cell + c, values, 1, LEFT(lanes, c), 0);
    }
}

TARGET FE_INLINE void NAME(fill_window)(float *x, const view *map, const float *in, VEC scale, int64_t lanes, int stream,
                                        int64_t rows, int64_t columns) {
    if (CELL_BY_CELL)
        for (int64_t h = 0; h < rows; h++)
            for (int64_t w = 0; w < columns; w++)
                NAME(fill_cells)(x + h * map->row + w * map->cell, map, in, scale, lanes, stream, 1, 1);
    else
        FOR_USUAL_WINDOWS(fill_cells, rows, columns, x, map, in, scale, lanes, stream);
}

TARGET static __attribute__((noinline)) void NAME(fill_means_row)(const patch_job *job, int64_t image, int64_t p) {
    const view map = job->map;
    const fe_grid grid = *map.grid;
    const int stream = job->stream;
    const VEC scale = NAME(set)(job->scale);
    const float *in = job->in + (image * grid.patches[0] + p - job->first) * grid.patches[1] * map.lanes;
    float *x = job->out + image * map.image;
    span rows, columns;
    blocks_of(&rows, &grid, 0, p, 1);
    zero_rows(x, map.row, &grid, p);
    zero_columns(x, &map, &rows, 1);
    x += rows.begin * map.row;
    for (int64_t q = 0; q < grid.patches[1]; q++, in += map.lanes) {
        blocks_of(&columns, &grid, 1, q, 1);
        NAME(fill_window)(x + columns.begin * map.cell, &map, in, scale, map.lanes, stream, rows.count, columns.count);
    }
    if (stream)
        NAME(fence)();
}

/* Some channels of a depthwise convolution's window; `gram`, or `stage`, may be NULL. */
typedef struct {
    const float *grad, *x_sums, *tap_sums;
    float *gram, *stage;
    int64_t lanes;
    VEC part;
} NAME(depthwise_window);

/* Adds to the gram, and stages what the window of the input is filled with. */
TARGET FE_INLINE void NAME(depthwise_run)(const NAME(depthwise_window) *at, int64_t c, const view *map, uintptr_t *ahead,
                                          int64_t count, int64_t n, int64_t rows, int64_t columns) {
    VEC means[RUN], factors[RUN], gram[RUN];
    NAME(sum_window)(means, at->grad + c, map, ahead, count, n, rows, columns);
    NAME(scale_run)(means, at->part, count);
    if (at->gram) {
        NAME(load_run)(factors, at->x_sums + c, count, n);
        NAME(load_run)(gram, at->gram + c, count, n);
        UNROLL(4)
        for (int64_t i = 0; i < count; i++)
            gram[i] = NAME(multiply_add)(means[i], factors[i], gram[i]);
        NAME(store_run)(at->gram + c, gram, count, n);
    }
    if (at->stage) {
        NAME(load_run)(factors, at->tap_sums + c, count, n);
        UNROLL(4)
        for (int64_t i = 0; i < count; i++)
            means[i] = NAME(multiply)(means[i], factors[i]);
        NAME(store_run)(at->stage + c, means, count, n);
    }
}

TARGET FE_INLINE void NAME(depthwise_lanes)(const NAME(depthwise_window) *at, const view *map, uintptr_t *ahead, int64_t rows,
                                            int64_t columns) {
    int64_t c = 0;
    for (; c + RUN * LANES <= at->lanes; c += RUN * LANES)
        NAME(depthwise_run)(at, c, map, ahead, RUN, LANES, rows, columns);
    for (; c < at->lanes; c += LANES)
        NAME(depthwise_run)(at, c, map, ahead, 1, LEFT(at->lanes, c), rows, columns);
}

TARGET static __attribute__((noinline)) void NAME(depthwise_means_row)(const depthwise_job *job, int64_t image, int64_t p,
                                                                       float *gram) {
    const view map = job->grad, x_map = job->x;
    const fe_grid grid = *map.grid, x_grid = *x_map.grid;
    const int64_t lanes = map.lanes, patches = grid.patches[1];
    const int stream = job->stream;
    const VEC scale = NAME(set)(job->scale);
    const float *grad = job->in + image * map.image, *tap_sums = job->tap_sums;
    const float *x_sums = gram ? job->x_sums + (image * grid.patches[0] + p) * patches * lanes : NULL;
    float *x = job->grad_x ? job->grad_x + image * x_map.image : NULL;
    _Alignas(64) float stage[STAGE];
    span rows, columns, x_rows, x_columns;
    blocks_of(&rows, &grid, 0, p, 1);
    blocks_of(&x_rows, &x_grid, 0, p, 1);
    uintptr_t ahead = next_row(grad, map.row, &rows, &grid);
    if (x) {
        zero_rows(x, x_map.row, &x_grid, p);
        zero_columns(x, &x_map, &x_rows, 1);
    }
    for (int64_t q = 0; q < patches; q++) {
        int64_t cells = rows.count * blocks_of(&columns, &grid, 1, q, 1);
        int64_t at_grad = rows.begin * map.row + columns.begin * map.cell;
        blocks_of(&x_columns, &x_grid, 1, q, 1);
        for (int64_t begin = 0; begin < lanes; begin += STAGE) {
            NAME(depthwise_window) at = {
                .grad = grad + at_grad + begin,
                .x_sums = gram ? x_sums + q * lanes + begin : NULL,
                .tap_sums = x ? tap_sums + begin : NULL,
                .gram = gram ? gram + begin : NULL,
                .stage = x ? stage : NULL,
                .lanes = lanes - begin < STAGE ? lanes - begin : STAGE,
                .part = NAME(set)(cells ? 1.0f / (float)cells : 0.0f),
            };
            FOR_USUAL_WINDOWS(depthwise_lanes, rows.count, columns.count, &at, &map, &ahead);
            if (x)
                NAME(fill_window)(x + x_rows.begin * x_map.row + x_columns.begin * x_map.cell + begin, &x_map, stage, scale,
                                  at.lanes, stream, x_rows.count, x_columns.count);
        }
    }
    if (stream)
        NAME(fence)();
}

#undef RUN
#undef LEFT
#undef FOR_USUAL_WINDOWS
#undef CELL_BY_CELL
