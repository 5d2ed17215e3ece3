/* What the test runners of convolutions share. */
#ifndef FLOWER_EDGE_CHECK_CONV_H
#define FLOWER_EDGE_CHECK_CONV_H

#include "conv.h"
#include "parallel.h"

#include <stdint.h>
#include <stdio.h>

static int failures;

static void fail(const char *what, fe_isa isa, const fe_conv *s) {
    printf("FAIL %s: %s", what, fe_isa_name(isa));
    if (s)
        printf(", %ldx%ld->%ldx%ldx%ld, kernel %ldx%ld, stride %ld, groups %ld", (long)s->images, (long)s->inputs,
               (long)s->outputs, (long)s->height, (long)s->width, (long)s->kernel[0], (long)s->kernel[1],
               (long)s->stride[0], (long)s->groups);
    printf("\n");
    failures++;
}

/* A stand-in for torch's pool: the pieces in another order and of other sizes. */
static int32_t backwards(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context) {
    (void)grain;
    for (int64_t last = end; last > begin; last -= 3)
        task(last - 3 > begin ? last - 3 : begin, last, context);
    return 0;
}

static int64_t side(const fe_conv *s, int axis) {
    int64_t length = axis ? s->width : s->height;
    return (length + 2 * s->padding[axis] - s->dilation[axis] * (s->kernel[axis] - 1) - 1) / s->stride[axis] + 1;
}

#endif
