/* Bytes and words in the 16-byte vectors that every x86-64 has. */
#ifndef FLOWER_EDGE_INT8_X86_H
#define FLOWER_EDGE_INT8_X86_H

#include <emmintrin.h>

FE_INLINE __m128i row_of(const uint8_t *from) {
    return _mm_xor_si128(_mm_set1_epi8((char)0x80), _mm_loadu_si128((const __m128i *)from));
}

/* Sixteen columns of four rows of bytes, as signed ones. */
FE_INLINE void interleave_fours(int8_t *to, const uint8_t *from, int64_t step) {
    __m128i a = row_of(from), b = row_of(from + step), c = row_of(from + 2 * step), d = row_of(from + 3 * step);
    __m128i ab[2] = {_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)};
    __m128i cd[2] = {_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)};
    for (int i = 0; i < 2; i++) {
        _mm_storeu_si128((__m128i *)(to + 32 * i), _mm_unpacklo_epi16(ab[i], cd[i]));
        _mm_storeu_si128((__m128i *)(to + 32 * i + 16), _mm_unpackhi_epi16(ab[i], cd[i]));
    }
}

FE_INLINE void interleave_pairs(int8_t *to, const uint8_t *from, int64_t step) {
    __m128i a = row_of(from), b = row_of(from + step);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi8(a, b));
    _mm_storeu_si128((__m128i *)(to + 16), _mm_unpackhi_epi8(a, b));
}

/* Four times each row meets the one eight further on: then they are columns. */
FE_INLINE void transpose_bytes(uint8_t *to, int64_t pitch, const uint8_t *from, int64_t step) {
    __m128i rows[16], next[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        rows[i] = _mm_loadu_si128((const __m128i *)(from + i * step));
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
            next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        _mm_storeu_si128((__m128i *)(to + i * pitch), rows[i]);
}

FE_INLINE void transpose_words(uint16_t *to, int64_t pitch, const uint16_t *from, int64_t step) {
    for (int right = 0; right < 16; right += 8)
        for (int down = 0; down < 16; down += 8) {
            __m128i rows[8], next[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                rows[i] = _mm_loadu_si128((const __m128i *)(from + (down + i) * step + right));
#pragma GCC unroll 3
            for (int round = 0; round < 3; round++) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    next[2 * i] = _mm_unpacklo_epi16(rows[i], rows[i + 4]);
                    next[2 * i + 1] = _mm_unpackhi_epi16(rows[i], rows[i + 4]);
                }
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++)
                    rows[i] = next[i];
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                _mm_storeu_si128((__m128i *)(to + (right + i) * pitch + down), rows[i]);
        }
}

#endif
