/* Memory for large results, kept from one training step to the next.
 *
 * The C library hands blocks of tens of megabytes back to the system as soon as they are freed, so that each step would
 * touch fresh pages: for a map of 300 MB that takes longer than filling it. Here, a block that comes back waits for the next
 * result of about its size. All functions may be called by any thread, in the middle of anything. */
#ifndef FLOWER_EDGE_WORKSPACE_H
#define FLOWER_EDGE_WORKSPACE_H

#include <stdint.h>

/* Bytes from which on memory is kept: the C library may hand blocks back from half as many on. */
enum { FE_WORKSPACE_SMALLEST = 1 << 18 };

/* Memory of at least so many bytes that begins on a cache line; NULL where there is none. */
void *fe_workspace_take(int64_t bytes);

/* Takes back what fe_workspace_take gave. */
void fe_workspace_give(void *memory);

/* Frees all that waits, and says how many bytes that were. */
int64_t fe_workspace_release(void);

/* Sets how many bytes may wait. */
void fe_workspace_set_limit(int64_t bytes);

#endif
