#include "lanes/avx2.h"
#include "lanes/avx2_bytes.h"

TARGET FE_INLINE VEC NAME(where_above)(VEC a, VEC b, VEC value) {
    return _mm256_and_ps(value, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

#include "rows.h"

#include "lanes/end.h"
