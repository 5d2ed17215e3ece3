/* AMX for products; all else is AVX-512's. */
#include "lanes/amx.h"

static const filter_version version_amx = {pool_row_avx512,   fill_row_avx512,   depthwise_row_avx512,
                                           pool_plane_avx512, fill_plane_avx512, depthwise_plane_avx512,
                                           amx_pack,          amx_multiply};
