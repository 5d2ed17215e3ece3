/* The extension flower_edge._kernels: this file and the bind_*.c beside it are the only ones here that know Python.
 *
 * It takes raw addresses and lengths. flower_edge/kernels checks shapes, types and aliasing before it calls; here only
 * what could overflow or be NULL is checked. */
#include "binding.h"

#include "batch_norm/batch_norm.h"
#include "byte_sums/byte_sums.h"
#include "cpu.h"
#include "gradient_filter/gradient_filter.h"
#include "int8/int8.h"
#include "mix/mix.h"
#include "parallel.h"
#include "range_evonorm/range_evonorm.h"
#include "sign_bits/sign_bits.h"
#include "sparse_grad/sparse_grad.h"
#include "spectrum/spectrum.h"

#include <string.h>

/* Every kernel family, so that Python can report which version of each one runs. */
static const struct {
    const char *name;
    fe_isa (*isa)(fe_isa ceiling);
} families[] = {
    {"mix", fe_mix_isa},
    {"gradient_filter", fe_gradient_filter_isa},
    {"sign_bits", fe_sign_bits_isa},
    {"spectrum", fe_spectrum_isa},
    {"range_evonorm", fe_range_evonorm_isa},
    {"byte_sums", fe_byte_sums_isa},
    {"int8", fe_int8_isa},
    {"sparse_grad", fe_sparse_grad_isa},
    {"batch_norm", fe_batch_norm_isa},
};

int fe_as_isa(PyObject *object, fe_isa *isa) {
    char message[256];
    const char *name = PyUnicode_AsUTF8AndSize(object, NULL);
    if (!name)
        return -1;
    if (fe_isa_parse(name, isa, message, sizeof message) == 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, message);
    return -1;
}

int fe_has_arguments(const char *function, Py_ssize_t received, Py_ssize_t expected) {
    if (received == expected)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, received %zd", function, expected, received);
    return 0;
}

int fe_read_address(PyObject *object, const char *name, int optional, void *address) {
    void *value = PyLong_AsVoidPtr(object);
    if (PyErr_Occurred())
        return -1;
    if (!value && !optional) {
        PyErr_Format(PyExc_ValueError, "the address of %s is null", name);
        return -1;
    }
    memcpy(address, &value, sizeof value);
    return 0;
}

int fe_read_length(PyObject *object, int64_t *length) {
    *length = PyLong_AsLongLong(object);
    if (PyErr_Occurred())
        return -1;
    if (*length >= 0 && *length <= INT64_MAX / 16)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a length must be a number of elements that fits into memory");
    return -1;
}

int fe_read_byte(PyObject *object, int *byte) {
    long value = PyLong_AsLong(object);
    if (PyErr_Occurred())
        return -1;
    *byte = (int)value;
    if (value >= 0 && value <= 255)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a byte must be from 0 to 255");
    return -1;
}

int fe_read_conv(PyObject *const *args, fe_conv *conv) {
    int64_t numbers[FE_CONV_NUMBERS];
    for (int i = 0; i < FE_CONV_NUMBERS; i++)
        numbers[i] = PyLong_AsLongLong(args[i]);
    if (PyErr_Occurred())
        return -1;
    *conv = (fe_conv){
        .images = numbers[0],
        .inputs = numbers[1],
        .outputs = numbers[2],
        .height = numbers[3],
        .width = numbers[4],
        .kernel = {numbers[5], numbers[6]},
        .stride = {numbers[7], numbers[8]},
        .padding = {numbers[9], numbers[10]},
        .dilation = {numbers[11], numbers[12]},
        .groups = numbers[13],
    };
    return 0;
}

PyDoc_STRVAR(mix_doc, "mix(isa, out, length, vectors, weights)\n\n"
                      "out = sum of weights[j] * vectors[j] over float32 vectors, given by their addresses.");

static int read_rows(PyObject *addresses, PyObject *numbers, Py_ssize_t count, const fe_float **rows, float *weights) {
    for (Py_ssize_t k = 0; k < count; k++) {
        rows[k] = PyLong_AsVoidPtr(PyTuple_GetItem(addresses, k));
        if (!rows[k]) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "vectors[%zd] is a null pointer", k);
            return -1;
        }
        weights[k] = (float)PyFloat_AsDouble(PyTuple_GetItem(numbers, k));
        if (PyErr_Occurred())
            return -1;
    }
    return 0;
}

static PyObject *py_mix(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    if (!fe_has_arguments("mix", nargs, 5) || fe_as_isa(args[0], &isa) < 0)
        return NULL;
    fe_float *out = PyLong_AsVoidPtr(args[1]);
    Py_ssize_t length = PyLong_AsSsize_t(args[2]);
    Py_ssize_t count = PyTuple_Size(args[3]);
    if (PyErr_Occurred())
        return NULL;
    if (!out || length < 0 || length > PY_SSIZE_T_MAX / (Py_ssize_t)sizeof *out || count < 1 ||
        PyTuple_Size(args[4]) != count) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "mix needs an address for out, a length that fits into memory, and as many "
                                              "weights as vectors, at least one");
        return NULL;
    }
    const fe_float **rows = PyMem_Malloc((size_t)count * sizeof *rows);
    float *weights = PyMem_Malloc((size_t)count * sizeof *weights);
    PyObject *result = NULL;
    if (!rows || !weights) {
        PyErr_NoMemory();
    } else if (read_rows(args[3], args[4], count, rows, weights) == 0) {
        int error;
        Py_BEGIN_ALLOW_THREADS
        error = fe_mix(isa, out, rows, weights, (size_t)count, (size_t)length);
        Py_END_ALLOW_THREADS
        if (error)
            PyErr_Format(PyExc_RuntimeError, "torch_parallel_for failed with error %d; out is not valid", error);
        else
            result = Py_NewRef(Py_None);
    }
    PyMem_Free(rows);
    PyMem_Free(weights);
    return result;
}

/* Whether a kernel may touch `length` floats at addresses of which none is NULL. */
static int as_floats(const char *function, int addresses, Py_ssize_t length) {
    if (addresses && length >= 0 && length <= PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(float))
        return 1;
    PyErr_Format(PyExc_ValueError, "%s needs addresses that are not null and a length that fits into memory, received %zd",
                 function, length);
    return 0;
}

PyObject *fe_as_none(int error) {
    if (!error)
        return Py_NewRef(Py_None);
    if (error == -1)
        return PyErr_NoMemory();
    return PyErr_Format(PyExc_RuntimeError, "torch_parallel_for failed with error %d; the result is not valid", error);
}

PyDoc_STRVAR(relu_bits_doc, "relu_bits(isa, out, bits, x, length, cap)\n\n"
                            "float32 out = x cut to [0, cap], and a bit for each element: whether its gradient passes.");

static PyObject *py_relu_bits(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    if (!fe_has_arguments("relu_bits", nargs, 6) || fe_as_isa(args[0], &isa) < 0)
        return NULL;
    fe_float *out = PyLong_AsVoidPtr(args[1]);
    uint8_t *bits = PyLong_AsVoidPtr(args[2]);
    const fe_float *x = PyLong_AsVoidPtr(args[3]);
    Py_ssize_t length = PyLong_AsSsize_t(args[4]);
    float cap = (float)PyFloat_AsDouble(args[5]);
    if (PyErr_Occurred() || !as_floats("relu_bits", out && bits && x, length))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_relu_bits(isa, out, bits, x, (size_t)length, cap);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(mask_by_bits_doc, "mask_by_bits(isa, out, x, bits, length)\n\n"
                               "float32 out = x where the element's bit is set, else 0.");

static PyObject *py_mask_by_bits(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa isa;
    if (!fe_has_arguments("mask_by_bits", nargs, 5) || fe_as_isa(args[0], &isa) < 0)
        return NULL;
    fe_float *out = PyLong_AsVoidPtr(args[1]);
    const fe_float *x = PyLong_AsVoidPtr(args[2]);
    const uint8_t *bits = PyLong_AsVoidPtr(args[3]);
    Py_ssize_t length = PyLong_AsSsize_t(args[4]);
    if (PyErr_Occurred() || !as_floats("mask_by_bits", out && x && bits, length))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = fe_mask_by_bits(isa, out, x, bits, (size_t)length);
    Py_END_ALLOW_THREADS
    return fe_as_none(error);
}

PyDoc_STRVAR(available_isas_doc, "available_isas()\n\nNames of the instruction sets that this CPU has, worst first.");

static PyObject *py_available_isas(PyObject *module, PyObject *Py_UNUSED(none)) {
    (void)module;
    PyObject *names = PyList_New(0);
    for (int isa = 0; names && isa < FE_ISA_COUNT; isa++) {
        if (!fe_isa_available((fe_isa)isa))
            continue;
        PyObject *name = PyUnicode_FromString(fe_isa_name((fe_isa)isa));
        if (!name || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyDoc_STRVAR(ceiling_doc, "ceiling()\n\nName of the best instruction set, or of the one that FLOWER_EDGE_ISA names.");

static PyObject *py_ceiling(PyObject *module, PyObject *Py_UNUSED(none)) {
    (void)module;
    fe_isa isa;
    char message[384];
    if (fe_isa_ceiling(&isa, message, sizeof message) == 0)
        return PyUnicode_FromString(fe_isa_name(isa));
    PyErr_SetString(PyExc_ValueError, message);
    return NULL;
}

PyDoc_STRVAR(dispatch_doc, "dispatch(isa)\n\nFor each kernel family, the version that runs under this ceiling.");

static PyObject *py_dispatch(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    fe_isa ceiling;
    if (!fe_has_arguments("dispatch", nargs, 1) || fe_as_isa(args[0], &ceiling) < 0)
        return NULL;
    PyObject *chosen = PyDict_New();
    for (size_t family = 0; chosen && family < sizeof families / sizeof *families; family++) {
        PyObject *name = PyUnicode_FromString(fe_isa_name(families[family].isa(ceiling)));
        if (!name || PyDict_SetItemString(chosen, families[family].name, name) < 0)
            Py_CLEAR(chosen);
        Py_XDECREF(name);
    }
    return chosen;
}

PyDoc_STRVAR(cpu_features_doc, "cpu_features()\n\nThe features of this CPU that kernels care about, as one line.");

static PyObject *py_cpu_features(PyObject *module, PyObject *Py_UNUSED(none)) {
    (void)module;
    char text[256];
    fe_cpu_features(text, sizeof text);
    return PyUnicode_FromString(text);
}

PyDoc_STRVAR(set_parallel_for_doc, "set_parallel_for(address)\n\n"
                                   "Run loops through libtorch's torch_parallel_for at this address; 0: one thread.");

static PyObject *py_set_parallel_for(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    if (!fe_has_arguments("set_parallel_for", nargs, 1))
        return NULL;
    void *address = PyLong_AsVoidPtr(args[0]);
    if (PyErr_Occurred())
        return NULL;
    fe_set_parallel_for((fe_parallel_for_fn)(uintptr_t)address);
    return Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"mix", (PyCFunction)(void (*)(void))py_mix, METH_FASTCALL, mix_doc},
    {"relu_bits", (PyCFunction)(void (*)(void))py_relu_bits, METH_FASTCALL, relu_bits_doc},
    {"mask_by_bits", (PyCFunction)(void (*)(void))py_mask_by_bits, METH_FASTCALL, mask_by_bits_doc},
    {"available_isas", py_available_isas, METH_NOARGS, available_isas_doc},
    {"ceiling", py_ceiling, METH_NOARGS, ceiling_doc},
    {"dispatch", (PyCFunction)(void (*)(void))py_dispatch, METH_FASTCALL, dispatch_doc},
    {"cpu_features", py_cpu_features, METH_NOARGS, cpu_features_doc},
    {"set_parallel_for", (PyCFunction)(void (*)(void))py_set_parallel_for, METH_FASTCALL, set_parallel_for_doc},
    {NULL, NULL, 0, NULL},
};

static int add_families(PyObject *module) {
    PyMethodDef *const methods_of[] = {fe_batch_norm_methods, fe_byte_sums_methods, fe_chain_methods, fe_gradient_filter_methods,
                                       fe_int8_methods, fe_range_evonorm_methods, fe_sparse_grad_methods, fe_spectrum_methods,
                                       fe_workspace_methods};
    for (size_t i = 0; i < sizeof methods_of / sizeof *methods_of; i++)
        if (PyModule_AddFunctions(module, methods_of[i]) < 0)
            return -1;
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)add_families}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "flower_edge._kernels",
    .m_doc = "Kernels in C, chosen at run time by CPU. Use flower_edge.kernels, which checks its arguments.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
