/* For a mask of four lanes, the bytes that bring those that are set to the front. */
#ifndef FLOWER_EDGE_SPARSE_GRAD_QUADS_H
#define FLOWER_EDGE_SPARSE_GRAD_QUADS_H

#include <stdint.h>

#define FE_LANE(i) 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3
#define FE_NONE 128, 128, 128, 128

static const uint8_t quads[16][16] = {
    {FE_NONE, FE_NONE, FE_NONE, FE_NONE},
    {FE_LANE(0), FE_NONE, FE_NONE, FE_NONE},
    {FE_LANE(1), FE_NONE, FE_NONE, FE_NONE},
    {FE_LANE(0), FE_LANE(1), FE_NONE, FE_NONE},
    {FE_LANE(2), FE_NONE, FE_NONE, FE_NONE},
    {FE_LANE(0), FE_LANE(2), FE_NONE, FE_NONE},
    {FE_LANE(1), FE_LANE(2), FE_NONE, FE_NONE},
    {FE_LANE(0), FE_LANE(1), FE_LANE(2), FE_NONE},
    {FE_LANE(3), FE_NONE, FE_NONE, FE_NONE},
    {FE_LANE(0), FE_LANE(3), FE_NONE, FE_NONE},
    {FE_LANE(1), FE_LANE(3), FE_NONE, FE_NONE},
    {FE_LANE(0), FE_LANE(1), FE_LANE(3), FE_NONE},
    {FE_LANE(2), FE_LANE(3), FE_NONE, FE_NONE},
    {FE_LANE(0), FE_LANE(2), FE_LANE(3), FE_NONE},
    {FE_LANE(1), FE_LANE(2), FE_LANE(3), FE_NONE},
    {FE_LANE(0), FE_LANE(1), FE_LANE(2), FE_LANE(3)},
};

#undef FE_LANE
#undef FE_NONE

#endif
