#include "common.h"

/* Compilers know of AMX since these. */
#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 11) || (!defined(__clang__) && __GNUC__ >= 11))
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#define LANE_OF(name, suffix) name##_##suffix

#include "lanes/serial.h"
#define LANE(name) LANE_OF(name, serial)
#include "serial.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#include "end.h"
#include "lanes/end.h"
#include "end_vectors.h"

#if defined(__x86_64__)

#include "lanes/avx2.h"
#define LANE(name) LANE_OF(name, avx2)
#include "avx2.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#include "avxvnni.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#include "end.h"
#include "lanes/end.h"
#include "end_vectors.h"

#include "lanes/avx512.h"
#define LANE(name) LANE_OF(name, avx512)
#include "avx512vnni.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#if HAS_TILES
#include "amx.h"
#endif
#include "end.h"
#include "lanes/end.h"
#include "end_vectors.h"

#elif defined(__aarch64__)

#include "lanes/neon.h"
#define LANE(name) LANE_OF(name, neon)
#include "neon.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#include "dotprod.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#include "i8mm.h"
#include "products.h"
#include "pack.h"
#include "depthwise.h"
#include "bytes.h"
#include "end.h"
#include "lanes/end.h"
#include "end_vectors.h"

#endif

static const int8_version *const kernels[FE_ISA_COUNT] = {
    [FE_SERIAL] = &version_serial,
#if defined(__x86_64__)
    [FE_AVX2] = &version_avx2,
    [FE_AVXVNNI] = &version_avxvnni,
    [FE_AVX512VNNI] = &version_avx512vnni,
#if HAS_TILES
    [FE_AMX] = &version_amx,
#endif
#elif defined(__aarch64__)
    [FE_NEON] = &version_neon,
    [FE_DOTPROD] = &version_dotprod,
    [FE_I8MM] = &version_i8mm,
#endif
};

fe_isa fe_int8_isa(fe_isa ceiling) {
    fe_version versions[FE_ISA_COUNT];
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        versions[isa] = kernels[isa] ? (fe_version)kernels[isa]->convolve : NULL;
    return fe_isa_choose(ceiling, versions);
}

const int8_version *fe_int8_version(fe_isa ceiling) { return kernels[fe_int8_isa(ceiling)]; }
