/* Products of matrices whose lanes are columns: a header of kernels, see serial.h. A tile of the result stays in registers while
 * the inner dimension passes by. Each sum has one order, whatever the tile. */
#include "lanes/fetch.h"

enum {
    /* Rows of a tile of two vectors each: with the vectors of b and one element of a, what registers hold. */
    NAME(tile_rows) = REGISTERS < 32 ? 6 : 12,
    /* Inner steps taken at a time: a panel of them stays in the first cache, or near it. */
    NAME(tile_inner) = 512,
};

/* How the left factor lies: element (i, k) is at i * row + k * inner. */
typedef struct {
    const float *at;
    int64_t row, inner;
} NAME(left);

/* `n` columns of some rows, in so many vectors; `rows`, `vectors` and `add` are compile-time constants. b is read in whole vectors.
 * Without something to fetch, `next` is NULL. */
TARGET FE_INLINE void NAME(tile)(float *c, int64_t c_row, NAME(left) a, const float *b, int64_t b_row, int64_t inner,
                                 int64_t rows, int vectors, int64_t n, int add, fetch *next) {
    uintptr_t ahead = next ? next->at : 0;
    const uintptr_t end = next ? next->end : 0;
    VEC sums[NAME(tile_rows)][2], row[2];
#define COUNT(v) ((v) + 1 < vectors ? LANES : n - (vectors - 1) * LANES)
    UNROLL(12)
    for (int64_t i = 0; i < rows; i++)
        UNROLL(2)
        for (int v = 0; v < vectors; v++)
            sums[i][v] = add ? NAME(load)(c + i * c_row + v * LANES, COUNT(v)) : NAME(set)(0.0f);
    for (int64_t k = 0; k < inner; k++, b += b_row) {
        UNROLL(2)
        for (int v = 0; v < vectors; v++)
            row[v] = NAME(load)(b + v * LANES, LANES);
        UNROLL(12)
        for (int64_t i = 0; i < rows; i++) {
            VEC factor = NAME(set)(a.at[i * a.row + k * a.inner]);
            UNROLL(2)
            for (int v = 0; v < vectors; v++)
                sums[i][v] = NAME(multiply_add)(factor, row[v], sums[i][v]);
        }
        if (next) {
            __builtin_prefetch((const void *)ahead, 0, 2);
            ahead += ahead < end ? 64 : 0;
        }
    }
    if (next)
        next->at = ahead;
    UNROLL(12)
    for (int64_t i = 0; i < rows; i++)
        UNROLL(2)
        for (int v = 0; v < vectors; v++)
            NAME(store)(c + i * c_row + v * LANES, sums[i][v], COUNT(v));
#undef COUNT
}

/* All rows of a tile's columns. */
TARGET FE_INLINE void NAME(tiles)(float *c, int64_t c_row, NAME(left) a, const float *b, int64_t b_row, int64_t rows,
                                  int64_t inner, int vectors, int64_t n, int add, fetch *next) {
#define TILES(count)                                                                                                             \
    for (; rows >= (count); rows -= (count), c += (count) * c_row, a.at += (count) * a.row)                                       \
    NAME(tile)(c, c_row, a, b, b_row, inner, count, vectors, n, add, next)
    TILES(NAME(tile_rows));
    if (NAME(tile_rows) > 8)
        TILES(8);
    TILES(4);
    TILES(2);
    TILES(1);
#undef TILES
}

/* Any number of columns, up to two vectors. */
TARGET FE_INLINE void NAME(tile_columns)(float *c, int64_t c_row, NAME(left) a, const float *b, int64_t b_row, int64_t rows,
                                         int64_t inner, int64_t n, int add, fetch *next) {
    if (n >= 2 * LANES)
        NAME(tiles)(c, c_row, a, b, b_row, rows, inner, 2, 2 * LANES, add, next);
    else if (n > LANES)
        NAME(tiles)(c, c_row, a, b, b_row, rows, inner, 2, n, add, next);
    else
        NAME(tiles)(c, c_row, a, b, b_row, rows, inner, 1, n, add, next);
}

/* c = a b, or c += a b with `add`, rows x inner times inner x columns. Rows of c and b lie c_row and b_row floats apart; b's are
 * read in whole vectors. a's element (i, k) is at i * a_row + k * a_inner. */
TARGET static __attribute__((unused)) void NAME(multiply_rows)(float *c, int64_t c_row, const float *a, int64_t a_row,
                                                               int64_t a_inner, const float *b, int64_t b_row, int64_t rows,
                                                               int64_t inner, int64_t columns, int add) {
    const NAME(left) left = {a, a_row, a_inner};
    for (int64_t at = 0; at < columns; at += 2 * LANES)
        NAME(tile_columns)(c + at, c_row, left, b + at, b_row, rows, inner, columns - at, add, NULL);
}

/* The same with a packed b, for a c without gaps between rows. */
TARGET static __attribute__((unused)) void NAME(multiply_packed)(float *c, const float *a, int64_t a_row, int64_t a_inner,
                                                                 const float *packed, int64_t rows, int64_t inner,
                                                                 int64_t columns, int add, fetch *next) {
    const int64_t width = 2 * LANES, most = NAME(tile_inner);
    for (int64_t k = 0; k < inner; k += most)
        for (int64_t j = 0; j < columns; j += width) {
            const NAME(left) from = {a + k * a_inner, a_row, a_inner};
            const int64_t depth = inner - k < most ? inner - k : most;
            NAME(tile_columns)(c + j, columns, from, packed + j * inner + k * width, width, rows, depth, columns - j, add || k, next);
        }
}

/* Packs rows [first, last) of a matrix without gaps, inner x columns. Packed, it consists of panels of 2 vectors of columns, the
 * last one filled up with zeros; of a panel, all rows follow each other. */
TARGET static __attribute__((unused)) void NAME(pack)(float *packed, const float *b, int64_t inner, int64_t columns,
                                                      int64_t first, int64_t last) {
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
