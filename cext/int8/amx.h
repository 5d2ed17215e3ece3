/* Products of AMX, on the weights and the vectors of avx512vnni.h: 16 rows of 64 bytes by 16 columns. Tiles live in registers
 * that a function configures and releases itself, so that nobody else finds them changed. */
#undef TARGET
#undef NAME
#define TARGET                                                                                                                 \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,amx-tile,amx-int8")))
#define NAME(name) name##_amx

/* By hand, since compilers' own functions do not say that they read memory. */
#define LOAD_TILE(tile, from, step)                                                                                            \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(step)) : "memory")
#define STORE_TILE(to, step, tile)                                                                                             \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(step)) : "memory")
#define CLEAR_TILE(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
/* Unsigned rows by signed columns, and the other way round. */
#define DOT_TILES(sum, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)
#define DOT_SIGNED_TILES(sum, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)

enum {
    /* Tiles 0 to 3 hold sums. */
    NAME(SUMS) = 4,
    NAME(STRIP) = NAME(SUMS) * TILE_ROWS,
};

/* Tiles 6 and 7 are the last `rest` numbers of rows and of columns, where there are any. */
TARGET FE_INLINE void NAME(configure)(int64_t rest) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.bytes[tile] = TILE_NUMBERS;
        shapes.rows[tile] = TILE_ROWS;
    }
    if (rest) {
        shapes.bytes[6] = (uint16_t)rest;
        shapes.rows[7] = (uint8_t)(rest / 4);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

FE_INLINE void NAME(release)(void) { __asm__ volatile("tilerelease" : :); }

/* Rows of one tile, for each segment. */
typedef struct {
    const uint8_t *base;
    int64_t step;
    const int64_t *segments;
} NAME(tile_rows);

typedef struct {
    int64_t count, full, rest;
} NAME(lengths);

/* Two tiles of rows by two of columns. */
TARGET FE_INLINE void NAME(sum_square)(const NAME(tile_rows) rows[2], const NAME(lengths) *of, const int8_t *b, int64_t step) {
    CLEAR_TILE(0);
    CLEAR_TILE(1);
    CLEAR_TILE(2);
    CLEAR_TILE(3);
    for (int64_t s = 0; s < of->count; s++) {
        const uint8_t *a0 = rows[0].base + rows[0].segments[s], *a1 = rows[1].base + rows[1].segments[s];
        for (int64_t k = 0; k < of->full; k++, a0 += TILE_NUMBERS, a1 += TILE_NUMBERS, b += TILE_ROWS * step) {
            LOAD_TILE(5, b, step);
            LOAD_TILE(4, a0, rows[0].step);
            DOT_TILES(0, 4, 5);
            LOAD_TILE(4, a1, rows[1].step);
            DOT_TILES(2, 4, 5);
            LOAD_TILE(5, b + TILE_NUMBERS, step);
            DOT_TILES(3, 4, 5);
            LOAD_TILE(4, a0, rows[0].step);
            DOT_TILES(1, 4, 5);
        }
        if (of->rest) {
            LOAD_TILE(7, b, step);
            LOAD_TILE(6, a0, rows[0].step);
            DOT_TILES(0, 6, 7);
            LOAD_TILE(6, a1, rows[1].step);
            DOT_TILES(2, 6, 7);
            LOAD_TILE(7, b + TILE_NUMBERS, step);
            DOT_TILES(3, 6, 7);
            LOAD_TILE(6, a0, rows[0].step);
            DOT_TILES(1, 6, 7);
            b += of->rest / 4 * step;
        }
    }
}

/* Four tiles of rows, or two, by one of columns: tile t's sums are in tile t. */
TARGET FE_INLINE void NAME(sum_line)(const NAME(tile_rows) *rows, const NAME(lengths) *of, const int8_t *b, int64_t step,
                                     const int down) {
    CLEAR_TILE(0);
    CLEAR_TILE(1);
    CLEAR_TILE(2);
    CLEAR_TILE(3);
    for (int64_t s = 0; s < of->count; s++) {
        int64_t at = 0;
#define AT(t) (rows[t].base + rows[t].segments[s] + at)
        for (int64_t k = 0; k < of->full; k++, at += TILE_NUMBERS, b += TILE_ROWS * step) {
            LOAD_TILE(5, b, step);
            LOAD_TILE(4, AT(0), rows[0].step);
            DOT_TILES(0, 4, 5);
            LOAD_TILE(4, AT(1), rows[1].step);
            DOT_TILES(1, 4, 5);
            if (down == 4) {
                LOAD_TILE(4, AT(2), rows[2].step);
                DOT_TILES(2, 4, 5);
                LOAD_TILE(4, AT(3), rows[3].step);
                DOT_TILES(3, 4, 5);
            }
        }
        if (of->rest) {
            LOAD_TILE(7, b, step);
            LOAD_TILE(6, AT(0), rows[0].step);
            DOT_TILES(0, 6, 7);
            LOAD_TILE(6, AT(1), rows[1].step);
            DOT_TILES(1, 6, 7);
            if (down == 4) {
                LOAD_TILE(6, AT(2), rows[2].step);
                DOT_TILES(2, 6, 7);
                LOAD_TILE(6, AT(3), rows[3].step);
                DOT_TILES(3, 6, 7);
            }
            b += of->rest / 4 * step;
        }
#undef AT
    }
}

TARGET FE_INLINE void NAME(store_sums)(int32_t sums[NAME(SUMS)][TILE_ROWS][LANES]) {
    STORE_TILE(sums[0], TILE_NUMBERS, 0);
    STORE_TILE(sums[1], TILE_NUMBERS, 1);
    STORE_TILE(sums[2], TILE_NUMBERS, 2);
    STORE_TILE(sums[3], TILE_NUMBERS, 3);
}

/* The sums of a tile become floats, and go where its pixels are. */
TARGET FE_INLINE void NAME(make)(const tile_job *job, const int32_t sums[TILE_ROWS][LANES], int64_t first, int64_t column,
                                 VEC *low, VEC *high) {
    const int64_t rows = smaller(TILE_ROWS, job->pixels - first), lanes = smaller(LANES, job->columns - column);
    const INTS shift = LANE(load_ints)(job->shift + column);
    const VEC scale = LANE(load)(job->scale + column, LANES), bias = LANE(load)(job->bias + column, LANES);
    const int64_t *to = job->to + first;
    VEC least = *low, greatest = *high;
    for (int64_t m = 0; m < rows; m++) {
        VEC value = LANE(multiply)(LANE(floats)(LANE(minus)(LANE(load_ints)(sums[m]), shift)), scale);
        value = LANE(add)(value, bias);
        least = LANE(least)(least, value);
        greatest = LANE(greatest)(greatest, value);
        if (job->streams)
            LANE(store_past)(job->floats + to[m] + column, value);
        else if (job->floats)
            LANE(store)(job->floats + to[m] + column, value, lanes);
        else
            put_avx512vnni(job, to[m] + column, value, lanes);
    }
    *low = least;
    *high = greatest;
}

/* All numbers of some pixels, side by side; behind the last pixel, that one's again. */
TARGET FE_INLINE void NAME(lay)(uint8_t *strip, int64_t pitch, const tile_job *job, int64_t first) {
    const uint8_t *cells = job->cells;
    const int64_t bytes = job->groups * GROUP, whole = bytes / TILE_NUMBERS * TILE_NUMBERS;
    const __mmask64 rest = ((__mmask64)1 << (bytes - whole)) - 1;
    for (int64_t m = 0; m < TILE_ROWS; m++, strip += pitch) {
        const uint8_t *from = cells + job->from[smaller(first + m, job->pixels - 1)];
        uint8_t *to = strip;
        for (int64_t s = 0; s < job->count; s++, to += bytes) {
            const uint8_t *segment = from + job->segments[s];
            for (int64_t k = 0; k < whole; k += TILE_NUMBERS)
                _mm512_storeu_si512(to + k, _mm512_loadu_si512(segment + k));
            if (rest)
                _mm512_mask_storeu_epi8(to + whole, rest, _mm512_maskz_loadu_epi8(rest, segment + whole));
        }
    }
}

/* Whether these pixels lie at one distance from each other, and are not the last. */
FE_INLINE int NAME(is_even)(const tile_job *job, int64_t first) {
    if (first + TILE_ROWS > job->pixels)
        return 0;
    const int64_t *from = job->from + first, step = from[1] - from[0];
    int64_t odd = 0;
    for (int m = 1; m < TILE_ROWS; m++)
        odd |= (from[m] - from[m - 1]) ^ step;
    return odd == 0;
}

/* Fetches the lines that will be written, while sums are made. */
TARGET FE_INLINE void NAME(expect)(const tile_job *job, int64_t first, int64_t last) {
    if (!job->floats || job->streams)
        return;
    for (int64_t m = first; m < last; m++) {
        const float *to = job->floats + job->to[m];
        for (int64_t c = 0; c < job->columns; c += LANES)
            __asm__ volatile("prefetchw %0" : : "m"(to[c]));
    }
}

TARGET static void NAME(convolve)(tile_job *job) {
    const int64_t vectors = ceiling_of(job->columns, LANES), step = vectors * LANES * GROUP;
    const int64_t bytes = job->groups * GROUP, all = job->count * bytes;
    /* Short segments fill tiles better one behind the other. */
    const int joined = 3 * ceiling_of(all, TILE_NUMBERS) < 2 * job->count * ceiling_of(bytes, TILE_NUMBERS);
    const NAME(lengths) of = {joined ? 1 : job->count, (joined ? all : bytes) / TILE_NUMBERS,
                              (joined ? all : bytes) % TILE_NUMBERS};
    const int64_t pitch = strip_pitch(all);
    int64_t side_by_side[MOST_TAPS];
    for (int64_t s = 0; s < of.count; s++)
        side_by_side[s] = s * bytes;
    VEC low = LANE(set)(job->low), high = LANE(set)(job->high);
    const int down = vectors == 1 ? 4 : 2;
    NAME(configure)(of.rest);
    for (int64_t first = 0; first < job->pixels; first += down * TILE_ROWS) {
        NAME(tile_rows) rows[NAME(SUMS)];
        int32_t sums[NAME(SUMS)][TILE_ROWS][LANES] __attribute__((aligned(64)));
        for (int t = 0; t < down; t++) {
            const int64_t begin = first + t * TILE_ROWS;
            if (!joined && NAME(is_even)(job, begin)) {
                const int64_t *from = job->from + begin;
                rows[t] = (NAME(tile_rows)){(const uint8_t *)job->cells + from[0], from[1] - from[0], job->segments};
                continue;
            }
            rows[t] = (NAME(tile_rows)){job->strip + t * TILE_ROWS * pitch, pitch, side_by_side};
            if (begin < job->pixels)
                NAME(lay)(job->strip + t * TILE_ROWS * pitch, pitch, job, begin);
        }
        NAME(expect)(job, first, smaller(first + down * TILE_ROWS, job->pixels));
        for (int64_t v = 0; v < vectors; v += 2) {
            const int8_t *b = job->weights + v * LANES * GROUP;
            const int across = v + 1 < vectors ? 2 : 1;
            if (across == 2)
                NAME(sum_square)(rows, &of, b, step);
            else if (down == 4)
                NAME(sum_line)(rows, &of, b, step, 4);
            else
                NAME(sum_line)(rows, &of, b, step, 2);
            NAME(store_sums)(sums);
            for (int t = 0; t < down * across; t++)
                if (first + t / across * TILE_ROWS < job->pixels)
                    NAME(make)(job, sums[t], first + t / across * TILE_ROWS, (v + t % across) * LANES, &low, &high);
        }
    }
    NAME(release)();
    float ends[LANES];
    LANE(store)(ends, low, LANES);
    for (int i = 0; i < LANES; i++)
        job->low = ends[i] < job->low ? ends[i] : job->low;
    LANE(store)(ends, high, LANES);
    for (int i = 0; i < LANES; i++)
        job->high = ends[i] > job->high ? ends[i] : job->high;
}

/* As signed bytes, zeros behind the last; rows are whole tiles, an odd number of cache lines apart. */
TARGET static void NAME(turn)(int8_t *planes, int64_t pitch, const uint8_t *errors, int64_t count, int64_t channels,
                              int32_t *sums) {
    planes_avx512vnni(planes, pitch, errors, channels, count, channels);
    const __m512i sign = _mm512_set1_epi8((char)FE_ERROR_ZERO), ones = _mm512_set1_epi8(1);
    for (int64_t c = 0; c < channels; c++, planes += pitch) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t p = 0; p < count; p += TILE_NUMBERS) {
            const __mmask64 inside = count - p >= TILE_NUMBERS ? ~(__mmask64)0 : ((__mmask64)1 << (count - p)) - 1;
            __m512i cells = _mm512_maskz_loadu_epi8(inside, planes + p);
            cells = _mm512_maskz_mov_epi8(inside, _mm512_xor_si512(cells, sign));
            sum = _mm512_dpbusd_epi32(sum, ones, cells);
            _mm512_storeu_si512(planes + p, cells);
        }
        sums[c] += _mm512_reduce_add_epi32(sum);
    }
}

/* Sixteen channels of four pixels, with the four of a channel side by side. */
TARGET FE_INLINE void NAME(gather_four)(uint8_t *to, const uint8_t *const *from, int64_t channel, const __mmask16 some,
                                        __m512i order) {
    __m512i four = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(some, from[0] + channel));
    four = _mm512_inserti32x4(four, _mm_maskz_loadu_epi8(some, from[1] + channel), 1);
    four = _mm512_inserti32x4(four, _mm_maskz_loadu_epi8(some, from[2] + channel), 2);
    four = _mm512_inserti32x4(four, _mm_maskz_loadu_epi8(some, from[3] + channel), 3);
    _mm512_store_si512(to, _mm512_permutexvar_epi8(order, four));
}

TARGET FE_INLINE __m512i NAME(order_of_four)(void) {
    uint8_t order[TILE_NUMBERS];
    for (int i = 0; i < TILE_NUMBERS; i++)
        order[i] = (uint8_t)(i % 4 * 16 + i / 4);
    return _mm512_loadu_si512(order);
}

TARGET static void NAME(gather)(uint8_t *block, const uint8_t *cells, const int64_t *from, int64_t pixels, int64_t channels) {
    const __m512i order = NAME(order_of_four)();
    const int64_t whole = channels / LANES * LANES;
    const __mmask16 rest = (__mmask16)((1u << (channels - whole)) - 1);
    for (int64_t p = 0; p < pixels; p += GROUP) {
        const uint8_t *four[] = {cells + from[p], cells + from[p + 1], cells + from[p + 2], cells + from[p + 3]};
        for (int64_t c = 0; c < whole; c += LANES, block += TILE_NUMBERS)
            NAME(gather_four)(block, four, c, 0xffff, order);
        if (rest) {
            NAME(gather_four)(block, four, whole, rest, order);
            block += TILE_NUMBERS;
        }
    }
}

/* Two tiles of outputs by two of inputs. Where there are fewer, tiles share out the pixels, so that none waits for itself. */
TARGET FE_INLINE void NAME(add_pixels)(const int8_t *a0, const int8_t *a1, int64_t pitch, const uint8_t *block, int64_t step,
                                       int64_t pixels, const int down, const int across) {
    const int64_t tile = TILE_ROWS * step;
    if (down == 2 && across == 2) {
        for (int64_t p = 0; p < pixels; p += TILE_NUMBERS, block += tile) {
            LOAD_TILE(6, block, step);
            LOAD_TILE(4, a0 + p, pitch);
            DOT_SIGNED_TILES(0, 4, 6);
            LOAD_TILE(5, a1 + p, pitch);
            DOT_SIGNED_TILES(2, 5, 6);
            LOAD_TILE(7, block + TILE_NUMBERS, step);
            DOT_SIGNED_TILES(1, 4, 7);
            DOT_SIGNED_TILES(3, 5, 7);
        }
        return;
    }
    int64_t p = 0;
    for (; p + 2 * TILE_NUMBERS <= pixels; p += 2 * TILE_NUMBERS, block += 2 * tile) {
        LOAD_TILE(4, a0 + p, pitch);
        LOAD_TILE(6, block, step);
        DOT_SIGNED_TILES(0, 4, 6);
        LOAD_TILE(5, a0 + p + TILE_NUMBERS, pitch);
        LOAD_TILE(7, block + tile, step);
        DOT_SIGNED_TILES(2, 5, 7);
        if (down == 2) {
            LOAD_TILE(4, a1 + p, pitch);
            DOT_SIGNED_TILES(1, 4, 6);
            LOAD_TILE(5, a1 + p + TILE_NUMBERS, pitch);
            DOT_SIGNED_TILES(3, 5, 7);
        } else if (across == 2) {
            LOAD_TILE(6, block + TILE_NUMBERS, step);
            DOT_SIGNED_TILES(1, 4, 6);
            LOAD_TILE(7, block + tile + TILE_NUMBERS, step);
            DOT_SIGNED_TILES(3, 5, 7);
        }
    }
    if (p < pixels) {
        LOAD_TILE(4, a0 + p, pitch);
        LOAD_TILE(6, block, step);
        DOT_SIGNED_TILES(0, 4, 6);
        if (down == 2) {
            LOAD_TILE(5, a1 + p, pitch);
            DOT_SIGNED_TILES(1, 5, 6);
        } else if (across == 2) {
            LOAD_TILE(7, block + TILE_NUMBERS, step);
            DOT_SIGNED_TILES(1, 4, 7);
        }
    }
}

TARGET FE_INLINE void NAME(sum_pixels)(const tap_job *job, int64_t output, int64_t vector, int64_t step, const int down,
                                       const int across) {
    const int8_t *a0 = job->planes + output * job->pitch;
    const int8_t *a1 = a0 + (job->halves == 2 ? job->half : TILE_ROWS * job->pitch);
    const uint8_t *block = job->block + vector * TILE_NUMBERS;
    CLEAR_TILE(0);
    CLEAR_TILE(1);
    CLEAR_TILE(2);
    CLEAR_TILE(3);
    for (int64_t n = 0; n < job->count; n++, a0 += job->pixels, a1 += job->pixels, block += job->step)
        NAME(add_pixels)(a0, a1, job->pitch, block, step, job->pixels, down, across);
}

/* Sixteen sums, those of both halves where there are two, become floats. */
TARGET FE_INLINE void NAME(put_sums)(float *grad, INTS high, INTS low, const int halves, double scale, __mmask16 some,
                                     int streams) {
    const __m512d by = _mm512_set1_pd(scale), half = _mm512_set1_pd(FE_HALF);
    __m256 parts[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512d sum = _mm512_cvtepi32_pd(i ? _mm512_extracti64x4_epi64(high, 1) : _mm512_castsi512_si256(high));
        if (halves == 2) {
            __m512d rest = _mm512_cvtepi32_pd(i ? _mm512_extracti64x4_epi64(low, 1) : _mm512_castsi512_si256(low));
            sum = _mm512_add_pd(_mm512_mul_pd(sum, half), rest);
        }
        parts[i] = _mm512_cvtpd_ps(_mm512_mul_pd(sum, by));
    }
    VEC all = _mm512_insertf32x8(_mm512_castps256_ps512(parts[0]), parts[1], 1);
    if (streams)
        LANE(store_past)(grad, all);
    else
        _mm512_mask_storeu_ps(grad, some, all);
}

/* Tiles of sums, `across` of inputs beside each other and `down` of outputs, or of halves, below; and as many again of other
 * pixels where those do not fill all four. */
TARGET FE_INLINE void NAME(take_sums)(const tap_job *job, int32_t sums[NAME(SUMS)][TILE_ROWS][LANES], int64_t output,
                                      int64_t input, const int down, const int across) {
    const int tiles = down * across;
    for (int t = 0; tiles < NAME(SUMS) && t < tiles; t++)
        for (int m = 0; m < TILE_ROWS; m++)
            LANE(store_ints)(sums[t][m], LANE(plus)(LANE(load_ints)(sums[t][m]), LANE(load_ints)(sums[t + 2][m])));
    const int by_halves = job->halves == 2;
    for (int t = 0; t < tiles; t++) {
        const int64_t o = output + (by_halves ? 0 : t / across * TILE_ROWS), i = input + t % across * LANES;
        const int64_t rows = smaller(TILE_ROWS, job->outputs - o);
        const __mmask16 some = (__mmask16)((1u << smaller(LANES, job->inputs - i)) - 1);
        if (!job->sums)
            continue;
        int32_t *to = job->sums + ((by_halves ? t / across * job->outputs : 0) + o) * job->stride + i;
        for (int64_t m = 0; m < rows; m++, to += job->stride) {
            INTS sum = LANE(load_ints)(sums[t][m]);
            if (!job->is_first)
                sum = LANE(plus)(sum, _mm512_maskz_loadu_epi32(some, to));
            if (job->grad)
                LANE(store_ints)(sums[t][m], sum);
            else
                _mm512_mask_storeu_epi32(to, some, sum);
        }
    }
    if (!job->grad)
        return;
    for (int t = 0; t < (by_halves ? across : tiles); t++) {
        const int64_t o = output + (by_halves ? 0 : t / across * TILE_ROWS), i = input + t % across * LANES;
        const int64_t rows = smaller(TILE_ROWS, job->outputs - o);
        const __mmask16 some = (__mmask16)((1u << smaller(LANES, job->inputs - i)) - 1);
        for (int64_t m = 0; m < rows; m++) {
            float *grad = job->grad + (o + m) * job->stride + i;
            INTS high = LANE(minus)(LANE(load_ints)(sums[t][m]), LANE(all)(job->shift[o + m]));
            if (by_halves) {
                INTS low = LANE(load_ints)(sums[t + across][m]);
                low = LANE(minus)(low, LANE(all)(job->shift[job->outputs + o + m]));
                NAME(put_sums)(grad, high, low, 2, job->scale, some, job->streams);
            } else {
                NAME(put_sums)(grad, high, high, 1, job->scale, some, job->streams);
            }
        }
    }
}

TARGET static void NAME(tap)(const tap_job *job) {
    const int64_t vectors = ceiling_of(job->inputs, LANES), step = vectors * TILE_NUMBERS;
    const int64_t rows = job->halves == 2 ? TILE_ROWS : 2 * TILE_ROWS;
    NAME(configure)(0);
    for (int64_t o = 0; o < job->outputs; o += rows) {
        const int down = job->halves == 2 || o + TILE_ROWS < job->outputs ? 2 : 1;
        for (int64_t v = 0; v < vectors; v += 2) {
            int32_t sums[NAME(SUMS)][TILE_ROWS][LANES] __attribute__((aligned(64)));
            const int across = v + 1 < vectors ? 2 : 1;
#define SUM(d, a)                                                                                                              \
    if (down == (d) && across == (a)) {                                                                                        \
        NAME(sum_pixels)(job, o, v, step, d, a);                                                                               \
        NAME(store_sums)(sums);                                                                                                \
        NAME(take_sums)(job, sums, o, v * LANES, d, a);                                                                        \
    }
            SUM(2, 2)
            SUM(2, 1)
            SUM(1, 2)
            SUM(1, 1)
#undef SUM
        }
    }
    NAME(release)();
}

TARGET static void NAME(collect)(float *grad, const int32_t *sums, int64_t count, const gram_sums *of,
                                 const int64_t shift[2]) {
    for (int64_t first = 0; first < count; first += MOST_COLUMNS) {
        double whole[MOST_COLUMNS] = {0};
        const int64_t some = smaller(MOST_COLUMNS, count - first);
        for (int64_t half = 0; half < of->halves; half++) {
            for (int64_t i = 0; i < some; i++)
                whole[i] = FE_HALF * whole[i] - (double)shift[half];
            for (int64_t copy = 0; copy < of->copies; copy++) {
                const int32_t *from = sums + copy * of->copy + half * of->half + first;
                for (int64_t i = 0; i < some; i++)
                    whole[i] += from[i];
            }
        }
        for (int64_t i = 0; i < some; i++)
            grad[first + i] = (float)(whole[i] * of->scale);
    }
}

static const int8_version NAME(version) = {
    .group = GROUP,
    .lanes = LANES,
    .vectors = VECTORS,
    .cell = sizeof(CELL),
    .flip = FLIP,
    .convolve = NAME(convolve),
    .gram = gram_avx512vnni,
    .cells = cells_avx512vnni,
    .planes = planes_avx512vnni,
    .interleave = interleave_avx512vnni,
    .finish = finish_avx512vnni,
    .pack = pack_avx512vnni,
    .range = range_avx512vnni,
    .quantise = quantise_avx512vnni,
    .halves = halves_avx512vnni,
    .dequantise = dequantise_avx512vnni,
    .widen = widen_avx512vnni,
    .depth_rows = depth_rows_avx512vnni,
    .depth_gram = depth_gram_avx512vnni,
    .strip = NAME(STRIP),
    .turn = NAME(turn),
    .gather = NAME(gather),
    .tap = NAME(tap),
    .collect = NAME(collect),
};

#undef LOAD_TILE
#undef STORE_TILE
#undef CLEAR_TILE
#undef DOT_TILES
#undef DOT_SIGNED_TILES
