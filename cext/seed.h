/* How random numbers begin. */
#ifndef FLOWER_EDGE_SEED_H
#define FLOWER_EDGE_SEED_H

#include <stdint.h>

/* The two keys of lanes/random.h, mixed, so that seeds that follow each other have little in common. */
static inline uint64_t fe_mixed(uint64_t seed) {
    seed += 0x9e3779b97f4a7c15u;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
    seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebu;
    return seed ^ (seed >> 31);
}

#endif
