/* Python's way to cext/chain: raw addresses, and layers as their numbers. */
#include "binding.h"

#include "chain/chain.h"

#include <stdint.h>

/* Address, scale and zero of a map of bytes. */
enum { MAP_ARGUMENTS = 3 };

static int read_map(PyObject *const *args, uint8_t **bytes, fe_meaning *means) {
    if (fe_read_address(args[0], "x", 0, bytes) < 0 || fe_read_byte(args[2], &means->zero) < 0)
        return -1;
    means->scale = PyFloat_AsDouble(args[1]);
    return PyErr_Occurred() ? -1 : 0;
}

static int read_numbers(PyObject *const *args, fe_range_evonorm *norm, double *factor, double *eps) {
    if (fe_read_norm(args, norm) < 0)
        return -1;
    *factor = PyFloat_AsDouble(args[FE_NORM_ARGUMENTS - 2]);
    *eps = PyFloat_AsDouble(args[FE_NORM_ARGUMENTS - 1]);
    return PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(conv_doc, "chain_conv(isa, y, *x, weight, bias, *conv)\n\n"
                       "A convolution of bytes with a float32 weight; returns the ends of y.");

static PyObject *py_conv(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    fe_conv_out out = {0};
    uint8_t *x;
    fe_meaning means;
    const float *weight, *bias;
    if (!fe_has_arguments("chain_conv", nargs, 4 + MAP_ARGUMENTS + FE_CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "y", 0, &out.floats) < 0 || read_map(args + 2, &x, &means) < 0 ||
        fe_read_address(args[5], "weight", 0, &weight) < 0 || fe_read_address(args[6], "bias", 1, &bias) < 0 ||
        fe_read_int8_conv(args + 7, &conv) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_chain_conv(isa, &out, x, means, weight, bias, &conv);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none_if_finite(error) : Py_BuildValue("(dd)", (double)out.low, (double)out.high);
}

PyDoc_STRVAR(conv_backward_doc,
             "chain_conv_backward(isa, grad_x, grad_weight, *x, error, scale, high, low, half_scale, weight, pieces, *conv)\n\n"
             "Its gradients; 0 for one that is not wanted, and for the halves of gradients of 8 bits.");

static PyObject *py_conv_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    float *grad_x, *grad_weight;
    uint8_t *x;
    fe_meaning means;
    fe_error of_y = {0};
    const float *weight;
    int64_t pieces;
    if (!fe_has_arguments("chain_conv_backward", nargs, 10 + MAP_ARGUMENTS + FE_CONV_NUMBERS) ||
        fe_as_isa(args[0], &isa) < 0 || fe_read_address(args[1], "grad_x", 1, &grad_x) < 0 ||
        fe_read_address(args[2], "grad_weight", 1, &grad_weight) < 0 || read_map(args + 3, &x, &means) < 0 ||
        fe_read_address(args[6], "error", 0, &of_y.bytes) < 0 || fe_read_address(args[8], "high", 1, &of_y.high) < 0 ||
        fe_read_address(args[9], "low", of_y.high == NULL, &of_y.low) < 0 ||
        fe_read_address(args[11], "weight", 0, &weight) < 0 || fe_read_length(args[12], &pieces) < 0 ||
        fe_read_int8_conv(args + 13, &conv) < 0)
        return NULL;
    of_y.scale = PyFloat_AsDouble(args[7]);
    of_y.half_scale = PyFloat_AsDouble(args[10]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_chain_conv_backward(isa, grad_x, grad_weight, x, means, &of_y, weight, &conv, pieces);
    Py_END_ALLOW_THREADS
    return fe_as_none_if_finite(error);
}

PyDoc_STRVAR(norm_doc, "chain_norm(isa, floats, low, high, *x, y, extremes, *norm)\n\n"
                       "Range-EvoNorm of bytes, or of floats that become bytes first, to bytes; returns scale and zero of x "
                       "and of y.");

static PyObject *py_norm(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_range_evonorm norm;
    fe_chain_maps maps = {0};
    double factor, eps;
    if (!fe_has_arguments("chain_norm", nargs, 6 + MAP_ARGUMENTS + FE_NORM_ARGUMENTS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "floats", 1, &maps.floats) < 0 || read_map(args + 4, &maps.x, &maps.x_means) < 0 ||
        fe_read_address(args[7], "y", 0, &maps.y) < 0 || fe_read_address(args[8], "extremes", 0, &maps.extremes) < 0 ||
        read_numbers(args + 9, &norm, &factor, &eps) < 0)
        return NULL;
    maps.ends[0] = (float)PyFloat_AsDouble(args[2]);
    maps.ends[1] = (float)PyFloat_AsDouble(args[3]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_chain_norm(isa, &norm, factor, eps, &maps);
    Py_END_ALLOW_THREADS
    if (error)
        return fe_as_none_if_finite(error);
    return Py_BuildValue("(didi)", maps.x_means.scale, maps.x_means.zero, maps.y_means.scale, maps.y_means.zero);
}

PyDoc_STRVAR(norm_backward_doc,
             "chain_norm_backward(isa, grad, dx, error, high, low, seed, *x, extremes, dweight, dbias, dv, *norm)\n\n"
             "Its gradients; that of x in bytes, or, where their address is 0, as the floats at dx. Returns what a step of the "
             "bytes and one of the 16 bits mean.");

static PyObject *py_norm_backward(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_range_evonorm norm;
    fe_chain_maps maps = {0};
    fe_error of_x = {0};
    const float *grad;
    float *dx, *dweight, *dbias, *dv;
    double factor, eps;
    if (!fe_has_arguments("chain_norm_backward", nargs, 11 + MAP_ARGUMENTS + FE_NORM_ARGUMENTS) ||
        fe_as_isa(args[0], &isa) < 0 || fe_read_address(args[1], "grad", 0, &grad) < 0 ||
        fe_read_address(args[2], "dx", 0, &dx) < 0 || fe_read_address(args[3], "error", 1, &of_x.bytes) < 0 ||
        fe_read_address(args[4], "high", 1, &of_x.high) < 0 ||
        fe_read_address(args[5], "low", of_x.high == NULL, &of_x.low) < 0 ||
        read_map(args + 7, &maps.x, &maps.x_means) < 0 || fe_read_address(args[10], "extremes", 0, &maps.extremes) < 0 ||
        fe_read_address(args[11], "dweight", 1, &dweight) < 0 || fe_read_address(args[12], "dbias", 1, &dbias) < 0 ||
        fe_read_address(args[13], "dv", 1, &dv) < 0 || read_numbers(args + 14, &norm, &factor, &eps) < 0)
        return NULL;
    of_x.stochastic = args[6] != Py_None;
    if (of_x.stochastic)
        of_x.seed = PyLong_AsUnsignedLongLongMask(args[6]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_chain_norm_backward(isa, &norm, factor, eps, &maps, grad, dx, of_x.bytes ? &of_x : NULL, dweight, dbias, dv);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none_if_finite(error) : Py_BuildValue("(dd)", of_x.scale, of_x.half_scale);
}

PyMethodDef fe_chain_methods[] = {
    {"chain_conv", (PyCFunction)(void (*)(void))py_conv, METH_FASTCALL, conv_doc},
    {"chain_conv_backward", (PyCFunction)(void (*)(void))py_conv_backward, METH_FASTCALL, conv_backward_doc},
    {"chain_norm", (PyCFunction)(void (*)(void))py_norm, METH_FASTCALL, norm_doc},
    {"chain_norm_backward", (PyCFunction)(void (*)(void))py_norm_backward, METH_FASTCALL, norm_backward_doc},
    {NULL, NULL, 0, NULL},
};
