/* The backward pass of a layer, from the gradient of its output to those of input and weight. */
#include "tiling.h"

/* Takes `count` pieces of `size` bytes from memory, in whole lines of the cache; NULL only counts them. */
static void *take(char *memory, int64_t *taken, int64_t count, int64_t size) {
    const int64_t at = *taken;
    *taken += ceiling_of(count * size, LINE) * LINE;
    return memory ? memory + at : NULL;
}

typedef struct {
    fe_nonzeros left;
    fe_lists lists;
    uint8_t *bits;
    float *scales;
} scratch;

static int64_t divide(scratch *of, char *memory, fe_isa ceiling, const fe_conv *conv) {
    tiling over;
    fe_tiling_of(&over, fe_sparse_version(ceiling), conv);
    const int64_t pixels = conv->images * over.out[0] * over.out[1];
    const int64_t rows = conv->outputs * conv->kernel[0] * conv->kernel[1];
    const fe_chunks chunks = fe_chunks_of(pixels, conv->outputs);
    int64_t taken = 0;
    of->left = (fe_nonzeros){
        .pixels = pixels,
        .channels = conv->outputs,
        .places = take(memory, &taken, chunks.chunks * chunks.room, sizeof *of->left.places),
        .values = take(memory, &taken, chunks.chunks * chunks.room, sizeof *of->left.values),
        .counts = take(memory, &taken, chunks.chunks, sizeof *of->left.counts),
        .bounds = take(memory, &taken, pixels * chunks.bounds, sizeof *of->left.bounds),
    };
    of->lists.starts = take(memory, &taken, over.tiles * (conv->outputs + 1), sizeof *of->lists.starts);
    of->lists.entries = take(memory, &taken, pixels * conv->outputs, sizeof *of->lists.entries);
    of->bits = take(memory, &taken, rows * ceiling_of(conv->inputs / conv->groups, 8) + 1, 1);
    of->scales = take(memory, &taken, conv->outputs, sizeof *of->scales);
    return taken;
}

int64_t fe_sparse_scratch(fe_isa ceiling, const fe_conv *conv) {
    scratch of;
    const int64_t bytes = divide(&of, NULL, ceiling, conv);
    return of.left.pixels > FE_MOST_PRUNED / of.left.channels ? -1 : bytes;
}

int fe_sparse_backward(fe_isa ceiling, fe_sparse_pass *pass, void *memory, const fe_conv *conv, int64_t pieces) {
    scratch of;
    divide(&of, memory, ceiling, conv);
    const fe_nonzeros *left = &of.left;
    int error = 0;
    if (pass->threshold < 0.0f)
        error = fe_pruning_threshold(&pass->threshold, pass->grad, left->pixels * left->channels, pass->sparsity);
    if (!error)
        error = fe_prune(ceiling, left, pass->grad, pass->threshold, pass->seed);
    if (error)
        return error;
    const int64_t chunks = fe_chunks_of(left->pixels, left->channels).chunks;
    pass->nonzeros = 0;
    for (int64_t i = 0; i < chunks; i++)
        pass->nonzeros += left->counts[i];
    if (pass->grad_weight || fe_sparse_needs_lists(conv))
        error = fe_sparse_lists(ceiling, &of.lists, left, conv);
    if (!error && pass->grad_x) {
        fe_sparse_weight weight = {.floats = pass->weight};
        if (pass->signs) {
            const int64_t taps = conv->kernel[0] * conv->kernel[1];
            weight = (fe_sparse_weight){.bits = of.bits, .scales = of.scales};
            error = fe_pack_signs(ceiling, of.bits, of.scales, pass->weight, conv->outputs, taps, conv->inputs / conv->groups);
        }
        if (!error)
            error = fe_sparse_grad_input(ceiling, pass->grad_x, left, &of.lists, &weight, conv);
    }
    if (!error && pass->grad_weight)
        error = fe_sparse_grad_weight(ceiling, pass->grad_weight, &of.lists, pass->x, conv, pieces);
    return error;
}
