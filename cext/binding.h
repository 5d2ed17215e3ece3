/* What the files that know Python share. */
#ifndef FLOWER_EDGE_BINDING_H
#define FLOWER_EDGE_BINDING_H

#define Py_LIMITED_API 0x030B0000
#include <Python.h>

/* What runs once a call had better be small. */
#pragma GCC optimize("Os")

#include "conv.h"
#include "cpu.h"
#include "range_evonorm/range_evonorm.h"

/* Reads the name of an instruction set; -1 with an exception if this CPU lacks it. */
int fe_as_isa(PyObject *object, fe_isa *isa);

/* 0 with an exception where the numbers differ. */
int fe_has_arguments(const char *function, Py_ssize_t received, Py_ssize_t expected);

/* None, or NULL with an exception for what a kernel returned: -1 is lack of memory, else an error of the thread pool. */
PyObject *fe_as_none(int error);

/* Writes an address to the pointer at `address`; it may be NULL, that is 0, only where `optional`. -1 with an exception. */
int fe_read_address(PyObject *object, const char *name, int optional, void *address);

/* Read a number of elements that fits into memory, and a byte; -1 with an exception. */
int fe_read_length(PyObject *object, int64_t *length);
int fe_read_byte(PyObject *object, int *byte);

/* images, inputs, outputs, height, width, then kernel, stride, padding and dilation along both axes, and groups. */
enum { FE_CONV_NUMBERS = 14 };

/* Reads the numbers of a convolution, whatever they are; -1 with an exception. */
int fe_read_conv(PyObject *const *args, fe_conv *conv);

/* The same, and ValueError where they are none of a convolution in 8 bits. */
int fe_read_int8_conv(PyObject *const *args, fe_conv *conv);

/* weight, bias, v, then samples, pixels, channels, groups, factor, eps. */
enum { FE_NORM_ARGUMENTS = 9 };

/* Reads a norm; -1 with an exception. */
int fe_read_norm(PyObject *const *args, fe_range_evonorm *norm);

/* As fe_as_none; FloatingPointError where something was not finite. */
PyObject *fe_as_none_if_finite(int error);

/* The functions of the families that have a file of their own, up to a sentinel. */
extern PyMethodDef fe_batch_norm_methods[], fe_byte_sums_methods[], fe_chain_methods[], fe_gradient_filter_methods[], fe_int8_methods[],
    fe_range_evonorm_methods[], fe_sparse_grad_methods[], fe_spectrum_methods[], fe_workspace_methods[];

#endif
