/* Python's way to cext/int8: raw addresses, and convolutions as their numbers. */
#include "binding.h"

#include "int8/int8.h"

#include <math.h>
#include <stdint.h>

enum { CONV_NUMBERS = FE_CONV_NUMBERS };

int fe_read_int8_conv(PyObject *const *args, fe_conv *conv) {
    if (fe_read_conv(args, conv) < 0)
        return -1;
    if (fe_conv_is_valid(conv))
        return 0;
    PyErr_SetString(PyExc_ValueError, "sizes do not fit together, or a sum or an address would overflow");
    return -1;
}

PyObject *fe_as_none_if_finite(int error) {
    if (error != FE_NOT_FINITE)
        return fe_as_none(error);
    PyErr_SetString(PyExc_FloatingPointError, "a NaN or an infinity cannot be quantised");
    return NULL;
}

PyDoc_STRVAR(range_doc, "value_range(isa, x, length)\n\nThe least and the greatest of float32 x and 0.");

static PyObject *py_range(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    const float *x;
    int64_t length;
    if (!fe_has_arguments("value_range", nargs, 3) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "x", 0, &x) < 0 || fe_read_length(args[2], &length) < 0)
        return NULL;
    float low, high;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_range(isa, &low, &high, x, length);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none_if_finite(error) : Py_BuildValue("(dd)", (double)low, (double)high);
}

/* inverse, zero, least, most, and a seed or None. */
enum { ROUNDING_NUMBERS = 5 };

static int read_rounding(PyObject *const *args, fe_rounding *rounding) {
    *rounding = (fe_rounding){.inverse = (float)PyFloat_AsDouble(args[0]), .stochastic = args[4] != Py_None};
    if (PyErr_Occurred() || fe_read_byte(args[1], &rounding->zero) < 0 || fe_read_byte(args[2], &rounding->least) < 0 ||
        fe_read_byte(args[3], &rounding->most) < 0)
        return -1;
    if (rounding->stochastic)
        rounding->seed = PyLong_AsUnsignedLongLongMask(args[4]);
    if (PyErr_Occurred())
        return -1;
    if (isfinite(rounding->inverse) && rounding->least <= rounding->most)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a rounding needs a finite scale and an order of its ends");
    return -1;
}

PyDoc_STRVAR(quantise_doc, "quantise(isa, out, x, length, inverse, zero, least, most, seed)\n\n"
                           "Bytes round(x * inverse) + zero; stochastically where there is a seed.");

static PyObject *py_quantise(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    uint8_t *out;
    const float *x;
    int64_t length;
    fe_rounding rounding;
    if (!fe_has_arguments("quantise", nargs, 4 + ROUNDING_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "x", 0, &x) < 0 ||
        fe_read_length(args[3], &length) < 0 || read_rounding(args + 4, &rounding) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_quantise(isa, out, x, length, &rounding);
    Py_END_ALLOW_THREADS
    return fe_as_none_if_finite(error);
}

PyDoc_STRVAR(error_doc, "quantise_error(isa, out, high, low, x, length, inverse, zero, least, most, seed, half_inverse)\n\n"
                        "As quantise; and round(x * half_inverse), in 16 bits, as two bytes each.");

static PyObject *py_quantise_error(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    uint8_t *out, *high, *low;
    const float *x;
    int64_t length;
    fe_rounding rounding;
    if (!fe_has_arguments("quantise_error", nargs, 7 + ROUNDING_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "high", 0, &high) < 0 ||
        fe_read_address(args[3], "low", 0, &low) < 0 || fe_read_address(args[4], "x", 0, &x) < 0 ||
        fe_read_length(args[5], &length) < 0 || read_rounding(args + 6, &rounding) < 0)
        return NULL;
    float half_inverse = (float)PyFloat_AsDouble(args[6 + ROUNDING_NUMBERS]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_quantise_error(isa, out, high, low, x, length, &rounding, half_inverse);
    Py_END_ALLOW_THREADS
    return fe_as_none_if_finite(error);
}

PyDoc_STRVAR(dequantise_doc, "dequantise(isa, out, x, length, scale, zero)\n\nfloat32 out = scale * (x - zero).");

static PyObject *py_dequantise(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    float *out;
    const uint8_t *x;
    int64_t length;
    int zero;
    if (!fe_has_arguments("dequantise", nargs, 6) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "x", 0, &x) < 0 ||
        fe_read_length(args[3], &length) < 0 || fe_read_byte(args[5], &zero) < 0)
        return NULL;
    float scale = (float)PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_dequantise(isa, out, x, length, scale, zero);
    Py_END_ALLOW_THREADS
    return fe_as_none_if_finite(error);
}

PyDoc_STRVAR(packed_doc, "int8_packed_sizes(isa, transposed, *conv)\n\nNumbers of bytes, of sums and of scales.");

static PyObject *py_packed_sizes(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    if (!fe_has_arguments("int8_packed_sizes", nargs, 2 + CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_int8_conv(args + 2, &conv) < 0)
        return NULL;
    fe_packed_sizes sizes = fe_int8_packed(isa, &conv, PyObject_IsTrue(args[1]) == 1);
    return Py_BuildValue("(LLL)", (long long)sizes.bytes, (long long)sizes.sums, (long long)sizes.scales);
}

static int read_packed(PyObject *const *args, fe_packed *packed) {
    return fe_read_address(args[0], "bytes", 0, &packed->bytes) < 0 || fe_read_address(args[1], "sums", 0, &packed->sums) < 0 ||
                   fe_read_address(args[2], "scales", 0, &packed->scales) < 0
               ? -1
               : 0;
}

PyDoc_STRVAR(pack_doc, "int8_pack(isa, bytes, sums, scales, weight, transposed, *conv)\n\n"
                       "Quantises a float32 weight, inputs innermost, for a convolution or its transpose.");

static PyObject *py_pack(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    fe_packed packed;
    const float *weight;
    if (!fe_has_arguments("int8_pack", nargs, 6 + CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        read_packed(args + 1, &packed) < 0 || fe_read_address(args[4], "weight", 0, &weight) < 0 ||
        fe_read_int8_conv(args + 6, &conv) < 0)
        return NULL;
    int transposed = PyObject_IsTrue(args[5]) == 1, error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_int8_pack(isa, &packed, weight, &conv, transposed);
    Py_END_ALLOW_THREADS
    return fe_as_none_if_finite(error);
}

PyDoc_STRVAR(conv_doc, "int8_conv(isa, floats, bytes, x, zero, scale, bytes, sums, scales, bias, transposed, inverse, zero, "
                       "least, most, seed, *conv)\n\nA convolution of bytes, or its transpose: to floats, or to bytes where "
                       "their address is not 0. Returns the least and the greatest of the floats and 0.");

static PyObject *py_conv(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    fe_packed packed;
    fe_conv_out out = {0};
    const uint8_t *x;
    const float *bias;
    int zero;
    if (!fe_has_arguments("int8_conv", nargs, 11 + ROUNDING_NUMBERS + CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "floats", 1, &out.floats) < 0 ||
        fe_read_address(args[2], "bytes", out.floats != NULL, &out.bytes) < 0 || fe_read_address(args[3], "x", 0, &x) < 0 ||
        fe_read_byte(args[4], &zero) < 0 || read_packed(args + 6, &packed) < 0 ||
        fe_read_address(args[9], "bias", 1, &bias) < 0 || read_rounding(args + 11, &out.rounding) < 0 ||
        fe_read_int8_conv(args + 11 + ROUNDING_NUMBERS, &conv) < 0)
        return NULL;
    float scale = (float)PyFloat_AsDouble(args[5]);
    int transposed = PyObject_IsTrue(args[10]) == 1, error;
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = fe_int8_conv(isa, &out, x, zero, scale, &packed, bias, &conv, transposed);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none_if_finite(error) : Py_BuildValue("(dd)", (double)out.low, (double)out.high);
}

PyDoc_STRVAR(grad_weight_doc, "int8_grad_weight(isa, grad, x, zero, scale, high, low, pieces, *conv)\n\n"
                              "The gradient of a weight, inputs innermost; low is 0 for gradients of 8 bits.");

static PyObject *py_grad_weight(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_conv conv;
    float *grad;
    const uint8_t *x, *high, *low;
    int zero;
    int64_t pieces;
    if (!fe_has_arguments("int8_grad_weight", nargs, 8 + CONV_NUMBERS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "grad", 0, &grad) < 0 || fe_read_address(args[2], "x", 0, &x) < 0 ||
        fe_read_byte(args[3], &zero) < 0 || fe_read_address(args[5], "high", 0, &high) < 0 ||
        fe_read_address(args[6], "low", 1, &low) < 0 || fe_read_length(args[7], &pieces) < 0 ||
        fe_read_int8_conv(args + 8, &conv) < 0)
        return NULL;
    float scale = (float)PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred())
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_int8_grad_weight(isa, grad, x, zero, scale, high, low, &conv, pieces);
    Py_END_ALLOW_THREADS
    return fe_as_none_if_finite(error);
}

PyMethodDef fe_int8_methods[] = {
    {"value_range", (PyCFunction)(void (*)(void))py_range, METH_FASTCALL, range_doc},
    {"quantise", (PyCFunction)(void (*)(void))py_quantise, METH_FASTCALL, quantise_doc},
    {"quantise_error", (PyCFunction)(void (*)(void))py_quantise_error, METH_FASTCALL, error_doc},
    {"dequantise", (PyCFunction)(void (*)(void))py_dequantise, METH_FASTCALL, dequantise_doc},
    {"int8_packed_sizes", (PyCFunction)(void (*)(void))py_packed_sizes, METH_FASTCALL, packed_doc},
    {"int8_pack", (PyCFunction)(void (*)(void))py_pack, METH_FASTCALL, pack_doc},
    {"int8_conv", (PyCFunction)(void (*)(void))py_conv, METH_FASTCALL, conv_doc},
    {"int8_grad_weight", (PyCFunction)(void (*)(void))py_grad_weight, METH_FASTCALL, grad_weight_doc},
    {NULL, NULL, 0, NULL},
};
