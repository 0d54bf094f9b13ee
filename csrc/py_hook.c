// ropebend._native.Hook: hook.h for Python.

#include "hook.h"
#include "module.h"

#include <stdlib.h>

typedef struct {
    PyObject_HEAD struct ropebend_hook hook;
} HookObject;

static struct ropebend_hook * of(PyObject * obj) {
    return &((HookObject *) obj)->hook;
}

static PyObject * hook_new(PyTypeObject * type, PyObject * args, PyObject * kwargs) {
    static char * names[] = { "n_layer", NULL };
    unsigned int  n_layer;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I", names, &n_layer) || !ropebend_is_ready()) {
        return NULL;
    }
    if (n_layer == 0 || n_layer > 1000000) {
        PyErr_Format(PyExc_ValueError, "n_layer: expected 1 to 1000000, got %u", n_layer);
        return NULL;
    }
    const allocfunc alloc = (allocfunc) PyType_GetSlot(type, Py_tp_alloc);
    PyObject *      self  = alloc(type, 0);
    if (self != NULL && !ropebend_hook_init(of(self), &ropebend_native.layout, n_layer)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return self;
}

static void hook_dealloc(PyObject * obj) {
    PyTypeObject * type    = Py_TYPE(obj);
    const freefunc release = (freefunc) PyType_GetSlot(type, Py_tp_free);
    ropebend_hook_free(of(obj));
    release(obj);
    Py_DECREF(type);
}

PyDoc_STRVAR(hook_set_plan_doc,
             "set_plan(stretch, base_stretch, attn_factor, yarn_factor, yarn_n_ctx_orig)\n--\n\n"
             "Apply this plan from the next graph on. The first three: n_layer float32 each, as bytes.\n"
             "Raises ValueError if there are more or fewer.");

static PyObject * hook_set_plan(PyObject * obj, PyObject * args) {
    struct ropebend_hook * hook = of(obj);
    const char *           row[3];
    Py_ssize_t             size[3];
    float                  yarn_factor;
    int                    yarn_n_ctx_orig;
    if (!PyArg_ParseTuple(args, "y#y#y#fi", &row[0], &size[0], &row[1], &size[1], &row[2], &size[2], &yarn_factor,
                          &yarn_n_ctx_orig)) {
        return NULL;
    }
    const uint32_t n = hook->plan.n_layer; // never changes
    for (int i = 0; i < 3; i++) {
        if (size[i] != (Py_ssize_t) (n * sizeof(float))) {
            return PyErr_Format(PyExc_ValueError, "expected three rows of %u float32", n);
        }
    }
    struct ropebend_plan_layer * layers = malloc(n * sizeof(*layers));
    if (layers == NULL) {
        return PyErr_NoMemory();
    }
    for (uint32_t i = 0; i < n; i++) {
        memcpy(&layers[i].stretch, row[0] + i * sizeof(float), sizeof(float));
        memcpy(&layers[i].base_stretch, row[1] + i * sizeof(float), sizeof(float));
        memcpy(&layers[i].attn_factor, row[2] + i * sizeof(float), sizeof(float));
    }
    ropebend_hook_set_plan(hook, layers, yarn_factor, yarn_n_ctx_orig);
    free(layers);
    Py_RETURN_NONE;
}

static PyObject * hook_clear_plan(PyObject * obj, PyObject * Py_UNUSED(ignored)) {
    ropebend_hook_clear_plan(of(obj));
    Py_RETURN_NONE;
}

static PyObject * hook_reset_counts(PyObject * obj, PyObject * Py_UNUSED(ignored)) {
    ropebend_hook_reset_counts(of(obj));
    Py_RETURN_NONE;
}

static PyObject * counts(struct ropebend_hook * hook, bool shift) {
    const uint32_t n      = hook->plan.n_layer;
    uint32_t *     n_seen = malloc(n * sizeof(*n_seen));
    if (n_seen == NULL) {
        return PyErr_NoMemory();
    }
    ropebend_hook_get_counts(hook, shift, n_seen);
    PyObject * list = PyList_New(n);
    for (uint32_t i = 0; list != NULL && i < n; i++) {
        PyObject * count = PyLong_FromUnsignedLong(n_seen[i]);
        if (count == NULL || PyList_SetItem(list, i, count) != 0) {
            Py_CLEAR(list);
        }
    }
    free(n_seen);
    return list;
}

static PyObject * hook_get_n_qk(PyObject * obj, void * Py_UNUSED(closure)) {
    return counts(of(obj), false);
}

static PyObject * hook_get_n_shift(PyObject * obj, void * Py_UNUSED(closure)) {
    return counts(of(obj), true);
}

static PyObject * hook_get_problem(PyObject * obj, void * Py_UNUSED(closure)) {
    char problem[ROPEBEND_HOOK_PROBLEM];
    if (!ropebend_hook_get_problem(of(obj), problem)) {
        Py_RETURN_NONE;
    }
    return PyUnicode_DecodeUTF8(problem, (Py_ssize_t) strlen(problem), "replace");
}

static PyObject * hook_get_cb_eval(PyObject * Py_UNUSED(obj), void * Py_UNUSED(closure)) {
    bool (*fn)(struct ggml_tensor *, bool, void *) = ropebend_hook_cb_eval;
    void * address;
    memcpy(&address, &fn, sizeof(address));
    return PyLong_FromVoidPtr(address);
}

static PyObject * hook_get_user_data(PyObject * obj, void * Py_UNUSED(closure)) {
    return PyLong_FromVoidPtr(of(obj));
}

static PyMethodDef hook_methods[] = {
    { "set_plan", hook_set_plan, METH_VARARGS, hook_set_plan_doc },
    { "clear_plan", hook_clear_plan, METH_NOARGS, "Stop applying a plan; patched nodes get their own values back." },
    { "reset_counts", hook_reset_counts, METH_NOARGS, "Forget the nodes seen so far, and the problem." },
    { NULL, NULL, 0, NULL },
};

static PyGetSetDef hook_getset[] = {
    { "n_qk", hook_get_n_qk, NULL, "Rope nodes of Q and K seen per layer since reset_counts: list[int].", NULL },
    { "n_shift", hook_get_n_shift, NULL, "Rope nodes over the K cache seen per layer: list[int].", NULL },
    { "problem", hook_get_problem, NULL, "The first rope node that could not be patched, as text, or None.", NULL },
    { "cb_eval", hook_get_cb_eval, NULL, "Address for llama_context_params.cb_eval.", NULL },
    { "user_data", hook_get_user_data, NULL, "Address for cb_eval_user_data; keep the Hook alive.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

PyDoc_STRVAR(hook_doc, "Hook(n_layer)\n--\n\n"
                       "Per-context state of the callback that patches rope nodes with the current plan.");

static PyType_Slot hook_slots[] = {
    { Py_tp_doc, (void *) hook_doc }, { Py_tp_new, (void *) hook_new }, { Py_tp_dealloc, (void *) hook_dealloc },
    { Py_tp_methods, hook_methods },  { Py_tp_getset, hook_getset },    { 0, NULL },
};

PyType_Spec ropebend_hook_spec = {
    .name      = "ropebend._native.Hook",
    .basicsize = sizeof(HookObject),
    .flags     = Py_TPFLAGS_DEFAULT,
    .slots     = hook_slots,
};
