#include "lanes/avx512.h"
#include "lanes/avx512_bytes.h"

TARGET FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    __mmask16 above = _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, a, _mm512_set1_ps(1.0f), _CMP_LT_OQ), value);
}
TARGET FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), value);
}

/* Vectors of bytes are more than these CPUs are sure to have; and bounds are few. */
#define BOUND bound_avx2
#define BYTE_VERSION &bytes_avx2
#include "rows.h"

#include "lanes/end.h"
