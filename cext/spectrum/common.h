/* What all versions share: jobs, and which part of a window lies in the map. */
#ifndef FLOWER_EDGE_SPECTRUM_COMMON_H
#define FLOWER_EDGE_SPECTRUM_COMMON_H

#include "spectrum.h"

#define FE_INLINE static inline __attribute__((always_inline))

enum {
    /* Cosines and sines along an axis. */
    DOFS = 2 * FE_HIGHEST + 1,
};

/* Cells of a window, counted from its first. */
typedef struct {
    int64_t begin, end;
} span;

typedef struct {
    const fe_tiling *tiling;
    const float *map, *products;
    float *spectra, *out;
    int sums;
} tile_job;

/* One instruction set's kernels: all windows of one row of windows, and all windows of one image for some channels. */
typedef struct {
    void (*analyse_row)(const tile_job *job, int64_t image, int64_t p);
    void (*synthesise_image)(const tile_job *job, int64_t image, int64_t first, int64_t end);
} tile_version;

FE_INLINE int64_t first_cell(const fe_tiling *tiling, int axis, int64_t p) {
    return p * tiling->step[axis] - tiling->offset[axis];
}

/* The cells of a window that lie in the map. */
FE_INLINE span inside(const fe_tiling *tiling, int axis, int64_t p) {
    int64_t first = first_cell(tiling, axis, p), length = axis ? tiling->width : tiling->height;
    int64_t begin = first < 0 ? -first : 0, end = length - first;
    end = end > tiling->window[axis] ? tiling->window[axis] : end;
    return end > begin ? (span){begin, end} : (span){0, 0};
}

#endif
