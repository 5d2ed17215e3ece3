/* Products of matrices. Included for AVX-512, where they were measured to be 2.5 times as fast as MKL's on AMD's Zen 5. */

enum {
    /* Rows of a tile; its 2 vectors of columns fill 24 registers with sums. */
    TILE_ROWS = 12,
    /* Inner steps taken at a time: a panel of them stays in the first cache, or near it. */
    TILE_INNER = 512,
};

/* How the left factor lies: element (i, k) is at i * row + k * inner. */
typedef struct {
    const float *at;
    int64_t row, inner;
} NAME(left);

/* `rows` x 2 vectors of the product, n columns of it. `rows` is a compile-time constant. */
TARGET FE_INLINE void NAME(tile)(float *c, int64_t c_row, NAME(left) a, const float *panel, int64_t inner, int64_t rows,
                                 int64_t n, int add, fetch *next) {
    uintptr_t ahead = next->at;
    const uintptr_t end = next->end;
    VEC sums[TILE_ROWS][2];
    const int64_t low = n < LANES ? n : LANES, high = n - low;
#pragma GCC unroll 12
    for (int64_t i = 0; i < rows; i++) {
        sums[i][0] = add ? NAME(load)(c + i * c_row, low) : NAME(set)(0.0f);
        sums[i][1] = add && high ? NAME(load)(c + i * c_row + LANES, high) : NAME(set)(0.0f);
    }
    for (int64_t k = 0; k < inner; k++, panel += 2 * LANES) {
        VEC first = NAME(load)(panel, LANES), second = NAME(load)(panel + LANES, LANES);
#pragma GCC unroll 12
        for (int64_t i = 0; i < rows; i++) {
            VEC factor = NAME(set)(a.at[i * a.row + k * a.inner]);
            sums[i][0] = NAME(multiply_add)(factor, first, sums[i][0]);
            sums[i][1] = NAME(multiply_add)(factor, second, sums[i][1]);
        }
        __builtin_prefetch((const void *)ahead, 0, 2);
        ahead += ahead < end ? LINE : 0;
    }
    next->at = ahead;
#pragma GCC unroll 12
    for (int64_t i = 0; i < rows; i++) {
        NAME(store)(c + i * c_row, sums[i][0], low);
        if (high)
            NAME(store)(c + i * c_row + LANES, sums[i][1], high);
    }
}

/* All rows of a panel's columns. */
TARGET FE_INLINE void NAME(tiles)(float *c, int64_t c_row, NAME(left) a, const float *panel, int64_t rows, int64_t inner,
                                  int64_t n, int add, fetch *next) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS, a.at += TILE_ROWS * a.row)
        NAME(tile)(c + i * c_row, c_row, a, panel, inner, TILE_ROWS, n, add, next);
    for (; i + 4 <= rows; i += 4, a.at += 4 * a.row)
        NAME(tile)(c + i * c_row, c_row, a, panel, inner, 4, n, add, next);
    for (; i < rows; i++, a.at += a.row)
        NAME(tile)(c + i * c_row, c_row, a, panel, inner, 1, n, add, next);
}

TARGET static void NAME(multiply_packed)(float *c, const float *a, int64_t a_row, int64_t a_inner, const float *packed,
                                         int64_t rows, int64_t inner, int64_t columns, int add, fetch *next) {
    const int64_t width = 2 * LANES;
    for (int64_t k = 0; k < inner; k += TILE_INNER)
        for (int64_t j = 0; j < columns; j += width) {
            const int64_t n = columns - j < width ? columns - j : width, depth = inner - k < TILE_INNER ? inner - k : TILE_INNER;
            const NAME(left) from = {a + k * a_inner, a_row, a_inner};
            const float *panel = packed + j * inner + k * width;
            if (n == width)
                NAME(tiles)(c + j, columns, from, panel, rows, depth, width, add || k, next);
            else
                NAME(tiles)(c + j, columns, from, panel, rows, depth, n, add || k, next);
        }
}

/* Packed, a matrix consists of panels of 2 vectors of columns, the last one filled up with zeros; of a panel, all rows
 * follow each other. */
TARGET static void NAME(pack)(float *packed, const float *b, int64_t inner, int64_t columns, int64_t first, int64_t last) {
    const int64_t width = 2 * LANES;
    b += first * columns;
    for (int64_t k = first; k < last; k++, b += columns) {
        float *to = packed + k * width;
        for (int64_t j = 0; j < columns; j += width, to += inner * width) {
            const int64_t n = columns - j < width ? columns - j : width, low = n < LANES ? n : LANES;
            NAME(store)(to, NAME(load)(b + j, low), LANES);
            NAME(store)(to + LANES, n > LANES ? NAME(load)(b + j + LANES, n - LANES) : NAME(set)(0.0f), LANES);
        }
    }
}
