/* What every family's test runner shares: a repeatable random number, and the instruction sets to go through. */
#ifndef FLOWER_EDGE_CHECK_H
#define FLOWER_EDGE_CHECK_H

#include "cpu.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Uniform in [-1, 1), by an xorshift generator. */
static inline float check_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (float)(int32_t)(*state >> 32) / 2147483648.0f;
}

/* The ceiling in force; says so, or ends the program if FLOWER_EDGE_ISA is not to be satisfied. */
static inline fe_isa check_ceiling(void) {
    char text[384];
    fe_isa ceiling;
    if (fe_isa_ceiling(&ceiling, text, sizeof text) < 0) {
        fprintf(stderr, "%s\n", text);
        exit(2);
    }
    fe_cpu_features(text, sizeof text);
    printf("cpu: %s\nceiling: %s\n", text, fe_isa_name(ceiling));
    return ceiling;
}

#endif
