/* Python's way to cext/workspace: memory as DLPack capsules, which torch makes tensors of. */
#include "binding.h"

#include "workspace/workspace.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* DLPack's stable ABI before version 1, https://dmlc.github.io/dlpack: what a capsule named "dltensor" points to. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t dimensions;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

/* As many as torch's tensors may have. */
enum { DL_CPU = 1, DL_UINT = 1, DL_FLOAT = 2, MOST_DIMENSIONS = 64 };

/* It lies behind the elements, in the same block: one block is all that a tensor costs. */
typedef struct {
    dl_managed managed;
    int64_t shape_and_strides[];
} lease;

typedef struct {
    int dimensions;
    int64_t count, shape[MOST_DIMENSIONS], strides[MOST_DIMENSIONS];
} layout;

static void end_lease(dl_managed *self) { fe_workspace_give(self->context); }

/* A capsule that nobody made a tensor of keeps its name. */
static void drop_capsule(PyObject *capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor"))
        return;
    dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
    managed->deleter(managed);
}

/* Whether elements fill a range of memory, each once, in whatever order of the dimensions. */
static int is_gapless(const layout *of) {
    int64_t length = 1;
    for (int found = 1; found;) {
        found = 0;
        for (int k = 0; k < of->dimensions && !found; k++)
            if (of->shape[k] != 1 && of->strides[k] == length) {
                length *= of->shape[k];
                found = 1;
            }
    }
    return length == of->count;
}

/* Reads shape and strides; -1 with an exception where an element would lie beyond the others. */
static int read_layout(PyObject *shape, PyObject *strides, layout *to) {
    const Py_ssize_t dimensions = PyTuple_Size(shape);
    if (dimensions < 0 || PyTuple_Size(strides) < 0)
        return -1;
    if (dimensions > MOST_DIMENSIONS || PyTuple_Size(strides) != dimensions) {
        PyErr_Format(PyExc_ValueError, "shape %S has strides %S, expected as many, at most %d", shape, strides, (int)MOST_DIMENSIONS);
        return -1;
    }
    to->dimensions = (int)dimensions;
    to->count = 1;
    for (Py_ssize_t k = 0; k < dimensions; k++) {
        to->shape[k] = PyLong_AsLongLong(PyTuple_GetItem(shape, k));
        to->strides[k] = PyLong_AsLongLong(PyTuple_GetItem(strides, k));
        if (PyErr_Occurred())
            return -1;
        if (to->shape[k] < 0 || __builtin_mul_overflow(to->count, to->shape[k], &to->count) || to->count > INT64_MAX / 16) {
            PyErr_Format(PyExc_ValueError, "shape %S does not fit into memory", shape);
            return -1;
        }
    }
    if (to->count == 0 || is_gapless(to))
        return 0;
    PyErr_Format(PyExc_ValueError, "shape %S has strides %S, expected such as fill memory without gaps", shape, strides);
    return -1;
}

static dl_managed *lend(const layout *as, int itemsize) {
    const size_t dimensions = (size_t)as->dimensions, row = dimensions * sizeof(int64_t);
    const int64_t bytes = (as->count * itemsize + 63) / 64 * 64;
    char *memory = fe_workspace_take(bytes + (int64_t)(sizeof(lease) + 2 * row));
    if (!memory)
        return NULL;
    lease *made = (lease *)(void *)(memory + bytes);
    memcpy(made->shape_and_strides, as->shape, row);
    memcpy(made->shape_and_strides + dimensions, as->strides, row);
    made->managed = (dl_managed){
        .tensor =
            {
                .data = memory,
                .device = {.type = DL_CPU},
                .dimensions = as->dimensions,
                .dtype = {.code = itemsize == 1 ? DL_UINT : DL_FLOAT, .bits = (uint8_t)(8 * itemsize), .lanes = 1},
                .shape = made->shape_and_strides,
                .strides = made->shape_and_strides + dimensions,
            },
        .context = memory,
        .deleter = end_lease,
    };
    return &made->managed;
}

PyDoc_STRVAR(lend_doc, "workspace_lend(itemsize, shape, strides)\n\n"
                       "A DLPack capsule of uint8 or float32 on the CPU, whose values are not set.");

static PyObject *py_lend(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    if (!fe_has_arguments("workspace_lend", nargs, 3))
        return NULL;
    const long itemsize = PyLong_AsLong(args[0]);
    if (PyErr_Occurred())
        return NULL;
    if (itemsize != 1 && itemsize != 4) {
        PyErr_Format(PyExc_ValueError, "elements have %ld bytes, expected 1 or 4", itemsize);
        return NULL;
    }
    layout wanted;
    if (read_layout(args[1], args[2], &wanted) < 0)
        return NULL;
    dl_managed *lent = lend(&wanted, (int)itemsize);
    if (!lent)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(lent, "dltensor", drop_capsule);
    if (!capsule)
        end_lease(lent);
    return capsule;
}

PyDoc_STRVAR(release_doc, "workspace_release()\n\nFree what waits to be lent; how many bytes that were.");

static PyObject *py_release(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLongLong(fe_workspace_release());
}

PyDoc_STRVAR(limit_doc, "workspace_set_limit(bytes)\n\nHow many bytes may wait to be lent.");

static PyObject *py_set_limit(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    if (!fe_has_arguments("workspace_set_limit", nargs, 1))
        return NULL;
    const int64_t bytes = PyLong_AsLongLong(args[0]);
    if (PyErr_Occurred())
        return NULL;
    if (bytes < 0) {
        PyErr_Format(PyExc_ValueError, "the limit is %lld bytes, expected 0 or more", (long long)bytes);
        return NULL;
    }
    fe_workspace_set_limit(bytes);
    Py_INCREF(Py_None);
    return Py_None;
}

PyMethodDef fe_workspace_methods[] = {
    {"workspace_lend", (PyCFunction)(void (*)(void))py_lend, METH_FASTCALL, lend_doc},
    {"workspace_release", py_release, METH_NOARGS, release_doc},
    {"workspace_set_limit", (PyCFunction)(void (*)(void))py_set_limit, METH_FASTCALL, limit_doc},
    {NULL, NULL, 0, NULL},
};
