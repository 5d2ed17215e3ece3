#include "lanes/avx512.h"
#include "lanes/avx512_bytes.h"

TARGET FE_INLINE VEC NAME(where_above)(VEC a, VEC b, VEC value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), value);
}

#include "rows.h"

#include "lanes/end.h"
