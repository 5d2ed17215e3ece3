/* Python's way to cext/gradient_filter: raw addresses, and grids as their numbers. */
#include "binding.h"

#include "gradient_filter/gradient_filter.h"

/* images, channels, height, width, then window, offset and number of patches along both axes, and side. */
enum { GRID_NUMBERS = 11 };

static int read_grid(PyObject *const *args, PyObject *slots, fe_grid *grid) {
    int64_t numbers[GRID_NUMBERS];
    for (int i = 0; i < GRID_NUMBERS; i++)
        numbers[i] = PyLong_AsLongLong(args[i]);
    char *bytes = NULL;
    Py_ssize_t components = 0;
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(slots, &bytes, &components) < 0)
        return -1;
    *grid = (fe_grid){
        .images = numbers[0],
        .channels = numbers[1],
        .height = numbers[2],
        .width = numbers[3],
        .window = {numbers[4], numbers[5]},
        .offset = {numbers[6], numbers[7]},
        .patches = {numbers[8], numbers[9]},
        .side = numbers[10],
        .components = components,
        .slots = (const unsigned char *)bytes,
    };
    if (fe_grid_is_valid(grid))
        return 0;
    PyErr_SetString(PyExc_ValueError, "windows, components and sizes do not fit together, or overflow an address");
    return -1;
}

static int has_means(const fe_grid *grid) {
    return grid->side == 1 || (grid->window[0] == grid->side && grid->window[1] == grid->side);
}

/* Whether grids of the gradient and of the input of a layer have the same patches. */
static int belong_together(const fe_grid *grad, const fe_grid *x) {
    return grad->images == x->images && grad->side == x->side && grad->patches[0] == x->patches[0] &&
           grad->patches[1] == x->patches[1] && has_means(grad);
}

static fe_layout as_layout(PyObject *channels_last) {
    return PyObject_IsTrue(channels_last) == 1 ? FE_CHANNELS_LAST : FE_CONTIGUOUS;
}

PyDoc_STRVAR(patch_pool_doc, "patch_pool(isa, out, map, channels_last, means, slots, *grid)\n\n"
                             "Sums, or means, of a float32 map over the windows of a grid.");

static PyObject *py_patch_pool(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_grid grid;
    float *out;
    const float *map;
    if (!fe_has_arguments("patch_pool", nargs, 6 + GRID_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "map", 0, &map) < 0 ||
        read_grid(args + 6, args[5], &grid) < 0)
        return NULL;
    fe_layout layout = as_layout(args[3]);
    int means = PyObject_IsTrue(args[4]), error;
    if (means && !has_means(&grid)) {
        PyErr_SetString(PyExc_ValueError, "means of more than one component need windows without upsampling");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    error = fe_patch_pool(isa, out, map, &grid, layout, means);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(patch_fill_doc, "patch_fill(isa, map, coefficients, channels_last, scale, slots, *grid)\n\n"
                             "Fills a float32 map from coefficients of the windows of a grid.");

static PyObject *py_patch_fill(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_grid grid;
    float *map;
    const float *coefficients;
    if (!fe_has_arguments("patch_fill", nargs, 6 + GRID_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "map", 0, &map) < 0 || fe_read_address(args[2], "coefficients", 0, &coefficients) < 0 ||
        read_grid(args + 6, args[5], &grid) < 0)
        return NULL;
    fe_layout layout = as_layout(args[3]);
    float scale = (float)PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_patch_fill(isa, map, coefficients, &grid, layout, scale);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(depthwise_doc, "depthwise_backward(isa, grad_x, gram, grad, x_sums, tap_sums, channels_last, scale, slots, "
                            "*grad_grid, *x_grid)\n\nBoth gradients of a filtered depthwise convolution; grad_x or gram "
                            "may be 0.");

static PyObject *py_depthwise_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_grid grad_grid, x_grid;
    float *grad_x, *gram;
    const float *grad, *x_sums, *tap_sums;
    if (!fe_has_arguments("depthwise_backward", nargs, 9 + 2 * GRID_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "grad_x", 1, &grad_x) < 0 || fe_read_address(args[2], "gram", 1, &gram) < 0 ||
        fe_read_address(args[3], "grad", 0, &grad) < 0 || fe_read_address(args[4], "x_sums", !gram, &x_sums) < 0 ||
        fe_read_address(args[5], "tap_sums", !grad_x, &tap_sums) < 0 || read_grid(args + 9, args[8], &grad_grid) < 0 ||
        read_grid(args + 9 + GRID_NUMBERS, args[8], &x_grid) < 0)
        return NULL;
    if (!belong_together(&grad_grid, &x_grid) || grad_grid.channels != x_grid.channels) {
        PyErr_SetString(PyExc_ValueError, "the grids of gradient and input do not belong together");
        return NULL;
    }
    fe_layout layout = as_layout(args[6]);
    float scale = (float)PyFloat_AsDouble(args[7]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_depthwise_backward(isa, grad_x, gram, grad, x_sums, tap_sums, &grad_grid, &x_grid, layout, scale);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(conv_doc, "conv_backward(isa, grad_x, gram, grad, x_sums, tap_sums, scratch, scratch_floats, pieces, slab_rows, "
                       "slots, *grad_grid, *x_grid)\n\nBoth gradients of a filtered convolution, channels last; grad_x or "
                       "gram may be 0.");

static PyObject *py_conv_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_grid grad_grid, x_grid;
    fe_conv_maps maps;
    float *scratch;
    if (!fe_has_arguments("conv_backward", nargs, 11 + 2 * GRID_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "grad_x", 1, &maps.grad_x) < 0 || fe_read_address(args[2], "gram", 1, &maps.gram) < 0 ||
        fe_read_address(args[3], "grad", 0, &maps.grad) < 0 ||
        fe_read_address(args[4], "x_sums", !maps.gram, &maps.x_sums) < 0 ||
        fe_read_address(args[5], "tap_sums", !maps.grad_x, &maps.tap_sums) < 0 ||
        fe_read_address(args[6], "scratch", 0, &scratch) < 0 || read_grid(args + 11, args[10], &grad_grid) < 0 ||
        read_grid(args + 11 + GRID_NUMBERS, args[10], &x_grid) < 0)
        return NULL;
    int64_t floats = PyLong_AsLongLong(args[7]);
    fe_slabs slabs = {.pieces = PyLong_AsLongLong(args[8]), .slab_rows = PyLong_AsLongLong(args[9])};
    if (PyErr_Occurred())
        return NULL;
    int64_t needed = slabs.pieces < 1 || slabs.slab_rows < 1 ? -1 : fe_conv_scratch(&grad_grid, &x_grid, slabs);
    if (needed < 0 || needed > floats || !belong_together(&grad_grid, &x_grid)) {
        PyErr_SetString(PyExc_ValueError, "the grids do not belong together, or the scratch is too small");
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_conv_backward(isa, &maps, &grad_grid, &x_grid, slabs, scratch);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

/* pairs, inner, taps, components: none of their products that a kernel forms may overflow. */
static int read_taps(PyObject *const *args, int64_t sizes[4]) {
    int64_t weight = sizeof(float), sums = sizeof(float);
    for (int i = 0; i < 4; i++)
        sizes[i] = PyLong_AsLongLong(args[i]);
    if (PyErr_Occurred())
        return -1;
    if (sizes[0] >= 0 && sizes[1] >= 1 && sizes[2] >= 1 && sizes[3] >= 1 && sizes[0] % sizes[1] == 0 &&
        !__builtin_mul_overflow(sizes[0], sizes[2], &weight) && !__builtin_mul_overflow(weight, 4, &weight) &&
        !__builtin_mul_overflow(sizes[0], sizes[3], &sums) && !__builtin_mul_overflow(sums, 4, &sums))
        return 0;
    PyErr_SetString(PyExc_ValueError, "numbers of pairs, taps and components do not fit together, or overflow an address");
    return -1;
}

PyDoc_STRVAR(collapse_taps_doc, "collapse_taps(isa, out, weight, symbols, pairs, inner, taps, components)\n\n"
                                "Sums a float32 weight over its taps, once for each row of symbols.");

static PyObject *py_collapse_taps(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    float *out;
    const float *weight, *symbols;
    int64_t sizes[4];
    if (!fe_has_arguments("collapse_taps", nargs, 8) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "weight", 0, &weight) < 0 ||
        fe_read_address(args[3], "symbols", 0, &symbols) < 0 || read_taps(args + 4, sizes) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_collapse_taps(isa, out, weight, symbols, sizes[0], sizes[1], sizes[2], sizes[3]);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(spread_taps_doc, "spread_taps(isa, weight, gram, symbols, pairs, inner, taps, components, scale)\n\n"
                              "Spreads float32 sums over the taps of a weight: the transpose of collapse_taps.");

static PyObject *py_spread_taps(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    float *weight;
    const float *gram, *symbols;
    int64_t sizes[4];
    if (!fe_has_arguments("spread_taps", nargs, 9) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "weight", 0, &weight) < 0 || fe_read_address(args[2], "gram", 0, &gram) < 0 ||
        fe_read_address(args[3], "symbols", 0, &symbols) < 0 || read_taps(args + 4, sizes) < 0)
        return NULL;
    float scale = (float)PyFloat_AsDouble(args[8]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_spread_taps(isa, weight, gram, symbols, sizes[0], sizes[1], sizes[2], sizes[3], scale);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyMethodDef fe_gradient_filter_methods[] = {
    {"patch_pool", (PyCFunction)(void (*)(void))py_patch_pool, METH_FASTCALL, patch_pool_doc},
    {"patch_fill", (PyCFunction)(void (*)(void))py_patch_fill, METH_FASTCALL, patch_fill_doc},
    {"depthwise_backward", (PyCFunction)(void (*)(void))py_depthwise_backward, METH_FASTCALL, depthwise_doc},
    {"conv_backward", (PyCFunction)(void (*)(void))py_conv_backward, METH_FASTCALL, conv_doc},
    {"collapse_taps", (PyCFunction)(void (*)(void))py_collapse_taps, METH_FASTCALL, collapse_taps_doc},
    {"spread_taps", (PyCFunction)(void (*)(void))py_spread_taps, METH_FASTCALL, spread_taps_doc},
    {NULL, NULL, 0, NULL},
};
