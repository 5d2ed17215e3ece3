/* Which instruction sets this CPU has, and which one a kernel family runs. */
#ifndef FLOWER_EDGE_CPU_H
#define FLOWER_EDGE_CPU_H

#include <stddef.h>

/* Ordered: on one architecture, a later one contains every earlier one that this CPU has. This order is what lets an
 * override be a ceiling: a family without a version for the ceiling itself runs its next lower one. */
typedef enum {
    FE_SERIAL,
    FE_NEON,
    FE_DOTPROD,
    FE_I8MM,
    FE_AVX2,
    FE_AVXVNNI,
    FE_AVX512,
    FE_AVX512VNNI,
    FE_AMX,
    FE_ISA_COUNT
} fe_isa;

/* A float at any byte address: flat parameter blobs are cut out of messages wherever they happen to begin. */
typedef float fe_float __attribute__((aligned(1)));

/* Index into a family's table of versions; a NULL entry is a version that was not written or not compiled. */
typedef void (*fe_version)(void);

const char *fe_isa_name(fe_isa isa);
int fe_isa_available(fe_isa isa);

/* The best instruction set at or below the ceiling that this CPU has and the family was written for. */
fe_isa fe_isa_choose(fe_isa ceiling, const fe_version versions[FE_ISA_COUNT]);

/* Finds an instruction set by name. Returns 0, or -1 with a sentence in `message` if the name is unknown or the CPU
 * lacks it. */
int fe_isa_parse(const char *name, fe_isa *isa, char *message, size_t size);

/* The ceiling in force: FLOWER_EDGE_ISA where it is set and not empty, else the best of this CPU. Returns as above. */
int fe_isa_ceiling(fe_isa *isa, char *message, size_t size);

/* Writes names of the features that kernels care about, with blanks between, for people to read. */
void fe_cpu_features(char *text, size_t size);

#endif
