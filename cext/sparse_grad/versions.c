#include "common.h"

#include "serial.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

static const sparse_version *const kernels[FE_ISA_COUNT] = {
    [FE_SERIAL] = &version_serial,
#if defined(__x86_64__)
    [FE_AVX2] = &version_avx2,
    [FE_AVX512] = &version_avx512,
#elif defined(__aarch64__)
    [FE_NEON] = &version_neon,
#endif
};

fe_isa fe_sparse_grad_isa(fe_isa ceiling) {
    fe_version versions[FE_ISA_COUNT];
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        versions[isa] = kernels[isa] ? (fe_version)kernels[isa]->prune : NULL;
    return fe_isa_choose(ceiling, versions);
}

const sparse_version *fe_sparse_version(fe_isa ceiling) { return kernels[fe_sparse_grad_isa(ceiling)]; }
