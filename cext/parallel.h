/* A parallel for loop in torch's own thread pool, or in the calling thread where there is none. */
#ifndef FLOWER_EDGE_PARALLEL_H
#define FLOWER_EDGE_PARALLEL_H

#include <stdint.h>

typedef void (*fe_task)(int64_t begin, int64_t end, void *context);

/* The signature of libtorch's C function torch_parallel_for (torch >= 2.10); non-zero means failure. We never link to
 * libtorch: whoever has it loaded hands its address over. A second thread runtime of our own would fight with it. */
typedef int32_t (*fe_parallel_for_fn)(int64_t begin, int64_t end, int64_t grain, fe_task task, void *context);

/* NULL goes back to the calling thread alone. */
void fe_set_parallel_for(fe_parallel_for_fn function);

/* Runs `task` over disjoint ranges that cover [0, count), none shorter than about `grain`; 0, or the pool's error. */
int fe_parallel_for(int64_t count, int64_t grain, fe_task task, void *context);

#endif
