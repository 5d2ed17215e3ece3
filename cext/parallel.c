#include "parallel.h"

#include <stdatomic.h>
#include <stddef.h>

static _Atomic(fe_parallel_for_fn) pool = NULL;

void fe_set_parallel_for(fe_parallel_for_fn function) { atomic_store(&pool, function); }

int fe_parallel_for(int64_t count, int64_t grain, fe_task task, void *context) {
    fe_parallel_for_fn run = atomic_load(&pool);
    if (run && count > grain)
        return run(0, count, grain, task, context);
    if (count > 0)
        task(0, count, context);
    return 0;
}
