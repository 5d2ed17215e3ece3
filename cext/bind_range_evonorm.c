/* Python's way to cext/range_evonorm: raw addresses, and a norm as its numbers. */
#include "binding.h"

#include "range_evonorm/range_evonorm.h"

#include <math.h>
#include <stdint.h>

enum { NORM_ARGUMENTS = FE_NORM_ARGUMENTS, MAP_ARGUMENTS = 3 };

int fe_read_norm(PyObject *const *args, fe_range_evonorm *norm) {
    if (fe_read_address(args[0], "weight", 1, &norm->weight) < 0 || fe_read_address(args[1], "bias", 1, &norm->bias) < 0 ||
        fe_read_address(args[2], "v", 1, &norm->v) < 0)
        return -1;
    norm->samples = PyLong_AsLongLong(args[3]);
    norm->pixels = PyLong_AsLongLong(args[4]);
    norm->channels = PyLong_AsLongLong(args[5]);
    norm->groups = PyLong_AsLongLong(args[6]);
    norm->factor = (float)PyFloat_AsDouble(args[7]);
    norm->eps = (float)PyFloat_AsDouble(args[8]);
    if (PyErr_Occurred())
        return -1;
    if (fe_range_evonorm_is_valid(norm))
        return 0;
    PyErr_SetString(PyExc_ValueError, "samples, pixels, channels and groups do not fit together, or overflow an address");
    return -1;
}

/* Its address, its scale, and the byte that stands for 0; a scale of 0 says that it has floats. */
static int read_map(PyObject *const *args, const char *name, fe_norm_map *map) {
    void *address;
    if (fe_read_address(args[0], name, 0, &address) < 0)
        return -1;
    const double scale = PyFloat_AsDouble(args[1]), zero = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred())
        return -1;
    if (scale == 0.0) {
        *map = (fe_norm_map){.floats = address, .scale = 1.0f};
        return 0;
    }
    *map = (fe_norm_map){.bytes = address, .scale = (float)scale, .zero = (float)zero};
    if (isnormal(map->scale))
        return 0;
    PyErr_SetString(PyExc_ValueError, "the scale of bytes must be a normal number of float32");
    return -1;
}

static PyObject *bounds_or_error(int error, const float bounds[2]) {
    return error ? fe_as_none(error) : Py_BuildValue("(dd)", (double)bounds[0], (double)bounds[1]);
}

PyDoc_STRVAR(forward_doc, "range_evonorm(isa, *x, *y, extremes, *norm)\n\n"
                          "Normalise a map with channels last; returns the bounds of y and 0. Maps are address, scale and "
                          "zero, with scale 0 for float32.");

static PyObject *py_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_range_evonorm norm;
    fe_norm_map x, y;
    void *extremes;
    float bounds[2];
    if (!fe_has_arguments("range_evonorm", nargs, 2 + 2 * MAP_ARGUMENTS + NORM_ARGUMENTS) || fe_as_isa(args[0], &isa) < 0 ||
        read_map(args + 1, "x", &x) < 0 || read_map(args + 4, "y", &y) < 0 ||
        fe_read_address(args[7], "extremes", 0, &extremes) < 0 || fe_read_norm(args + 8, &norm) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_range_evonorm_forward(isa, &norm, &x, &y, extremes, bounds);
    Py_END_ALLOW_THREADS
    return bounds_or_error(error, bounds);
}

PyDoc_STRVAR(extremes_doc, "range_evonorm_extremes(isa, *x, extremes, *norm)\n\n"
                           "The first part of range_evonorm; returns the bounds of y and 0, the first NaN where y is not finite.");

static PyObject *py_extremes(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_range_evonorm norm;
    fe_norm_map x;
    void *extremes;
    float bounds[2];
    if (!fe_has_arguments("range_evonorm_extremes", nargs, 2 + MAP_ARGUMENTS + NORM_ARGUMENTS) ||
        fe_as_isa(args[0], &isa) < 0 || read_map(args + 1, "x", &x) < 0 ||
        fe_read_address(args[4], "extremes", 0, &extremes) < 0 || fe_read_norm(args + 5, &norm) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_range_evonorm_extremes(isa, &norm, &x, extremes, bounds);
    Py_END_ALLOW_THREADS
    return bounds_or_error(error, bounds);
}

PyDoc_STRVAR(normalise_doc, "range_evonorm_normalise(isa, *x, *y, extremes, *norm)\n\nThe second part of range_evonorm.");

static PyObject *py_normalise(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_range_evonorm norm;
    fe_norm_map x, y;
    void *extremes;
    if (!fe_has_arguments("range_evonorm_normalise", nargs, 2 + 2 * MAP_ARGUMENTS + NORM_ARGUMENTS) ||
        fe_as_isa(args[0], &isa) < 0 || read_map(args + 1, "x", &x) < 0 || read_map(args + 4, "y", &y) < 0 ||
        fe_read_address(args[7], "extremes", 0, &extremes) < 0 || fe_read_norm(args + 8, &norm) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_range_evonorm_normalise(isa, &norm, &x, &y, extremes);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(backward_doc, "range_evonorm_backward(isa, *x, extremes, *grad, dx, dweight, dbias, dv, *norm)\n\n"
                           "Gradients of range_evonorm; returns the bounds of dx and 0. Those of parameters may be null.");

static PyObject *py_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_range_evonorm norm;
    fe_norm_map x, grad;
    void *extremes;
    float *dx, *dweight, *dbias, *dv, bounds[2];
    if (!fe_has_arguments("range_evonorm_backward", nargs, 6 + 2 * MAP_ARGUMENTS + NORM_ARGUMENTS) ||
        fe_as_isa(args[0], &isa) < 0 || read_map(args + 1, "x", &x) < 0 ||
        fe_read_address(args[4], "extremes", 0, &extremes) < 0 || read_map(args + 5, "grad", &grad) < 0 ||
        fe_read_address(args[8], "dx", 0, &dx) < 0 || fe_read_address(args[9], "dweight", 1, &dweight) < 0 ||
        fe_read_address(args[10], "dbias", 1, &dbias) < 0 || fe_read_address(args[11], "dv", 1, &dv) < 0 ||
        fe_read_norm(args + 12, &norm) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_range_evonorm_backward(isa, &norm, &x, extremes, &grad, dx, dweight, dbias, dv, bounds);
    Py_END_ALLOW_THREADS
    return bounds_or_error(error, bounds);
}

PyMethodDef fe_range_evonorm_methods[] = {
    {"range_evonorm", (PyCFunction)(void (*)(void))py_forward, METH_FASTCALL, forward_doc},
    {"range_evonorm_extremes", (PyCFunction)(void (*)(void))py_extremes, METH_FASTCALL, extremes_doc},
    {"range_evonorm_normalise", (PyCFunction)(void (*)(void))py_normalise, METH_FASTCALL, normalise_doc},
    {"range_evonorm_backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, backward_doc},
    {NULL, NULL, 0, NULL},
};
