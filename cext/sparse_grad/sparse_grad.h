/* Gradients of convolutions of which most is zero: pruned at random, kept as lists of what is left, and multiplied without the
 * zeros. Maps have channels last, weights inputs innermost: (output, row, column, input of its group).
 *
 * Functions return 0, -1 for lack of memory, or the thread pool's error, and give the same bits for every number of threads. */
#ifndef FLOWER_EDGE_SPARSE_GRAD_H
#define FLOWER_EDGE_SPARSE_GRAD_H

#include "conv.h"
#include "cpu.h"

#include <stdint.h>

enum {
    /* A place is a pixel of its chunk and, in as many low bits, a channel. */
    FE_CHANNEL_BITS = 16,
    FE_MOST_CHANNELS = 1 << FE_CHANNEL_BITS,
    /* Elements of a map that is pruned: bounds have 31 bits. */
    FE_MOST_PRUNED = 1 << 30,
    /* Channels of a pixel are cut into stretches. */
    FE_STRETCH = 32,
};

/* The version that runs under this ceiling. */
fe_isa fe_sparse_grad_isa(fe_isa ceiling);

/* threshold = the one with which pruning is expected to leave this part of x zero: the mean of max(0, 1 - |x| / threshold) is
 * `sparsity`; 0 where so many are zero already. Found from a sample where x has more than 2^15 elements. What is not finite does
 * not count; what is below 2^-128 counts as zero. The same for all versions. */
int fe_pruning_threshold(float *threshold, const float *x, int64_t count, double sparsity);

/* What is left of a map of `pixels` x `channels`. Chunks of whole pixels have room of their own in `places` and `values`, one
 * behind the other; `counts` says how much of it is taken. Stretch i of a pixel is from bounds[pixel * (stretches + 1) + i] up
 * to the next bound. */
typedef struct {
    int64_t pixels, channels;
    uint32_t *places;
    float *values;
    int32_t *counts, *bounds;
} fe_nonzeros;

/* How many chunks that are, of how many pixels each, how many elements a chunk has room for, and how many bounds a pixel has. */
typedef struct {
    int64_t chunks, pixels, room, bounds;
} fe_chunks;

fe_chunks fe_chunks_of(int64_t pixels, int64_t channels);

/* Elements of at least the threshold stay, others become it, with their sign, with the probability |x| / threshold, or 0. Random
 * numbers, of 16 bits, are a function of seed and place alone: zeros are the same for all versions. NaNs stay. */
int fe_prune(fe_isa ceiling, const fe_nonzeros *to, const float *x, float threshold, uint64_t seed);

/* x = what is left, and zeros. */
int fe_densify(float *x, const fe_nonzeros *from);

/* For each filter of a weight its mean magnitude, and for each of its taps a row of whole bytes, whose bits say which inputs are
 * negative. Kernels read a byte more behind the last row. */
int fe_pack_signs(fe_isa ceiling, uint8_t *bits, float *scales, const float *weight, int64_t outputs, int64_t taps,
                  int64_t inputs);

/* Whether all sizes make sense, and no place or address computed from them overflows. */
int fe_sparse_conv_is_valid(const fe_conv *conv);

/* A map of gradients of the output is cut into tiles, whose pixels lie one behind the other; in how many. */
int64_t fe_sparse_tiles(fe_isa ceiling, const fe_conv *conv);

/* A non-zero, and where its pixel's first cell begins in a tile's copy of the input. */
typedef struct {
    int32_t place;
    float value;
} fe_listed;

/* For each tile and each output a list: list k of tile t goes from entries[starts[t * (outputs + 1) + k]] to where list k + 1
 * begins. The same ceiling belongs to whatever uses them. */
typedef struct {
    int32_t *starts;
    fe_listed *entries;
} fe_lists;

int fe_sparse_lists(fe_isa ceiling, const fe_lists *lists, const fe_nonzeros *from, const fe_conv *conv);

/* Floats, or else bits and scales as fe_pack_signs makes them. */
typedef struct {
    const float *floats;
    const uint8_t *bits;
    const float *scales;
} fe_sparse_weight;

/* Whether the gradient of the input is made from lists, and not from non-zeros in the order of pixels. */
int fe_sparse_needs_lists(const fe_conv *conv);

/* The gradient of the input, from what fe_sparse_needs_lists says; the other one may be NULL. */
int fe_sparse_grad_input(fe_isa ceiling, float *grad, const fe_nonzeros *from, const fe_lists *lists,
                         const fe_sparse_weight *weight, const fe_conv *conv);

/* The gradient of the weight. Work is divided into about so many pieces, which the result does not depend on. */
int fe_sparse_grad_weight(fe_isa ceiling, float *grad, const fe_lists *lists, const float *x, const fe_conv *conv,
                          int64_t pieces);

/* The whole backward pass of a layer. Either gradient may be NULL, and x where that of the weight is. */
typedef struct {
    float *grad_x, *grad_weight;
    const float *grad, *x, *weight;
    /* Whether errors go back through the signs of the weight. */
    int signs;
    /* A threshold below 0 is found, for this sparsity. */
    float threshold;
    double sparsity;
    uint64_t seed;
    /* How many elements pruning has left. */
    int64_t nonzeros;
} fe_sparse_pass;

/* Bytes that a pass needs meanwhile, beginning on a line of the cache; -1 where a map has too many elements to be pruned. Few of
 * them are ever touched. */
int64_t fe_sparse_scratch(fe_isa ceiling, const fe_conv *conv);

int fe_sparse_backward(fe_isa ceiling, fe_sparse_pass *pass, void *memory, const fe_conv *conv, int64_t pieces);

#endif
