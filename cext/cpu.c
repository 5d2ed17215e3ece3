/* For syscall. */
#define _DEFAULT_SOURCE
#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define FE_HWCAP_ASIMD (1ul << 1)
#define FE_HWCAP_ASIMDHP (1ul << 10)
#define FE_HWCAP_ASIMDDP (1ul << 20)
#define FE_HWCAP2_I8MM (1ul << 13)
#define FE_AT_HWCAP2 26
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const names[FE_ISA_COUNT] = {
    [FE_SERIAL] = "serial", [FE_NEON] = "neon",       [FE_DOTPROD] = "dotprod", [FE_I8MM] = "i8mm",
    [FE_AVX2] = "avx2",     [FE_AVXVNNI] = "avxvnni", [FE_AVX512] = "avx512",   [FE_AVX512VNNI] = "avx512vnni",
    [FE_AMX] = "amx",
};

const char *fe_isa_name(fe_isa isa) { return names[isa]; }

#if defined(__x86_64__) && defined(__linux__)

/* AMX has tiles and bytes, the system saves their registers, and it lets this process use them, which it does only on
 * request. */
static int ask_for_tiles(void) {
    enum { OSXSAVE = 1 << 27, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, TILE_STATE = 3 << 17, REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE))
        return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_TILE) || !(d & AMX_INT8))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a & TILE_STATE) == TILE_STATE && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

static int has_tiles(void) {
    enum { UNKNOWN, NO, YES };
    /* CPUID is slow where a hypervisor answers it. */
    static atomic_int known = UNKNOWN;
    int answer = atomic_load(&known);
    if (answer == UNKNOWN) {
        answer = ask_for_tiles() ? YES : NO;
        atomic_store(&known, answer);
    }
    return answer == YES;
}

#elif defined(__x86_64__)

static int has_tiles(void) { return 0; }

#endif

/* Both compilers' builtins read a table that libgcc fills once at load time, and getauxval reads one that the kernel
 * filled, so there is nothing to cache. */
int fe_isa_available(fe_isa isa) {
    switch (isa) {
    case FE_SERIAL:
        return 1;
#if defined(__x86_64__)
    case FE_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case FE_AVX512:
        return fe_isa_available(FE_AVX2) && __builtin_cpu_supports("avx512f");
    case FE_AVX512VNNI:
        return fe_isa_available(FE_AVX512) && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    case FE_AMX:
        return fe_isa_available(FE_AVX512VNNI) && __builtin_cpu_supports("avx512vbmi") && has_tiles();
    case FE_AVXVNNI:
        return fe_isa_available(FE_AVX2) && __builtin_cpu_supports("avxvnni");
#elif defined(__aarch64__) && defined(__linux__)
    case FE_NEON:
        return (getauxval(AT_HWCAP) & FE_HWCAP_ASIMD) != 0;
    case FE_DOTPROD:
        return fe_isa_available(FE_NEON) && (getauxval(AT_HWCAP) & FE_HWCAP_ASIMDDP) != 0;
    case FE_I8MM:
        return fe_isa_available(FE_DOTPROD) && (getauxval(FE_AT_HWCAP2) & FE_HWCAP2_I8MM) != 0;
#endif
    default:
        return 0;
    }
}

fe_isa fe_isa_choose(fe_isa ceiling, const fe_version versions[FE_ISA_COUNT]) {
    for (int isa = (int)ceiling; isa > FE_SERIAL; isa--)
        if (versions[isa] && fe_isa_available((fe_isa)isa))
            return (fe_isa)isa;
    return FE_SERIAL;
}

static void list_available(char *text, size_t size) {
    text[0] = '\0';
    for (int isa = 0; isa < FE_ISA_COUNT; isa++)
        if (fe_isa_available((fe_isa)isa)) {
            size_t used = strlen(text);
            snprintf(text + used, size - used, "%s%s", used ? ", " : "", names[isa]);
        }
}

int fe_isa_parse(const char *name, fe_isa *isa, char *message, size_t size) {
    char available[128];
    list_available(available, sizeof available);
    for (int known = 0; known < FE_ISA_COUNT; known++) {
        if (strcmp(name, names[known]) != 0)
            continue;
        if (fe_isa_available((fe_isa)known)) {
            *isa = (fe_isa)known;
            return 0;
        }
        snprintf(message, size, "instruction set '%s' is not available here: this CPU offers %s", name, available);
        return -1;
    }
    snprintf(message, size, "unknown instruction set '%.64s': this CPU offers %s", name, available);
    return -1;
}

int fe_isa_ceiling(fe_isa *isa, char *message, size_t size) {
    const char *name = getenv("FLOWER_EDGE_ISA");
    if (name && *name) {
        char reason[256];
        if (fe_isa_parse(name, isa, reason, sizeof reason) == 0)
            return 0;
        snprintf(message, size, "FLOWER_EDGE_ISA: %s; set it to one of these or unset it", reason);
        return -1;
    }
    *isa = FE_SERIAL;
    for (int known = 0; known < FE_ISA_COUNT; known++)
        if (fe_isa_available((fe_isa)known))
            *isa = (fe_isa)known;
    return 0;
}

static void append(char *text, size_t size, int has, const char *name) {
    size_t used = strlen(text);
    if (has)
        snprintf(text + used, size - used, "%s%s", used ? " " : "", name);
}

void fe_cpu_features(char *text, size_t size) {
    text[0] = '\0';
#if defined(__x86_64__)
    append(text, size, 1, "x86-64");
    append(text, size, __builtin_cpu_supports("avx2"), "avx2");
    append(text, size, __builtin_cpu_supports("fma"), "fma");
    append(text, size, __builtin_cpu_supports("avxvnni"), "avxvnni");
    append(text, size, __builtin_cpu_supports("avx512f"), "avx512f");
    append(text, size, __builtin_cpu_supports("avx512bw"), "avx512bw");
    append(text, size, __builtin_cpu_supports("avx512vnni"), "avx512vnni");
    append(text, size, has_tiles(), "amx");
#elif defined(__aarch64__) && defined(__linux__)
    unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(FE_AT_HWCAP2);
    append(text, size, 1, "aarch64");
    append(text, size, (hwcap & FE_HWCAP_ASIMD) != 0, "asimd");
    append(text, size, (hwcap & FE_HWCAP_ASIMDHP) != 0, "asimdhp");
    append(text, size, (hwcap & FE_HWCAP_ASIMDDP) != 0, "asimddp");
    append(text, size, (hwcap2 & FE_HWCAP2_I8MM) != 0, "i8mm");
#else
    append(text, size, 1, "unknown architecture");
#endif
}
