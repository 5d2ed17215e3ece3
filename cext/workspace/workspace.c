#define _DEFAULT_SOURCE
#include "workspace.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

/* The memory that is lent follows its block. */
typedef struct block {
    struct block *next;
    int64_t bytes;
    int bin;
} block;

enum {
    LINE = 64,
    HEADER = LINE,
    /* Sizes between two powers of two: at most an eighth is wasted by rounding up to one. */
    STEPS = 8,
    BINS = 64 * STEPS,
    /* A block may serve what belongs so many bins below, a quarter less. */
    REACH = 2,
    /* From here on, large pages save more than they cost; numpy has the same bound. */
    HUGE_FROM = 1 << 22,
};

_Static_assert(sizeof(block) <= HEADER, "a block's header must end before its memory begins");

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
/* Of equal blocks the last one that came back is taken first: it may still be in a cache. */
static block *waiting[BINS];
static int64_t waiting_bytes, limit = INT64_MAX;

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }

/* Another thread may have been at the pool when a process forks. */
__attribute__((constructor)) static void follow_forks(void) { pthread_atfork(lock, unlock, unlock); }

/* Rounds a size up to the next step between powers of two, and numbers these steps. */
static int bin_of(int64_t *bytes) {
    int power = 63 - __builtin_clzll((uint64_t)*bytes);
    int64_t step = ((int64_t)1 << power) / STEPS;
    int64_t steps = (*bytes + step - 1) / step;
    *bytes = steps * step;
    return power * STEPS + (int)(steps - STEPS);
}

static block *pop(int bin) {
    block *found = waiting[bin];
    if (found) {
        waiting[bin] = found->next;
        waiting_bytes -= found->bytes;
    }
    return found;
}

static int64_t free_all(block *chain) {
    int64_t bytes = 0;
    while (chain) {
        block *next = chain->next;
        bytes += chain->bytes;
        free(chain);
        chain = next;
    }
    return bytes;
}

static void *new_block(int64_t bytes, int bin) {
    block *made = aligned_alloc(LINE, (size_t)(HEADER + (bytes + LINE - 1) / LINE * LINE));
    if (!made)
        return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_FROM) {
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)made + page - 1) / page * page;
        /* What the system makes of this advice changes no result. */
        (void)madvise((void *)begin, (size_t)(((uintptr_t)made + (size_t)bytes) / page * page - begin), MADV_HUGEPAGE);
    }
#endif
    *made = (block){.bytes = bytes, .bin = bin};
    return (char *)made + HEADER;
}

void *fe_workspace_take(int64_t bytes) {
    if (bytes < FE_WORKSPACE_SMALLEST)
        return new_block(bytes, -1);
    int bin = bin_of(&bytes);
    block *found = NULL;
    lock();
    for (int k = bin; !found && k <= bin + REACH && k < BINS; k++)
        found = pop(k);
    unlock();
    return found ? (char *)found + HEADER : new_block(bytes, bin);
}

/* Blocks beyond the limit, the largest first: one of another model, or of a larger batch, is more likely among them. */
static block *surplus(void) {
    block *chain = NULL;
    for (int bin = BINS - 1; bin >= 0 && waiting_bytes > limit; bin--)
        while (waiting_bytes > limit && waiting[bin]) {
            block *taken = pop(bin);
            taken->next = chain;
            chain = taken;
        }
    return chain;
}

void fe_workspace_give(void *memory) {
    block *returned = (block *)((char *)memory - HEADER);
    if (returned->bin < 0) {
        free(returned);
        return;
    }
    lock();
    returned->next = waiting[returned->bin];
    waiting[returned->bin] = returned;
    waiting_bytes += returned->bytes;
    block *chain = surplus();
    unlock();
    free_all(chain);
}

int64_t fe_workspace_release(void) {
    int64_t bytes = 0;
    for (int bin = 0; bin < BINS; bin++) {
        lock();
        block *chain = waiting[bin];
        waiting[bin] = NULL;
        for (block *each = chain; each; each = each->next)
            waiting_bytes -= each->bytes;
        unlock();
        bytes += free_all(chain);
    }
    return bytes;
}

void fe_workspace_set_limit(int64_t bytes) {
    lock();
    limit = bytes;
    block *chain = surplus();
    unlock();
    free_all(chain);
}
