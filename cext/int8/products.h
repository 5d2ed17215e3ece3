/* Sums of products, for one instruction set; and what brings feature maps and gradients into the order that they are
 * multiplied in. */

#ifdef PRODUCTS_OF_PAIRS

/* Two rows in one vector, and their sums in two vectors for the same columns, one after the other. */
TARGET FE_INLINE void NAME(products)(INTS sums[MOST_ROWS][MOST_VECTORS], const CELL *const *from, const int64_t *segments,
                                     int64_t count, int64_t groups, const int8_t *operands, const int vectors) {
    const int rows = ROWS_OF(vectors);
    /* sums[m][v] and sums[m + 1][v]: rows m and m + 1 by the first and by the last two columns of vector v. */
    UNROLL(16)
    for (int m = 0; m < rows; m++)
        UNROLL(4)
        for (int v = 0; v < vectors; v++)
            sums[m][v] = LANE(all)(0);
    for (int64_t s = 0; s < count; s++) {
        const CELL *a[MOST_ROWS];
        UNROLL(16)
        for (int m = 0; m < rows; m++)
            a[m] = from[m] + segments[s];
        for (int64_t g = 0; g < groups; g++, operands += vectors * LANES * GROUP)
            UNROLL(8)
            for (int m = 0; m < rows; m += 2) {
                int8x16_t pair = vcombine_s8(vld1_s8(a[m] + g * GROUP), vld1_s8(a[m + 1] + g * GROUP));
                UNROLL(4)
                for (int v = 0; v < vectors; v++) {
                    const int8_t *b = operands + v * LANES * GROUP;
                    sums[m][v] = NAME(dot)(sums[m][v], pair, vld1q_s8(b));
                    sums[m + 1][v] = NAME(dot)(sums[m + 1][v], pair, vld1q_s8(b + 16));
                }
            }
    }
    UNROLL(8)
    for (int m = 0; m < rows; m += 2)
        UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            int64x2_t left = vreinterpretq_s64_s32(sums[m][v]), right = vreinterpretq_s64_s32(sums[m + 1][v]);
            sums[m][v] = vreinterpretq_s32_s64(vzip1q_s64(left, right));
            sums[m + 1][v] = vreinterpretq_s32_s64(vzip2q_s64(left, right));
        }
}

#else

/* The products of `length` groups at an offset from all rows. The compiler keeps all sums in registers, and reads where a row
 * begins once for these groups. */
TARGET FE_INLINE void NAME(add_products)(INTS sums[MOST_ROWS][MOST_VECTORS], const CELL *const *from, int64_t offset,
                                         const int8_t *operands, const int vectors, const int length) {
    const int rows = ROWS_OF(vectors);
    __typeof__(NAME(operand)(operands)) b[MOST_CHUNK][MOST_VECTORS];
    UNROLL(4)
    for (int g = 0; g < length; g++)
        UNROLL(4)
        for (int v = 0; v < vectors; v++)
            b[g][v] = NAME(operand)(operands + (g * vectors + v) * LANES * GROUP);
    UNROLL(16)
    for (int m = 0; m < rows; m++) {
        const CELL *a = from[m] + offset;
        UNROLL(4)
        for (int g = 0; g < length; g++) {
            __typeof__(NAME(broadcast)(a)) x = NAME(broadcast)(a + g * GROUP);
            UNROLL(4)
            for (int v = 0; v < vectors; v++)
                sums[m][v] = NAME(dot)(sums[m][v], x, b[g][v]);
        }
    }
}

/* Of ROWS_OF(vectors) rows of cells with `vectors` vectors of columns. */
TARGET FE_INLINE void NAME(products)(INTS sums[MOST_ROWS][MOST_VECTORS], const CELL *const *from, const int64_t *segments,
                                     int64_t count, int64_t groups, const int8_t *operands, const int vectors) {
    const int rows = ROWS_OF(vectors), length = CHUNK_OF(vectors);
    UNROLL(16)
    for (int m = 0; m < rows; m++)
        UNROLL(4)
        for (int v = 0; v < vectors; v++)
            sums[m][v] = LANE(all)(0);
    for (int64_t s = 0; s < count; s++) {
        int64_t g = 0;
        for (; g + length <= groups; g += length, operands += length * vectors * LANES * GROUP)
            NAME(add_products)(sums, from, segments[s] + g * GROUP, operands, vectors, length);
        for (; length > 1 && g < groups; g++, operands += vectors * LANES * GROUP)
            NAME(add_products)(sums, from, segments[s] + g * GROUP, operands, vectors, 1);
    }
}

#endif

TARGET FE_INLINE void NAME(put)(const tile_job *job, int64_t at, VEC value, int64_t lanes) {
    if (job->floats) {
        LANE(store)(job->floats + at, value, lanes);
        return;
    }
    const fe_rounding *to = &job->rounding;
    VEC steps = LANE(multiply)(value, LANE(set)(to->inverse));
    steps = LANE(greatest)(steps, LANE(set)((float)(to->least - to->zero)));
    steps = LANE(least)(steps, LANE(set)((float)(to->most - to->zero)));
    INTS bytes = LANE(plus)(LANE(nearest)(steps), LANE(all)(to->zero));
    if (LANES == 1 || lanes == LANES) {
        LANE(store_bytes)(job->bytes + at, bytes);
    } else {
        uint8_t some[LANES];
        LANE(store_bytes)(some, bytes);
        memcpy(job->bytes + at, some, (size_t)lanes);
    }
}

typedef struct {
    INTS shift[MOST_VECTORS];
    VEC scale[MOST_VECTORS], bias[MOST_VECTORS];
} NAME(factors);

/* The sums of a tile become floats, and go where its pixels are. Rows behind the last pixel repeat it. */
TARGET FE_INLINE void NAME(make)(const tile_job *job, INTS sums[MOST_ROWS][MOST_VECTORS], int64_t first,
                                 const NAME(factors) *by, VEC *low, VEC *high, const int rows, const int vectors) {
    VEC values[MOST_ROWS][MOST_VECTORS], least = *low, greatest = *high;
    UNROLL(16)
    for (int m = 0; m < rows; m++)
        UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            VEC value = LANE(multiply)(LANE(floats)(LANE(minus)(sums[m][v], by->shift[v])), by->scale[v]);
            values[m][v] = LANE(add)(value, by->bias[v]);
            least = LANE(least)(least, values[m][v]);
            greatest = LANE(greatest)(greatest, values[m][v]);
        }
    *low = least;
    *high = greatest;
    const int64_t *to = job->to + first;
    float *floats = job->floats;
    if (floats && first + rows <= job->pixels && job->columns == vectors * LANES) {
        UNROLL(16)
        for (int m = 0; m < rows; m++)
            UNROLL(4)
            for (int v = 0; v < vectors; v++)
                if (job->streams)
                    LANE(store_past)(floats + to[m] + v * LANES, values[m][v]);
                else
                    LANE(store)(floats + to[m] + v * LANES, values[m][v], LANES);
        return;
    }
    /* Through memory, so that the values above need never be there. */
    float rest[MOST_ROWS][MOST_VECTORS * LANES];
    UNROLL(16)
    for (int m = 0; m < rows; m++)
        UNROLL(4)
        for (int v = 0; v < vectors; v++)
            LANE(store)(rest[m] + v * LANES, values[m][v], LANES);
    for (int m = 0; m < rows && first + m < job->pixels; m++)
        for (int v = 0; v < vectors; v++)
            NAME(put)(job, to[m] + v * LANES, LANE(load)(rest[m] + v * LANES, LANES),
                      smaller(LANES, job->columns - v * LANES));
}

TARGET FE_INLINE void NAME(convolve_of)(tile_job *job, const int vectors) {
    const int rows = ROWS_OF(vectors);
    const CELL *cells = job->cells;
    const int64_t last = job->pixels - 1;
    NAME(factors) by;
    VEC low = LANE(set)(job->low), high = LANE(set)(job->high);
    UNROLL(4)
    for (int v = 0; v < vectors; v++) {
        by.shift[v] = LANE(load_ints)(job->shift + v * LANES);
        by.scale[v] = LANE(load)(job->scale + v * LANES, LANES);
        by.bias[v] = LANE(load)(job->bias + v * LANES, LANES);
    }
    for (int64_t first = 0; first <= last; first += rows) {
        const CELL *a[MOST_ROWS];
        INTS sums[MOST_ROWS][MOST_VECTORS];
        UNROLL(16)
        for (int m = 0; m < rows; m++)
            a[m] = cells + job->from[smaller(first + m, last)];
        NAME(products)(sums, a, job->segments, job->count, job->groups, job->weights, vectors);
        NAME(make)(job, sums, first, &by, &low, &high, rows, vectors);
    }
    float ends[LANES];
    LANE(store)(ends, low, LANES);
    for (int i = 0; i < LANES; i++)
        job->low = ends[i] < job->low ? ends[i] : job->low;
    LANE(store)(ends, high, LANES);
    for (int i = 0; i < LANES; i++)
        job->high = ends[i] > job->high ? ends[i] : job->high;
}

TARGET FE_INLINE void NAME(gram_of)(const gram_job *job, const int vectors) {
    const int rows = ROWS_OF(vectors);
    const CELL *cells = job->cells;
    const int64_t last = job->rows - 1;
    for (int64_t first = 0; first <= last; first += rows) {
        const CELL *a[MOST_ROWS];
        INTS sums[MOST_ROWS][MOST_VECTORS];
        UNROLL(16)
        for (int m = 0; m < rows; m++)
            a[m] = cells + job->from[smaller(first + m, last)];
        NAME(products)(sums, a, job->segments, job->count, job->groups, job->errors, vectors);
        UNROLL(16)
        for (int m = 0; m < rows; m++) {
            if (first + m > last)
                break;
            int32_t *to = job->sums + (first + m) * job->stride;
            UNROLL(4)
            for (int v = 0; v < vectors; v++) {
                INTS before = job->is_first ? LANE(all)(0) : LANE(load_ints)(to + v * LANES);
                LANE(store_ints)(to + v * LANES, LANE(plus)(before, sums[m][v]));
            }
        }
    }
}

TARGET static void NAME(convolve)(tile_job *job) {
    switch (ceiling_of(job->columns, LANES)) {
    case 1:
        NAME(convolve_of)(job, 1);
        break;
    case 2:
        NAME(convolve_of)(job, 2);
        break;
#if VECTORS == 4
    case 3:
        NAME(convolve_of)(job, 3);
        break;
    default:
        NAME(convolve_of)(job, 4);
#endif
    }
}

TARGET static void NAME(gram)(const gram_job *job) {
    switch (ceiling_of(job->columns, LANES)) {
    case 1:
        NAME(gram_of)(job, 1);
        break;
    case 2:
        NAME(gram_of)(job, 2);
        break;
#if VECTORS == 4
    case 3:
        NAME(gram_of)(job, 3);
        break;
    default:
        NAME(gram_of)(job, 4);
#endif
    }
}

TARGET static void NAME(cells)(void *to, const uint8_t *from, int64_t count) {
    CELL *out = to;
    if (sizeof(CELL) == 1 && !FLIP) {
        memcpy(out, from, (size_t)count);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = (CELL)(from[i] ^ FLIP);
}

TARGET static void NAME(planes)(void *to, int64_t pitch, const void *from, int64_t step, int64_t count, int64_t channels) {
    CELL *out = to;
    const CELL *in = from;
    for (int64_t c = 0; c < channels; c += 16) {
        int64_t width = smaller(16, channels - c), i = 0;
        if (width == 16) {
            for (; i + 16 <= count; i += 16)
                NAME(transpose_16)(out + c * pitch + i, pitch, in + i * step + c, step);
            if (i < count && count >= 16) {
                i = count - 16;
                NAME(transpose_16)(out + c * pitch + i, pitch, in + i * step + c, step);
                continue;
            }
        }
        for (; i < count; i++)
            for (int64_t k = 0; k < width; k++)
                out[(c + k) * pitch + i] = in[i * step + c + k];
    }
}

TARGET FE_INLINE void NAME(add_columns)(int32_t *sums, const uint8_t *from, int64_t step, int64_t count, int64_t columns) {
    const int32_t zeros = (int32_t)(-FE_ERROR_ZERO * count);
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES) {
        INTS some = LANE(all)(zeros);
        for (int64_t row = 0; row < count; row++)
            some = LANE(plus)(some, LANE(load_bytes)(from + row * step + c));
        LANE(store_ints)(sums + c, LANE(plus)(LANE(load_ints)(sums + c), some));
    }
    for (; c < columns; c++) {
        sums[c] += zeros;
        for (int64_t row = 0; row < count; row++)
            sums[c] += from[row * step + c];
    }
}

TARGET static void NAME(interleave)(int8_t *to, const uint8_t *from, int64_t step, int64_t count, int64_t columns,
                                    int64_t width, int32_t *sums) {
    const int64_t wide = columns / 16 * 16;
    NAME(add_columns)(sums, from, step, count, columns);
    for (int64_t row = 0; row < count; row += GROUP, to += width * GROUP) {
        int64_t rows = smaller(GROUP, count - row), c = 0;
        for (; rows == GROUP && c < wide; c += 16)
            NAME(interleave_16)(to + c * GROUP, from + row * step + c, step);
        for (; c < width; c++)
            for (int64_t i = 0; i < GROUP; i++)
                to[c * GROUP + i] = i < rows && c < columns ? (int8_t)(from[(row + i) * step + c] ^ FE_ERROR_ZERO) : 0;
    }
}

/* A row of a gram; of sixteen columns, or of fewer. */
TARGET FE_INLINE void NAME(finish_row)(float *to, const int32_t *sums, const gram_sums *of, const int32_t *shift,
                                       const int64_t columns) {
    double whole[16] = {0};
    for (int64_t half = 0; half < of->halves; half++) {
        int32_t all[16];
        for (int64_t c = 0; c < columns; c++)
            all[c] = -shift[half * MOST_COLUMNS + c];
        for (int64_t copy = 0; copy < of->copies; copy++) {
            const int32_t *from = sums + copy * of->copy + half * of->half;
            for (int64_t c = 0; c < columns; c++)
                all[c] = (int32_t)((uint32_t)all[c] + (uint32_t)from[c]);
        }
        for (int64_t c = 0; c < columns; c++)
            whole[c] = FE_HALF * whole[c] + all[c];
    }
    for (int64_t c = 0; c < columns; c++)
        to[c] = (float)(whole[c] * of->scale);
}

TARGET static void NAME(finish)(float *grad, int64_t pitch, const int32_t *sums, const gram_sums *of, int64_t rows,
                                int64_t columns, const int32_t *shift) {
    for (int64_t first = 0; first < columns; first += 16, grad += 16 * pitch) {
        const int64_t some = smaller(16, columns - first);
        _Alignas(64) float turned[TURNED][16];
        for (int64_t row = 0; row < rows; row++) {
            const int32_t *from = sums + row * of->stride + first;
            if (some == 16)
                NAME(finish_row)(turned[row], from, of, shift + first, 16);
            else
                NAME(finish_row)(turned[row], from, of, shift + first, some);
        }
        for (int64_t c = 0; c < some; c++)
            if (rows == TURNED)
                for (int64_t row = 0; row < TURNED; row++)
                    grad[c * pitch + row] = turned[row][c];
            else
                for (int64_t row = 0; row < rows; row++)
                    grad[c * pitch + row] = turned[row][c];
    }
}
