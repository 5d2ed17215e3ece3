#include "lanes/serial.h"

/* Cuts a vector to [0, cap], NaN for no cap; returns a bit for each lane: whether its gradient passes. A NaN stays one and
 * lets it pass. */
FE_INLINE uint32_t NAME(activate)(VEC *value, VEC cap) {
    uint32_t low = *value <= 0.0f, high = *value >= cap;
    *value = low ? 0.0f : high ? cap : *value;
    return (low | high) ^ 1;
}
/* The lanes whose bits are set; 0 in the others. */
FE_INLINE VEC NAME(passed)(VEC value, uint32_t bits) { return bits & 1 ? value : 0.0f; }
/* A store past the caches, to an address that is a multiple of the vector's size. */
FE_INLINE void NAME(stream)(float *to, VEC value) { *to = value; }
FE_INLINE void NAME(fence)(void) {}

#include "rows.h"

#include "lanes/end.h"
