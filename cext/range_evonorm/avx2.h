#include "lanes/avx2.h"
#include "lanes/avx2_bytes.h"

TARGET FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    VEC above = _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_and_ps(value, _mm256_and_ps(above, _mm256_cmp_ps(a, _mm256_set1_ps(1.0f), _CMP_LT_OQ)));
}
TARGET FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) {
    return _mm256_blendv_ps(other, value, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}

#include "rows.h"

#include "lanes/end.h"
