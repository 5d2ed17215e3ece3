/* Memory that is read soon: its lines are fetched beside a product, which reads little memory. */
#ifndef FLOWER_EDGE_FETCH_H
#define FLOWER_EDGE_FETCH_H

#include <stdint.h>

typedef struct {
    uintptr_t at, end;
} fetch;

#endif
