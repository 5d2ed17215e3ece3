#include "lanes/avx2.h"
#include "lanes/avx2_bytes.h"

TARGET FE_INLINE VEC NAME(within)(VEC a, VEC value) {
    VEC above = _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_and_ps(value, _mm256_and_ps(above, _mm256_cmp_ps(a, _mm256_set1_ps(1.0f), _CMP_LT_OQ)));
}
TARGET FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) {
    return _mm256_blendv_ps(other, value, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}

#define BYTES __m256i
#define WIDE 32
TARGET FE_INLINE BYTES NAME(splat)(uint8_t value) { return _mm256_set1_epi8((char)value); }
TARGET FE_INLINE BYTES NAME(load_wide)(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
TARGET FE_INLINE void NAME(store_wide)(uint8_t *to, BYTES value) { _mm256_storeu_si256((__m256i *)to, value); }
TARGET FE_INLINE BYTES NAME(greatest)(BYTES a, BYTES b) { return _mm256_max_epu8(a, b); }
TARGET FE_INLINE BYTES NAME(smallest)(BYTES a, BYTES b) { return _mm256_min_epu8(a, b); }
TARGET FE_INLINE BYTES NAME(without)(BYTES a, BYTES b) { return _mm256_sub_epi8(a, b); }
TARGET FE_INLINE BYTES NAME(differing)(BYTES a, BYTES b) { return _mm256_xor_si256(a, b); }
TARGET FE_INLINE BYTES NAME(where_same)(BYTES a, BYTES b, BYTES value) {
    return _mm256_and_si256(_mm256_cmpeq_epi8(a, b), value);
}
/* The greatest of lanes that lie a multiple of `channels` apart, in the first of them. */
TARGET FE_INLINE BYTES NAME(fold)(BYTES value, int64_t channels) {
    value = channels <= 16 ? _mm256_max_epu8(value, _mm256_permute2x128_si256(value, value, 1)) : value;
    value = channels <= 8 ? _mm256_max_epu8(value, _mm256_srli_si256(value, 8)) : value;
    value = channels <= 4 ? _mm256_max_epu8(value, _mm256_srli_si256(value, 4)) : value;
    value = channels <= 2 ? _mm256_max_epu8(value, _mm256_srli_si256(value, 2)) : value;
    return channels <= 1 ? _mm256_max_epu8(value, _mm256_srli_si256(value, 1)) : value;
}

#include "bytes.h"

#define BOUND bound_avx2
#define BYTE_VERSION &bytes_avx2
#include "rows.h"

#include "lanes/end.h"
