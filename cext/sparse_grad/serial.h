/* What the kernels need beside lanes/serial.h. INTS has a lane for each float. `chance` makes a float in (1, 2) of random bits; with these,
 * `append` prunes a vector and adds what is left; it may write a whole vector, and returns how many are left. `negative` has a bit for
 * each lane; `signs` is `minus` where a bit is set, `plus` elsewhere, from bit c of a row on. VECTORS are those of a cell, for
 * kernels with several taps and with one, and BYTES those of a tile's cells. */
#include "lanes/serial.h"

#define LANE(name) NAME(name)
#define INTS uint32_t
#define VECTORS 4
#define VECTORS_OF_ONE 4
#define BYTES 24576
#define BYTES_OF_ONE 24576

FE_INLINE INTS NAME(all)(int32_t value) { return (uint32_t)value; }
FE_INLINE INTS NAME(count_up)(void) { return 0; }
FE_INLINE INTS NAME(plus)(INTS a, INTS b) { return a + b; }
FE_INLINE INTS NAME(times)(INTS a, INTS b) { return a * b; }
FE_INLINE INTS NAME(exclusive)(INTS a, INTS b) { return a ^ b; }
FE_INLINE INTS NAME(shift_left)(INTS a, int bits) { return a << bits; }
#define shift_right_serial(a, bits) ((a) >> (bits))

FE_INLINE VEC NAME(magnitude)(VEC a) { return __builtin_fabsf(a); }
FE_INLINE uint32_t NAME(negative)(VEC a) { return a < 0.0f; }
FE_INLINE VEC NAME(signs)(const uint8_t *row, int64_t c, VEC plus, VEC minus) {
    return row[c / 8] >> c % 8 & 1 ? minus : plus;
}
FE_INLINE INTS NAME(chance)(INTS bits) { return (bits & CHANCE_BITS) | CHANCE_REST; }
FE_INLINE int64_t NAME(append)(uint32_t *places, float *values, VEC x, INTS chance, INTS place, VEC threshold) {
    float magnitude = __builtin_fabsf(x), bound;
    memcpy(&bound, &chance, sizeof bound);
    *places = place;
    *values = magnitude < threshold ? __builtin_copysignf(threshold, x) : x;
    return !(magnitude <= (bound - 1.0f) * threshold);
}

#include "prune.h"

#include "products.h"

#include "end.h"
