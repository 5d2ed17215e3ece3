/* Integers for lanes/serial.h: see avx2.h. */
#include <math.h>

#define INTS int32_t
#define CELL uint8_t
#define GROUP 4
#define FLIP 0
#define VECTORS 4
#define ROWS_OF(vectors) 4
#define CHUNK_OF(vectors) 1

FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return a * b; }
FE_INLINE VEC NAME(least)(VEC a, VEC b) { return a < b ? a : b; }
FE_INLINE VEC NAME(greatest)(VEC a, VEC b) { return a > b ? a : b; }
FE_INLINE INTS NAME(nearest)(VEC a) { return (INTS)rintf(a); }
FE_INLINE INTS NAME(below)(VEC a) { return (INTS)floorf(a); }
FE_INLINE VEC NAME(floats)(INTS a) { return (VEC)a; }
FE_INLINE void NAME(store_past)(float *to, VEC value) { *to = value; }
FE_INLINE INTS NAME(all)(int32_t value) { return value; }
FE_INLINE INTS NAME(count_up)(void) { return 0; }
FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return (INTS)((uint32_t)a + (uint32_t)b); }
FE_INLINE INTS NAME(minus)(INTS a, INTS b) { return (INTS)((uint32_t)a - (uint32_t)b); }
FE_INLINE INTS NAME(times)(INTS a, INTS b) { return (INTS)((uint32_t)a * (uint32_t)b); }
FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return a ^ b; }
FE_INLINE INTS NAME(both)(INTS a, INTS b) { return a & b; }
#define shift_right_serial(a, bits) ((INTS)((uint32_t)(a) >> (bits)))
FE_INLINE INTS NAME(load_ints)(const int32_t *from) { return *from; }
FE_INLINE void NAME(store_ints)(int32_t *to, INTS value) { *to = value; }
FE_INLINE INTS NAME(load_bytes)(const uint8_t *from) { return *from; }
FE_INLINE void NAME(store_bytes)(uint8_t *to, INTS value) { *to = (uint8_t)value; }

FE_INLINE int32_t NAME(broadcast)(const CELL *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}
FE_INLINE int32_t NAME(operand)(const int8_t *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}
FE_INLINE INTS NAME(dot)(INTS sum, int32_t a, int32_t b) {
    for (int i = 0; i < GROUP; i++)
        sum += (int32_t)(uint8_t)((uint32_t)a >> 8 * i) * (int8_t)(uint8_t)((uint32_t)b >> 8 * i);
    return sum;
}
FE_INLINE void NAME(interleave_16)(int8_t *to, const uint8_t *from, int64_t step) {
    for (int column = 0; column < 16; column++)
        for (int row = 0; row < GROUP; row++)
            to[column * GROUP + row] = (int8_t)(from[row * step + column] ^ 0x80);
}
FE_INLINE void NAME(transpose_16)(CELL *to, int64_t pitch, const CELL *from, int64_t step) {
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++)
            to[column * pitch + row] = from[row * step + column];
}
