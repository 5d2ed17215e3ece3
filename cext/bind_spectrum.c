/* Python's way to cext/spectrum: raw addresses, and tilings as their numbers. */
#include "binding.h"

#include "spectrum/spectrum.h"

#include <stdint.h>
#include <string.h>

/* images, channels, height, width, then tiles, step, offset, window and highest frequency along both axes. */
enum { TILING_NUMBERS = 14 };

static int read_waves(PyObject *object, int64_t window, int64_t highest, const float **waves) {
    char *bytes = NULL;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(object, &bytes, &size) < 0)
        return -1;
    int64_t rows = 2 * highest + 1, half = (window + 1) / 2;
    if (window < 1 || window > FE_WIDEST_WINDOW || highest < 0 || highest > FE_HIGHEST ||
        size != (Py_ssize_t)(rows * half * (int64_t)sizeof(float)) || (uintptr_t)bytes % sizeof(float) != 0) {
        PyErr_SetString(PyExc_ValueError, "windows, frequencies and waves do not fit together");
        return -1;
    }
    *waves = (const float *)(const void *)bytes;
    return 0;
}

/* `args` are two waves, the frequencies, and the numbers. */
static int read_tiling(PyObject *const *args, fe_tiling *tiling) {
    int64_t numbers[TILING_NUMBERS];
    for (int i = 0; i < TILING_NUMBERS; i++)
        numbers[i] = PyLong_AsLongLong(args[3 + i]);
    char *frequencies = NULL;
    Py_ssize_t size = 0;
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[2], &frequencies, &size) < 0)
        return -1;
    *tiling = (fe_tiling){
        .images = numbers[0],
        .channels = numbers[1],
        .height = numbers[2],
        .width = numbers[3],
        .tiles = {numbers[4], numbers[5]},
        .step = {numbers[6], numbers[7]},
        .offset = {numbers[8], numbers[9]},
        .window = {numbers[10], numbers[11]},
        .highest = {numbers[12], numbers[13]},
        .frequencies = size / 2,
        .waves_of = (const signed char *)frequencies,
    };
    for (int axis = 0; axis < 2; axis++)
        if (read_waves(args[axis], tiling->window[axis], tiling->highest[axis], &tiling->waves[axis]) < 0)
            return -1;
    if (fe_tiling_is_valid(tiling))
        return 0;
    PyErr_SetString(PyExc_ValueError, "windows, frequencies and sizes do not fit together, or overflow an address");
    return -1;
}

PyDoc_STRVAR(analyse_doc, "analyse(isa, out, map, sums, *waves, frequencies, *tiling)\n\n"
                          "Fourier coefficients of the windows of a float32 map, channels last.");

static PyObject *py_analyse(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_tiling tiling;
    float *out;
    const float *map;
    if (!fe_has_arguments("analyse", nargs, 7 + TILING_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "map", 0, &map) < 0 ||
        read_tiling(args + 4, &tiling) < 0)
        return NULL;
    int sums = PyObject_IsTrue(args[3]), error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_analyse(isa, out, map, &tiling, sums);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(synthesise_doc, "synthesise(isa, map, products, *waves, frequencies, *tiling)\n\n"
                             "A float32 map, channels last, from products of Fourier coefficients.");

static PyObject *py_synthesise(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_tiling tiling;
    float *map;
    const float *products;
    if (!fe_has_arguments("synthesise", nargs, 6 + TILING_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "map", 0, &map) < 0 || fe_read_address(args[2], "products", 0, &products) < 0 ||
        read_tiling(args + 3, &tiling) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_synthesise(isa, map, products, &tiling);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

static int same_windows(const fe_tiling *a, const fe_tiling *b) {
    return a->images == b->images && a->tiles[0] == b->tiles[0] && a->tiles[1] == b->tiles[1];
}

static int same_frequencies(const fe_tiling *a, const fe_tiling *b) {
    return a->frequencies == b->frequencies && a->highest[0] == b->highest[0] && a->highest[1] == b->highest[1] &&
           memcmp(a->waves_of, b->waves_of, 2 * (size_t)a->frequencies) == 0;
}

/* Whether the tilings are those of a convolution's gradient, input and weight. */
static int belong_together(const fe_tiling *y, const fe_tiling *x, const fe_tiling *taps) {
    return same_windows(y, x) && same_frequencies(y, x) && same_frequencies(taps, x) && taps->images == y->channels &&
           taps->channels == x->channels && taps->tiles[0] == 1 && taps->tiles[1] == 1;
}

PyDoc_STRVAR(spectral_doc, "spectral_backward(isa, grad_x, grad_weight, grad, spectra, weight, scratch, scratch_floats, "
                           "pieces, slab_images, band_rows, inputs_innermost, cells, *y, *x, *taps)\n\nBoth gradients of a "
                           "convolution by low frequencies, channels last; grad_x or grad_weight may be 0. Tilings are "
                           "waves along both axes, frequencies and numbers.");

static PyObject *py_spectral_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    enum { FIRST_TILING = 13, TILING_ARGUMENTS = 3 + TILING_NUMBERS };
    fe_isa isa;
    fe_tiling y, x, taps;
    fe_spectral_conv conv = {.y = &y, .x = &x, .taps = &taps};
    float *scratch;
    if (!fe_has_arguments("spectral_backward", nargs, FIRST_TILING + 3 * TILING_ARGUMENTS) ||
        fe_as_isa(args[0], &isa) < 0 || fe_read_address(args[1], "grad_x", 1, &conv.grad_x) < 0 ||
        fe_read_address(args[2], "grad_weight", 1, &conv.grad_weight) < 0 ||
        fe_read_address(args[3], "grad", 0, &conv.grad) < 0 ||
        fe_read_address(args[4], "spectra", !conv.grad_weight, &conv.spectra) < 0 ||
        fe_read_address(args[5], "weight", !conv.grad_x, &conv.weight) < 0 ||
        fe_read_address(args[6], "scratch", 0, &scratch) < 0 || read_tiling(args + FIRST_TILING, &y) < 0 ||
        read_tiling(args + FIRST_TILING + TILING_ARGUMENTS, &x) < 0 ||
        read_tiling(args + FIRST_TILING + 2 * TILING_ARGUMENTS, &taps) < 0)
        return NULL;
    int64_t floats = PyLong_AsLongLong(args[7]);
    fe_division division = {PyLong_AsLongLong(args[8]), PyLong_AsLongLong(args[9]), PyLong_AsLongLong(args[10])};
    conv.inputs_innermost = PyObject_IsTrue(args[11]);
    conv.cells = PyLong_AsLongLong(args[12]);
    if (PyErr_Occurred())
        return NULL;
    int64_t needed = division.pieces < 1 || division.slab_images < 1 || division.band_rows < 1 || conv.cells < 1
                         ? -1
                         : fe_spectral_scratch(&conv, division);
    if (needed < 0 || needed > floats || !belong_together(&y, &x, &taps)) {
        PyErr_SetString(PyExc_ValueError, "the tilings do not belong together, or the scratch is too small");
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_spectral_backward(isa, &conv, division, scratch);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyMethodDef fe_spectrum_methods[] = {
    {"analyse", (PyCFunction)(void (*)(void))py_analyse, METH_FASTCALL, analyse_doc},
    {"synthesise", (PyCFunction)(void (*)(void))py_synthesise, METH_FASTCALL, synthesise_doc},
    {"spectral_backward", (PyCFunction)(void (*)(void))py_spectral_backward, METH_FASTCALL, spectral_doc},
    {NULL, NULL, 0, NULL},
};
