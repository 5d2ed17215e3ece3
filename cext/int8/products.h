/* Sums of products, for one instruction set; and what brings feature maps and gradients into the order that they are
 * multiplied in. */

#ifdef PRODUCTS_OF_PAIRS

/* Two rows in one vector, and their sums in two vectors for the same columns, one after the other. */
TARGET FE_INLINE void NAME(products)(INTS sums[MOST_ROWS][MOST_VECTORS], const CELL *const *from, const int64_t *segments,
                                     int64_t count, int64_t groups, const int8_t *operands, const int vectors) {
    const int rows = ROWS_OF(vectors);
    /* sums[m][v] and sums[m + 1][v]: rows m and m + 1 by the first and by the last two columns of vector v. */
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < vectors; v++)
            sums[m][v] = LANE(all)(0);
    for (int64_t s = 0; s < count; s++) {
        const CELL *a[MOST_ROWS];
        for (int m = 0; m < rows; m++)
            a[m] = from[m] + segments[s];
        for (int64_t g = 0; g < groups; g++, operands += vectors * LANES * GROUP)
            for (int m = 0; m < rows; m += 2) {
                int8x16_t pair = vcombine_s8(vld1_s8(a[m] + g * GROUP), vld1_s8(a[m + 1] + g * GROUP));
                for (int v = 0; v < vectors; v++) {
                    const int8_t *b = operands + v * LANES * GROUP;
                    sums[m][v] = NAME(dot)(sums[m][v], pair, vld1q_s8(b));
                    sums[m + 1][v] = NAME(dot)(sums[m + 1][v], pair, vld1q_s8(b + 16));
                }
            }
    }
    for (int m = 0; m < rows; m += 2)
        for (int v = 0; v < vectors; v++) {
            int64x2_t left = vreinterpretq_s64_s32(sums[m][v]), right = vreinterpretq_s64_s32(sums[m + 1][v]);
            sums[m][v] = vreinterpretq_s32_s64(vzip1q_s64(left, right));
            sums[m + 1][v] = vreinterpretq_s32_s64(vzip2q_s64(left, right));
        }
}

#else

/* Of ROWS_OF(vectors) rows of cells with `vectors` vectors of columns. */
TARGET FE_INLINE void NAME(products)(INTS sums[MOST_ROWS][MOST_VECTORS], const CELL *const *from, const int64_t *segments,
                                     int64_t count, int64_t groups, const int8_t *operands, const int vectors) {
    const int rows = ROWS_OF(vectors);
#pragma GCC unroll 16
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sums[m][v] = LANE(all)(0);
    for (int64_t s = 0; s < count; s++) {
        const CELL *a[MOST_ROWS];
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++)
            a[m] = from[m] + segments[s];
#pragma GCC unroll 4
        for (int64_t g = 0; g < groups; g++) {
            __typeof__(NAME(operand)(operands)) b[MOST_VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                b[v] = NAME(operand)(operands + v * LANES * GROUP);
            operands += vectors * LANES * GROUP;
#pragma GCC unroll 16
            for (int m = 0; m < rows; m++) {
                __typeof__(NAME(broadcast)(a[m])) x = NAME(broadcast)(a[m] + g * GROUP);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    sums[m][v] = NAME(dot)(sums[m][v], x, b[v]);
            }
        }
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

TARGET FE_INLINE void NAME(convolve_of)(tile_job *job, const int vectors) {
    const int rows = ROWS_OF(vectors);
    const CELL *cells = job->cells;
    const int64_t last = job->pixels - 1;
    INTS shift[MOST_VECTORS];
    VEC scale[MOST_VECTORS], bias[MOST_VECTORS], low = LANE(set)(job->low), high = LANE(set)(job->high);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        shift[v] = LANE(load_ints)(job->shift + v * LANES);
        scale[v] = LANE(load)(job->scale + v * LANES, LANES);
        bias[v] = LANE(load)(job->bias + v * LANES, LANES);
    }
    for (int64_t first = 0; first <= last; first += rows) {
        const CELL *a[MOST_ROWS];
        INTS sums[MOST_ROWS][MOST_VECTORS];
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++)
            a[m] = cells + job->from[smaller(first + m, last)];
        NAME(products)(sums, a, job->segments, job->count, job->groups, job->weights, vectors);
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++) {
            if (first + m > last)
                break;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                int64_t lanes = v == vectors - 1 ? job->columns - v * LANES : LANES;
                VEC value = LANE(multiply)(LANE(floats)(LANE(minus)(sums[m][v], shift[v])), scale[v]);
                value = LANE(add)(value, bias[v]);
                low = LANE(least)(low, value);
                high = LANE(greatest)(high, value);
                NAME(put)(job, job->to[first + m] + v * LANES, value, lanes);
            }
        }
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
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++)
            a[m] = cells + job->from[smaller(first + m, last)];
        NAME(products)(sums, a, job->segments, job->count, job->groups, job->errors, vectors);
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++) {
            if (first + m > last)
                break;
            int32_t *to = job->sums + (first + m) * job->stride;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                LANE(store_ints)(to + v * LANES, LANE(plus)(LANE(load_ints)(to + v * LANES), sums[m][v]));
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

TARGET static void NAME(interleave)(int8_t *to, const uint8_t *from, int64_t step, int64_t count, int64_t columns,
                                    int64_t width, int32_t *sums) {
    int64_t wide = columns / 16 * 16;
    for (int64_t row = 0; row < count; row++)
        for (int64_t c = 0; c < columns; c++)
            sums[c] += (int32_t)from[row * step + c] - FE_ERROR_ZERO;
    for (int64_t row = 0; row < count; row += GROUP, to += width * GROUP) {
        int64_t rows = smaller(GROUP, count - row), c = 0;
        for (; rows == GROUP && c < wide; c += 16)
            NAME(interleave_16)(to + c * GROUP, from + row * step + c, step);
        for (; c < width; c++)
            for (int64_t i = 0; i < GROUP; i++)
                to[c * GROUP + i] = i < rows && c < columns ? (int8_t)(from[(row + i) * step + c] ^ FE_ERROR_ZERO) : 0;
    }
}
