/* Python's way to cext/sparse_grad: raw addresses, and convolutions as their numbers. */
#include "binding.h"

#include "sparse_grad/sparse_grad.h"

#include <math.h>
#include <stdint.h>

/* Sizes that belong together, of which the product of all, times `bytes`, has to fit into memory. */
static int read_sizes(PyObject *const *args, int count, int64_t *sizes) {
    int64_t bytes = 2 * (int64_t)sizeof(float);
    for (int i = 0; i < count; i++) {
        sizes[i] = PyLong_AsLongLong(args[i]);
        if (PyErr_Occurred())
            return -1;
        if (sizes[i] < 1 || __builtin_mul_overflow(bytes, sizes[i], &bytes) || bytes > INT64_MAX / 4) {
            PyErr_SetString(PyExc_ValueError, "sizes must be positive, and what they stand for must fit into memory");
            return -1;
        }
    }
    return 0;
}

/* Bytes of scratch memory, or -1 with an exception. */
static int64_t scratch_of(fe_isa isa, const fe_conv *conv) {
    const int64_t bytes = fe_sparse_scratch(isa, conv);
    if (bytes < 0)
        PyErr_Format(PyExc_ValueError, "a pruned map has at most %d elements", FE_MOST_PRUNED);
    return bytes;
}

static int read_conv(PyObject *const *args, fe_conv *conv) {
    if (fe_read_conv(args, conv) < 0)
        return -1;
    if (fe_sparse_conv_is_valid(conv))
        return 0;
    PyErr_SetString(PyExc_ValueError, "sizes do not fit together, or a place or an address would overflow");
    return -1;
}

/* places, values, counts, bounds, then pixels and channels. */
enum { NONZEROS = 6 };

static int read_nonzeros(PyObject *const *args, fe_nonzeros *of) {
    int64_t sizes[2];
    if (fe_read_address(args[0], "places", 0, &of->places) < 0 || fe_read_address(args[1], "values", 0, &of->values) < 0 ||
        fe_read_address(args[2], "counts", 0, &of->counts) < 0 || fe_read_address(args[3], "bounds", 0, &of->bounds) < 0 ||
        read_sizes(args + 4, 2, sizes) < 0)
        return -1;
    of->pixels = sizes[0];
    of->channels = sizes[1];
    if (of->channels <= FE_MOST_CHANNELS && of->pixels <= FE_MOST_PRUNED / of->channels)
        return 0;
    PyErr_Format(PyExc_ValueError, "a pruned map has at most %d channels and %d elements", FE_MOST_CHANNELS, FE_MOST_PRUNED);
    return -1;
}

static int read_lists(PyObject *const *args, fe_lists *lists) {
    return fe_read_address(args[0], "starts", 0, &lists->starts) < 0 ||
                   fe_read_address(args[1], "entries", 0, &lists->entries) < 0
               ? -1
               : 0;
}

PyDoc_STRVAR(threshold_doc, "pruning_threshold(x, length, sparsity)\n\n"
                            "The threshold that is expected to leave this part of float32 x zero.");

static PyObject *py_threshold(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    const float *x;
    int64_t length;
    if (!fe_has_arguments("pruning_threshold", nargs, 3) || fe_read_address(args[0], "x", 0, &x) < 0 ||
        read_sizes(args + 1, 1, &length) < 0)
        return NULL;
    double sparsity = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (!(sparsity >= 0.0 && sparsity < 1.0)) {
        PyErr_SetString(PyExc_ValueError, "a sparsity must be at least 0 and below 1");
        return NULL;
    }
    float threshold;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_pruning_threshold(&threshold, x, length, sparsity);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none(error) : PyFloat_FromDouble((double)threshold);
}

PyDoc_STRVAR(chunks_doc, "pruned_chunks(pixels, channels)\n\nChunks of a pruned map, their room, bounds of a pixel.");

static PyObject *py_chunks(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    int64_t sizes[2];
    if (!fe_has_arguments("pruned_chunks", nargs, 2) || read_sizes(args, 2, sizes) < 0)
        return NULL;
    fe_chunks chunks = fe_chunks_of(sizes[0], sizes[1]);
    return Py_BuildValue("(LLL)", (long long)chunks.chunks, (long long)chunks.room, (long long)chunks.bounds);
}

PyDoc_STRVAR(prune_doc, "prune(isa, *nonzeros, x, threshold, seed)\n\nWhat pruning leaves of float32 x; returns how many.");

static PyObject *py_prune(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_nonzeros to;
    const float *x;
    if (!fe_has_arguments("prune", nargs, 4 + NONZEROS) || fe_as_isa(args[0], &isa) < 0 || read_nonzeros(args + 1, &to) < 0 ||
        fe_read_address(args[1 + NONZEROS], "x", 0, &x) < 0)
        return NULL;
    float threshold = (float)PyFloat_AsDouble(args[2 + NONZEROS]);
    uint64_t seed = PyLong_AsUnsignedLongLongMask(args[3 + NONZEROS]);
    if (PyErr_Occurred())
        return NULL;
    if (!isfinite(threshold) || threshold < 0.0f) {
        PyErr_SetString(PyExc_ValueError, "a threshold must be finite and at least 0");
        return NULL;
    }
    int error;
    int64_t left = 0;
    Py_BEGIN_ALLOW_THREADS
    error = fe_prune(isa, &to, x, threshold, seed);
    for (int64_t i = 0, chunks = fe_chunks_of(to.pixels, to.channels).chunks; !error && i < chunks; i++)
        left += to.counts[i];
    Py_END_ALLOW_THREADS
    return error ? fe_as_none(error) : PyLong_FromLongLong(left);
}

PyDoc_STRVAR(densify_doc, "densify(x, *nonzeros)\n\nfloat32 x = what pruning left, and zeros.");

static PyObject *py_densify(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    float *x;
    fe_nonzeros from;
    if (!fe_has_arguments("densify", nargs, 1 + NONZEROS) || fe_read_address(args[0], "x", 0, &x) < 0 ||
        read_nonzeros(args + 1, &from) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_densify(x, &from);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(signs_doc, "pack_signs(isa, bits, scales, weight, outputs, taps, inputs)\n\n"
                        "A bit for each float32 weight, inputs innermost, and the mean magnitude of each filter.");

static PyObject *py_signs(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    uint8_t *bits;
    float *scales;
    const float *weight;
    int64_t sizes[3];
    if (!fe_has_arguments("pack_signs", nargs, 7) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "bits", 0, &bits) < 0 || fe_read_address(args[2], "scales", 0, &scales) < 0 ||
        fe_read_address(args[3], "weight", 0, &weight) < 0 || read_sizes(args + 4, 3, sizes) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_pack_signs(isa, bits, scales, weight, sizes[0], sizes[1], sizes[2]);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(tiles_doc, "sparse_tiles(isa, *conv)\n\nHow many tiles the output's gradient is cut into.");

static PyObject *py_tiles(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    if (!fe_has_arguments("sparse_tiles", nargs, 1 + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        read_conv(args + 1, &conv) < 0)
        return NULL;
    return PyLong_FromLongLong(fe_sparse_tiles(isa, &conv));
}

PyDoc_STRVAR(lists_doc, "sparse_lists(isa, starts, entries, *nonzeros, *conv)\n\n"
                        "What pruning left of the output's gradient, as a list for each tile and output.");

static PyObject *py_lists(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_lists lists;
    fe_nonzeros from;
    fe_conv conv;
    if (!fe_has_arguments("sparse_lists", nargs, 3 + NONZEROS + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        read_lists(args + 1, &lists) < 0 || read_nonzeros(args + 3, &from) < 0 || read_conv(args + 3 + NONZEROS, &conv) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_sparse_lists(isa, &lists, &from, &conv);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(needs_lists_doc, "sparse_needs_lists(*conv)\n\nWhether the gradient of the input is made from lists.");

static PyObject *py_needs_lists(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_conv conv;
    if (!fe_has_arguments("sparse_needs_lists", nargs, FE_CONV_NUMBERS) || read_conv(args, &conv) < 0)
        return NULL;
    return PyBool_FromLong(fe_sparse_needs_lists(&conv));
}

PyDoc_STRVAR(input_doc, "sparse_grad_input(isa, grad, starts, entries, *nonzeros, weight, bits, scales, *conv)\n\n"
                        "The gradient of the input; starts and entries are 0 where no lists are needed, and so is either weight, "
                        "or bits and scales are.");

static PyObject *py_grad_input(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    float *grad;
    fe_lists lists = {0};
    fe_nonzeros from;
    fe_sparse_weight weight;
    fe_conv conv;
    if (!fe_has_arguments("sparse_grad_input", nargs, 7 + NONZEROS + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        read_conv(args + 7 + NONZEROS, &conv) < 0 || fe_read_address(args[1], "grad", 0, &grad) < 0 ||
        (fe_sparse_needs_lists(&conv) && read_lists(args + 2, &lists) < 0) || read_nonzeros(args + 4, &from) < 0)
        return NULL;
    args += 4 + NONZEROS;
    if (fe_read_address(args[0], "weight", 1, &weight.floats) < 0 ||
        fe_read_address(args[1], "bits", weight.floats != NULL, &weight.bits) < 0 ||
        fe_read_address(args[2], "scales", weight.floats != NULL, &weight.scales) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_sparse_grad_input(isa, grad, &from, &lists, &weight, &conv);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(weight_doc, "sparse_grad_weight(isa, grad, starts, entries, x, pieces, *conv)\n\n"
                         "The gradient of the weight, inputs innermost.");

static PyObject *py_grad_weight(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    float *grad;
    fe_lists lists;
    const float *x;
    int64_t pieces;
    fe_conv conv;
    if (!fe_has_arguments("sparse_grad_weight", nargs, 6 + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "grad", 0, &grad) < 0 || read_lists(args + 2, &lists) < 0 ||
        fe_read_address(args[4], "x", 0, &x) < 0 || read_sizes(args + 5, 1, &pieces) < 0 || read_conv(args + 6, &conv) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_sparse_grad_weight(isa, grad, &lists, x, &conv, pieces);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(scratch_doc, "sparse_scratch(isa, *conv)\n\nBytes that sparse_backward needs meanwhile.");

static PyObject *py_scratch(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    if (!fe_has_arguments("sparse_scratch", nargs, 1 + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        read_conv(args + 1, &conv) < 0)
        return NULL;
    const int64_t bytes = scratch_of(isa, &conv);
    return bytes < 0 ? NULL : PyLong_FromLongLong(bytes);
}

PyDoc_STRVAR(backward_doc, "sparse_backward(isa, grad_x, grad_weight, scratch, grad, x, weight, signs, threshold, sparsity, seed, "
                           "pieces, *conv)\n\nBoth gradients of a layer, or 0 for one that is not wanted; a threshold below 0 is "
                           "found. Returns how many elements pruning has left.");

static PyObject *py_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_sparse_pass pass;
    char *memory;
    int64_t pieces;
    fe_conv conv;
    if (!fe_has_arguments("sparse_backward", nargs, 12 + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "grad_x", 1, &pass.grad_x) < 0 ||
        fe_read_address(args[2], "grad_weight", 1, &pass.grad_weight) < 0 ||
        fe_read_address(args[3], "scratch", 0, &memory) < 0 || fe_read_address(args[4], "grad", 0, &pass.grad) < 0 ||
        fe_read_address(args[5], "x", pass.grad_weight == NULL, &pass.x) < 0 ||
        fe_read_address(args[6], "weight", 0, &pass.weight) < 0 || read_sizes(args + 11, 1, &pieces) < 0 ||
        read_conv(args + 12, &conv) < 0 || scratch_of(isa, &conv) < 0)
        return NULL;
    pass.signs = PyObject_IsTrue(args[7]);
    pass.threshold = (float)PyFloat_AsDouble(args[8]);
    pass.sparsity = PyFloat_AsDouble(args[9]);
    pass.seed = PyLong_AsUnsignedLongLongMask(args[10]);
    if (PyErr_Occurred())
        return NULL;
    if (!isfinite(pass.threshold) || (pass.threshold < 0.0f && !(pass.sparsity >= 0.0 && pass.sparsity < 1.0))) {
        PyErr_SetString(PyExc_ValueError, "a threshold must be finite, and a sparsity at least 0 and below 1");
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_sparse_backward(isa, &pass, memory, &conv, pieces);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none(error) : PyLong_FromLongLong(pass.nonzeros);
}

PyMethodDef fe_sparse_grad_methods[] = {
    {"pruning_threshold", (PyCFunction)(void (*)(void))py_threshold, METH_FASTCALL, threshold_doc},
    {"pruned_chunks", (PyCFunction)(void (*)(void))py_chunks, METH_FASTCALL, chunks_doc},
    {"prune", (PyCFunction)(void (*)(void))py_prune, METH_FASTCALL, prune_doc},
    {"densify", (PyCFunction)(void (*)(void))py_densify, METH_FASTCALL, densify_doc},
    {"pack_signs", (PyCFunction)(void (*)(void))py_signs, METH_FASTCALL, signs_doc},
    {"sparse_tiles", (PyCFunction)(void (*)(void))py_tiles, METH_FASTCALL, tiles_doc},
    {"sparse_lists", (PyCFunction)(void (*)(void))py_lists, METH_FASTCALL, lists_doc},
    {"sparse_needs_lists", (PyCFunction)(void (*)(void))py_needs_lists, METH_FASTCALL, needs_lists_doc},
    {"sparse_grad_input", (PyCFunction)(void (*)(void))py_grad_input, METH_FASTCALL, input_doc},
    {"sparse_grad_weight", (PyCFunction)(void (*)(void))py_grad_weight, METH_FASTCALL, weight_doc},
    {"sparse_scratch", (PyCFunction)(void (*)(void))py_scratch, METH_FASTCALL, scratch_doc},
    {"sparse_backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, backward_doc},
    {NULL, NULL, 0, NULL},
};
