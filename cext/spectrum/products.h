/* Products of small matrices whose lanes are columns, included once for each instruction set like tiles.h. A block of the
 * result stays in registers while the inner dimension passes by. */

enum {
    /* Rows of a block of two vectors each: with the vectors of b and one element of a, what registers hold. */
    NAME(block_rows) = REGISTERS < 32 ? 6 : 8,
};

TARGET FE_INLINE void NAME(multiply_block)(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_step,
                                           const float *b, int64_t b_row, int64_t inner, int add, int rows, int vectors) {
    VEC sums[8][2], row[2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sums[r][v] = add ? NAME(load)(c + r * c_row + v * LANES, LANES) : NAME(set)(0.0f);
    for (int64_t k = 0; k < inner; k++) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            row[v] = NAME(load)(b + k * b_row + v * LANES, LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            VEC factor = NAME(set)(a[r * a_row + k * a_step]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[r][v] = NAME(multiply_add)(factor, row[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            NAME(store)(c + r * c_row + v * LANES, sums[r][v], LANES);
}

/* All rows of one or two vectors of columns. */
TARGET FE_INLINE void NAME(multiply_columns)(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_step,
                                             const float *b, int64_t b_row, int64_t rows, int64_t inner, int add,
                                             int vectors) {
#define BLOCK(count) NAME(multiply_block)(c, c_row, a, a_row, a_step, b, b_row, inner, add, count, vectors)
    for (; rows >= NAME(block_rows); rows -= NAME(block_rows)) {
        BLOCK(NAME(block_rows));
        c += NAME(block_rows) * c_row;
        a += NAME(block_rows) * a_row;
    }
    switch (rows) {
    case 7:
        BLOCK(7);
        break;
    case 6:
        BLOCK(6);
        break;
    case 5:
        BLOCK(5);
        break;
    case 4:
        BLOCK(4);
        break;
    case 3:
        BLOCK(3);
        break;
    case 2:
        BLOCK(2);
        break;
    case 1:
        BLOCK(1);
        break;
    }
#undef BLOCK
}

TARGET static void NAME(multiply)(float *c, int64_t c_row, const float *a, int64_t a_row, int64_t a_step, const float *b,
                                  int64_t b_row, int64_t rows, int64_t inner, int64_t columns, int add) {
    int64_t at = 0;
    for (; at + 2 * LANES <= columns; at += 2 * LANES)
        NAME(multiply_columns)(c + at, c_row, a, a_row, a_step, b + at, b_row, rows, inner, add, 2);
    if (at < columns)
        NAME(multiply_columns)(c + at, c_row, a, a_row, a_step, b + at, b_row, rows, inner, add, 1);
}

TARGET static void NAME(subtract_rows)(float *out, const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t n = count - i < LANES ? count - i : LANES;
        NAME(store)(out + i, NAME(subtract)(NAME(load)(a + i, n), NAME(load)(b + i, n)), n);
    }
}
