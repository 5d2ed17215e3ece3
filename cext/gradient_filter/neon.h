#include "lanes/neon.h"

/* ARM cores see a run of whole lines being written and stop allocating them by themselves. */
FE_INLINE void NAME(stream)(float *to, VEC value) { vst1q_f32(to, value); }
FE_INLINE void NAME(fence)(void) {}
FE_INLINE VEC NAME(multiply)(VEC a, VEC b) { return vmulq_f32(a, b); }
FE_INLINE VEC NAME(even)(VEC a, VEC b) { return vuzp1q_f32(a, b); }
FE_INLINE VEC NAME(odd)(VEC a, VEC b) { return vuzp2q_f32(a, b); }
FE_INLINE VEC NAME(zip_low)(VEC a, VEC b) { return vzip1q_f32(a, b); }
FE_INLINE VEC NAME(zip_high)(VEC a, VEC b) { return vzip2q_f32(a, b); }

#define CELL_BY_CELL 0
#include "means.h"

#include "rows.h"

#include "planes.h"

#include "taps.h"

#include "lanes/products.h"

static const filter_version NAME(version) = {NAME(pool_row),   NAME(fill_row),   NAME(depthwise_row),
                                             NAME(pool_plane), NAME(fill_plane), NAME(depthwise_plane),
                                             NAME(pack),       NAME(multiply_packed),
                                             NAME(collapse), NAME(spread)};

#include "lanes/end.h"
