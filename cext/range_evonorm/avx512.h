#include "lanes/avx512.h"
#include "lanes/avx512_bytes.h"

TARGET FE_INLINE VEC NAME(where_equal)(VEC a, VEC b, VEC value, VEC other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), value);
}

/* As in rows.h, with the same bits: what the gate would multiply by 1, or add 0 to, is left as it is. */
#define HAS_GATE
typedef struct {
    VEC u;
    __mmask16 above, below;
} NAME(gate);

TARGET FE_INLINE NAME(gate) NAME(gate_of)(VEC u) {
    return (NAME(gate)){u, _mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_GT_OQ),
                        _mm512_cmp_ps_mask(u, _mm512_set1_ps(1.0f), _CMP_NGE_UQ)};
}
TARGET FE_INLINE VEC NAME(through)(const NAME(gate) *gate, VEC x) {
    return _mm512_mask_mov_ps(x, gate->below, _mm512_maskz_mul_ps(gate->above, x, gate->u));
}
TARGET FE_INLINE VEC NAME(add_within)(const NAME(gate) *gate, VEC a, VEC b, VEC sum) {
    return _mm512_mask3_fmadd_ps(_mm512_maskz_mov_ps(gate->above, a), b, sum, gate->below);
}
TARGET FE_INLINE VEC NAME(sloped)(const NAME(gate) *gate, VEC d, VEC inner) {
    return _mm512_mask_mul_ps(d, gate->below, d, _mm512_maskz_add_ps(gate->above, gate->u, inner));
}

/* Vectors of bytes are more than these CPUs are sure to have; and bounds are few. */
#define BOUND bound_avx2
#define BYTE_VERSION &bytes_avx2
#include "rows.h"

#include "lanes/end.h"
