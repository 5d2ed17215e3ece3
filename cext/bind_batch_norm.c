/* Python's way to cext/batch_norm: raw addresses, and a norm as its numbers. */
#include "binding.h"

#include "batch_norm/batch_norm.h"

#include <stdint.h>

/* weight, bias, then pixels, channels, eps, cap. */
enum { NORM_ARGUMENTS = 6 };

static int read_norm(PyObject *const *args, fe_batch_norm *norm) {
    if (fe_read_address(args[0], "weight", 1, &norm->weight) < 0 || fe_read_address(args[1], "bias", 1, &norm->bias) < 0)
        return -1;
    norm->pixels = PyLong_AsLongLong(args[2]);
    norm->channels = PyLong_AsLongLong(args[3]);
    norm->eps = PyFloat_AsDouble(args[4]);
    norm->cap = (float)PyFloat_AsDouble(args[5]);
    if (PyErr_Occurred())
        return -1;
    if (fe_batch_norm_is_valid(norm))
        return 0;
    PyErr_SetString(PyExc_ValueError, "pixels and channels must be above 0 and not overflow an address");
    return -1;
}

PyDoc_STRVAR(forward_doc, "batch_norm(isa, x, y, bits, statistics, *norm)\n\n"
                          "Normalise a float32 map with channels last, and activate it where bits are not null.");

static PyObject *py_forward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_batch_norm norm;
    float *x, *y, *statistics;
    uint8_t *bits;
    if (!fe_has_arguments("batch_norm", nargs, 5 + NORM_ARGUMENTS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "x", 0, &x) < 0 || fe_read_address(args[2], "y", 0, &y) < 0 ||
        fe_read_address(args[3], "bits", 1, &bits) < 0 || fe_read_address(args[4], "statistics", 0, &statistics) < 0 ||
        read_norm(args + 5, &norm) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_batch_norm_forward(isa, &norm, x, y, bits, statistics);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(backward_doc, "batch_norm_backward(isa, x, statistics, bits, grad, grad_x, grad_weight, grad_bias, *norm)\n\n"
                           "Gradients of batch_norm; that of x may be null.");

static PyObject *py_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_batch_norm norm;
    float *x, *statistics, *grad, *grad_x, *grad_weight, *grad_bias;
    uint8_t *bits;
    if (!fe_has_arguments("batch_norm_backward", nargs, 8 + NORM_ARGUMENTS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "x", 0, &x) < 0 || fe_read_address(args[2], "statistics", 0, &statistics) < 0 ||
        fe_read_address(args[3], "bits", 1, &bits) < 0 || fe_read_address(args[4], "grad", 0, &grad) < 0 ||
        fe_read_address(args[5], "grad_x", 1, &grad_x) < 0 || fe_read_address(args[6], "grad_weight", 0, &grad_weight) < 0 ||
        fe_read_address(args[7], "grad_bias", 0, &grad_bias) < 0 || read_norm(args + 8, &norm) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_batch_norm_backward(isa, &norm, x, statistics, bits, grad, grad_x, grad_weight, grad_bias);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyMethodDef fe_batch_norm_methods[] = {
    {"batch_norm", (PyCFunction)(void (*)(void))py_forward, METH_FASTCALL, forward_doc},
    {"batch_norm_backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, backward_doc},
    {NULL, NULL, 0, NULL},
};
