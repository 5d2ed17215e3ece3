#include "lanes/avx512.h"

TARGET FE_INLINE uint32_t NAME(activate)(VEC *value, VEC cap) {
    const VEC zero = _mm512_setzero_ps(), given = *value;
    /* Maximum and minimum return their second operand where one is a NaN. */
    *value = _mm512_min_ps(cap, _mm512_max_ps(zero, given));
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(given, zero, _CMP_NLE_UQ), given, cap, _CMP_NGE_UQ);
}
TARGET FE_INLINE VEC NAME(passed)(VEC value, uint32_t bits) { return _mm512_maskz_mov_ps((__mmask16)bits, value); }
TARGET FE_INLINE void NAME(stream)(float *to, VEC value) { _mm512_stream_ps(to, value); }
TARGET FE_INLINE void NAME(fence)(void) { _mm_sfence(); }

#include "rows.h"

#include "lanes/end.h"
