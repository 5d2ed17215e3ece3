/* Python's way to cext/byte_sums: raw addresses. */
#include "binding.h"

#include "byte_sums/byte_sums.h"

#include <math.h>
#include <stdint.h>

static int read_scale(PyObject *object, float *scale) {
    *scale = (float)PyFloat_AsDouble(object);
    if (PyErr_Occurred())
        return -1;
    if (isfinite(*scale))
        return 0;
    PyErr_SetString(PyExc_ValueError, "a scale must be finite");
    return -1;
}

/* Its address, its scale, and the byte that means 0. */
enum { MAP_ARGUMENTS = 3 };

static int read_map(PyObject *const *args, const char *name, fe_byte_map *map) {
    return fe_read_address(args[0], name, 0, &map->bytes) < 0 || read_scale(args[1], &map->scale) < 0 ||
                   fe_read_byte(args[2], &map->zero) < 0
               ? -1
               : 0;
}

PyDoc_STRVAR(ends_doc, "byte_sum_ends(isa, *x, *y, length)\n\nThe least and the greatest of x + y and of 0; maps are address, "
                       "scale and zero.");

static PyObject *py_ends(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    fe_byte_map x, y;
    int64_t count;
    float ends[2];
    if (!fe_has_arguments("byte_sum_ends", nargs, 2 + 2 * MAP_ARGUMENTS) || fe_as_isa(args[0], &isa) < 0 ||
        read_map(args + 1, "x", &x) < 0 || read_map(args + 4, "y", &y) < 0 || fe_read_length(args[7], &count) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_byte_sum_ends(isa, ends, &x, &y, count);
    Py_END_ALLOW_THREADS
    return error ? fe_as_none(error) : Py_BuildValue("(dd)", (double)ends[0], (double)ends[1]);
}

PyDoc_STRVAR(sum_doc, "byte_sum(isa, out, inverse, zero, *x, *y, length)\n\nBytes round((x + y) * inverse) + zero.");

static PyObject *py_sum(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    uint8_t *out;
    float inverse;
    int zero;
    fe_byte_map x, y;
    int64_t count;
    if (!fe_has_arguments("byte_sum", nargs, 5 + 2 * MAP_ARGUMENTS) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || read_scale(args[2], &inverse) < 0 || fe_read_byte(args[3], &zero) < 0 ||
        read_map(args + 4, "x", &x) < 0 || read_map(args + 7, "y", &y) < 0 || fe_read_length(args[10], &count) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_byte_sum(isa, out, inverse, zero, &x, &y, count);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(mask_doc, "mask_by_bytes(isa, out, grad, bytes, zero, length)\n\nfloat32 grad where bytes are above zero, else 0.");

static PyObject *py_mask(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    float *out;
    const float *grad;
    const uint8_t *bytes;
    int zero;
    int64_t count;
    if (!fe_has_arguments("mask_by_bytes", nargs, 6) || fe_as_isa(args[0], &isa) < 0 ||
        fe_read_address(args[1], "out", 0, &out) < 0 || fe_read_address(args[2], "grad", 0, &grad) < 0 ||
        fe_read_address(args[3], "bytes", 0, &bytes) < 0 || fe_read_byte(args[4], &zero) < 0 || fe_read_length(args[5], &count) < 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_mask_by_bytes(isa, out, grad, bytes, zero, count);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyMethodDef fe_byte_sums_methods[] = {
    {"byte_sum_ends", (PyCFunction)(void (*)(void))py_ends, METH_FASTCALL, ends_doc},
    {"byte_sum", (PyCFunction)(void (*)(void))py_sum, METH_FASTCALL, sum_doc},
    {"mask_by_bytes", (PyCFunction)(void (*)(void))py_mask, METH_FASTCALL, mask_doc},
    {NULL, NULL, 0, NULL},
};
