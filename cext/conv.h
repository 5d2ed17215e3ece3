/* The sizes of a convolution, as families and their callers pass them on. */
#ifndef FLOWER_EDGE_CONV_H
#define FLOWER_EDGE_CONV_H

#include <stdint.h>

/* Rows before columns. `inputs` and `outputs` are channels of the maps, in all groups. */
typedef struct {
    int64_t images, inputs, outputs, height, width;
    int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
} fe_conv;

#endif
