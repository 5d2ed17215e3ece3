/* Products of matrices by AMX, which multiplies tiles of bfloat16s and sums them in float32. Each float is taken for the sum of two
 * bfloat16s, of which all four products are formed: four tile products in place of one, and still 2.5 times as fast as AVX-512.
 * What is lost of a term is at most 2^-16 of it, of sums of many random terms a few millionths; numbers below the smallest normal
 * one count as 0. Included after products.h for AVX-512, whose products of few terms stay: packs and multiplies as it does, but in
 * blocks of AMX_INNER x AMX_PANEL. */
#include <immintrin.h>

#define AMX_TARGET __attribute__((target("avx512f,avx512bw,avx512bf16,amx-tile,amx-bf16")))

enum {
    /* Rows of a tile, and its columns of floats; pairs of bfloat16s take the place of a float. */
    AMX_SIDE = 16,
    AMX_TILE = AMX_SIDE * AMX_SIDE,
    /* Two tiles of rows of the left factor and of columns of the right one are multiplied together: four of sums. */
    AMX_PANEL = 2 * AMX_SIDE,
    /* Inner steps of a tile. */
    AMX_INNER = 32,
    /* Floats of a block: high parts of two tiles, then low parts of both. */
    AMX_BLOCK = 4 * AMX_TILE,
    /* Inner steps of the left factor that are packed at a time: they stay in the first cache beside a panel. */
    AMX_DEPTH = 128,
    /* Fewer terms are not worth the conversion. */
    AMX_LEAST = 64,
    /* Lines fetched beside a block's 16 tile products. */
    AMX_LINES = 12,
};

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} amx_config;

AMX_TARGET FE_INLINE __m512 amx_load(const float *from, int64_t n) {
    if (n >= AMX_SIDE)
        return _mm512_loadu_ps(from);
    return n > 0 ? _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from) : _mm512_setzero_ps();
}

/* Nearest bfloat16s, as the upper halves of floats. */
AMX_TARGET FE_INLINE __m512i amx_round(__m512 value) {
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value)), 16);
}

/* Two rows as high and low parts, in pairs. */
AMX_TARGET FE_INLINE void amx_split(__m512 even, __m512 odd, __m512i *high, __m512i *low) {
    const __m512i of_even = amx_round(even), of_odd = amx_round(odd);
    const __m512i rest_even = amx_round(_mm512_sub_ps(even, _mm512_castsi512_ps(of_even)));
    const __m512i rest_odd = amx_round(_mm512_sub_ps(odd, _mm512_castsi512_ps(of_odd)));
    *high = _mm512_or_si512(_mm512_srli_epi32(of_even, 16), of_odd);
    *low = _mm512_or_si512(_mm512_srli_epi32(rest_even, 16), rest_odd);
}

/* 16 x 16 pairs. */
AMX_TARGET FE_INLINE void amx_transpose(__m512i *rows) {
    __m512i other[AMX_SIDE];
    for (int i = 0; i < 8; i++) {
        other[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        other[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        for (int half = 0; half < 16; half += 8) {
            other[half + i] = _mm512_shuffle_i32x4(rows[half + i], rows[half + i + 4], 0x88);
            other[half + i + 4] = _mm512_shuffle_i32x4(rows[half + i], rows[half + i + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        rows[i] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0xdd);
    }
}

/* 16 rows of one block of the left factor, whose inner dimension is innermost. */
AMX_TARGET FE_INLINE void amx_left_rows(float *to, const float *a, int64_t row, int64_t rows, int64_t inner) {
    for (int64_t i = 0; i < AMX_SIDE; i++) {
        const __m512 first = amx_load(a + i * row, i < rows ? inner : 0);
        const __m512 second = amx_load(a + i * row + AMX_SIDE, i < rows ? inner - AMX_SIDE : 0);
        const __m512i high = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        const __m512i of_first = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)), 16);
        const __m512i of_second = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)), 16);
        _mm512_storeu_si512(to + i * AMX_SIDE, high);
        _mm512_storeu_si512(to + 2 * AMX_TILE + i * AMX_SIDE,
                            (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(second, _mm512_castsi512_ps(of_second)),
                                                         _mm512_sub_ps(first, _mm512_castsi512_ps(of_first))));
    }
}

/* The same where its rows are innermost. */
AMX_TARGET FE_INLINE void amx_left_columns(float *to, const float *a, int64_t step, int64_t rows, int64_t inner) {
    __m512i high[AMX_SIDE], low[AMX_SIDE];
    for (int64_t pair = 0; pair < AMX_SIDE; pair++) {
        const float *from = a + 2 * pair * step;
        const __m512 even = amx_load(from, 2 * pair < inner ? rows : 0);
        const __m512 odd = amx_load(from + step, 2 * pair + 1 < inner ? rows : 0);
        amx_split(even, odd, high + pair, low + pair);
    }
    amx_transpose(high);
    amx_transpose(low);
    for (int64_t i = 0; i < AMX_SIDE; i++) {
        _mm512_storeu_si512(to + i * AMX_SIDE, high[i]);
        _mm512_storeu_si512(to + 2 * AMX_TILE + i * AMX_SIDE, low[i]);
    }
}

/* A panel of rows of the left factor. */
AMX_TARGET static void amx_pack_left(float *to, const float *a, int64_t row, int64_t step, int64_t rows, int64_t inner) {
    for (int64_t k = 0; k < inner; k += AMX_INNER, to += AMX_BLOCK)
        for (int64_t i = 0; i < AMX_PANEL; i += AMX_SIDE)
            if (step == 1)
                amx_left_rows(to + i * AMX_SIDE, a + i * row + k, row, rows - i, inner - k);
            else
                amx_left_columns(to + i * AMX_SIDE, a + i + k * step, step, rows - i, inner - k);
}

/* Rows [first, last) of a matrix without gaps; `first` is a multiple of AMX_INNER, and so is `last`, or it is `inner`. A panel's
 * blocks follow each other; what they have beyond the matrix is 0. */
AMX_TARGET static void amx_pack(float *packed, const float *b, int64_t inner, int64_t columns, int64_t first, int64_t last) {
    if (inner < AMX_LEAST) {
        pack_avx512(packed, b, inner, columns, first, last);
        return;
    }
    const int64_t blocks = (inner + AMX_INNER - 1) / AMX_INNER;
    for (int64_t j = 0; j < columns; j += AMX_SIDE)
        for (int64_t k = first; k < (last + AMX_INNER - 1) / AMX_INNER * AMX_INNER; k += 2) {
            const int64_t panel = j / AMX_PANEL, tile = j % AMX_PANEL / AMX_SIDE;
            float *to = packed + (panel * blocks + k / AMX_INNER) * AMX_BLOCK + tile * AMX_TILE + k % AMX_INNER / 2 * AMX_SIDE;
            const __m512 even = amx_load(b + k * columns + j, k < last ? columns - j : 0);
            const __m512 odd = amx_load(b + (k + 1) * columns + j, k + 1 < last ? columns - j : 0);
            __m512i high, low;
            amx_split(even, odd, &high, &low);
            _mm512_storeu_si512(to, high);
            _mm512_storeu_si512(to + 2 * AMX_TILE, low);
        }
}

/* Four tiles of sums, of a panel of rows and one of columns. */
AMX_TARGET FE_INLINE void amx_tiles(float *c, int64_t c_row, const float *left, const float *right, int64_t blocks, int add,
                                    fetch *next) {
    const int64_t stride = c_row * (int64_t)sizeof(float);
    float *below = c + AMX_SIDE * c_row;
    if (add) {
        _tile_loadd(0, c, stride);
        _tile_loadd(1, c + AMX_SIDE, stride);
        _tile_loadd(2, below, stride);
        _tile_loadd(3, below + AMX_SIDE, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < blocks; i++, left += AMX_BLOCK, right += AMX_BLOCK) {
        for (int line = 0; line < AMX_LINES && next->at < next->end; line++, next->at += 64)
            __builtin_prefetch((const void *)next->at, 0, 2);
        /* High parts of both; low ones of the left; low ones of both; low ones of the right. */
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + AMX_TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + AMX_TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, left + 2 * AMX_TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + 3 * AMX_TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, right + 2 * AMX_TILE, 64);
        _tile_loadd(7, right + 3 * AMX_TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, left, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + AMX_TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, stride);
    _tile_stored(1, c + AMX_SIDE, stride);
    _tile_stored(2, below, stride);
    _tile_stored(3, below + AMX_SIDE, stride);
}

/* A panel of rows and one of columns, of which `rows` and `columns` are in the matrix. */
AMX_TARGET FE_INLINE void amx_panels(float *c, int64_t c_row, const float *left, const float *right, int64_t blocks,
                                     int64_t rows, int64_t columns, int add, fetch *next) {
    if (rows >= AMX_PANEL && columns >= AMX_PANEL) {
        amx_tiles(c, c_row, left, right, blocks, add, next);
        return;
    }
    const int64_t high = rows < AMX_PANEL ? rows : AMX_PANEL, wide = columns < AMX_PANEL ? columns : AMX_PANEL;
    float whole[AMX_PANEL * AMX_PANEL] = {0};
    for (int64_t i = 0; add && i < high; i++)
        memcpy(whole + i * AMX_PANEL, c + i * c_row, (size_t)wide * sizeof *c);
    amx_tiles(whole, AMX_PANEL, left, right, blocks, add, next);
    for (int64_t i = 0; i < high; i++)
        memcpy(c + i * c_row, whole + i * AMX_PANEL, (size_t)wide * sizeof *c);
}

/* c, without gaps between rows: see multiply_packed. */
AMX_TARGET static void amx_multiply(float *c, const float *a, int64_t a_row, int64_t a_inner, const float *packed, int64_t rows,
                                    int64_t inner, int64_t columns, int add, fetch *next) {
    if (inner < AMX_LEAST) {
        multiply_packed_avx512(c, a, a_row, a_inner, packed, rows, inner, columns, add, next);
        return;
    }
    _Alignas(64) float left[AMX_PANEL * AMX_DEPTH];
    const int64_t blocks = (inner + AMX_INNER - 1) / AMX_INNER;
    amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = AMX_SIDE;
        config.row_bytes[i] = 64;
    }
    _tile_loadconfig(&config);
    for (int64_t k = 0; k < inner; k += AMX_DEPTH) {
        const int64_t depth = inner - k < AMX_DEPTH ? inner - k : AMX_DEPTH;
        for (int64_t i = 0; i < rows; i += AMX_PANEL) {
            amx_pack_left(left, a + i * a_row + k * a_inner, a_row, a_inner, rows - i, depth);
            for (int64_t j = 0; j < columns; j += AMX_PANEL)
                amx_panels(c + i * columns + j, columns, left, packed + (j / AMX_PANEL * blocks + k / AMX_INNER) * AMX_BLOCK,
                           (depth + AMX_INNER - 1) / AMX_INNER, rows - i, columns - j, add || k, next);
        }
    }
    _tile_release();
}
