// ropebend._native: the C core for Python. Nothing here knows more than the core does; policy lives in plugin/.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "architectures.h"
#include "ggml_layout.h"
#include "gguf_metadata.h"
#include "rope_plan.h"

#include <pthread.h>

static struct ropebend_ggml_api api;
static struct ropebend_layout   layout;
static bool                     ready; // api and layout are filled; set once, under the GIL

// ------------------------------------------------------------------------------------------------ Hook

// What llama.cpp's scheduler calls for every node it is about to compute. Python holds the GIL when it changes the
// plan, the callback runs without it: hence the lock.
struct hook {
    pthread_mutex_t      lock;
    struct ropebend_plan plan;
    bool                 active;  // false: `plan` is not applied, patched nodes get their own values back
    uint32_t *           n_qk;    // [n_layer] rope nodes of Q and K seen since the last reset
    uint32_t *           n_shift; // [n_layer] rope nodes over the K cache seen since the last reset
    uint64_t             n_problem;
    char                 problem[192]; // the first one
};

static bool hook_cb_eval(struct ggml_tensor * node, bool ask, void * user_data) {
    struct hook * hook = user_data;
    if (!ask) {
        return true;
    }
    if (!ropebend_is_rope(&layout, node)) {
        return false; // nearly every node: no lock
    }
    pthread_mutex_lock(&hook->lock);
    uint32_t                   layer  = 0;
    enum ropebend_apply_result result = ropebend_plan_apply(hook->active ? &hook->plan : NULL, &layout, node, &layer);
    if ((result == ROPEBEND_APPLY_QK || result == ROPEBEND_APPLY_SHIFT) && layer >= hook->plan.n_layer) {
        result = ROPEBEND_APPLY_UNRESOLVED; // without an active plan the core does not know how many layers there are
    }
    const char * problem = ropebend_apply_problem(result);
    if (problem != NULL) {
        if (hook->n_problem++ == 0) {
            snprintf(hook->problem, sizeof(hook->problem), "rope node '%.64s' %s", ropebend_tensor_name(&layout, node),
                     problem);
        }
    } else {
        (result == ROPEBEND_APPLY_SHIFT ? hook->n_shift : hook->n_qk)[layer]++;
    }
    pthread_mutex_unlock(&hook->lock);
    return false; // never wait for a node: the whole graph is computed in one go
}

typedef struct {
    PyObject_HEAD struct hook hook;
} HookObject;

static PyObject * hook_new(PyTypeObject * type, PyObject * args, PyObject * kwargs) {
    static char * names[] = { "n_layer", NULL };
    unsigned int  n_layer;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I", names, &n_layer)) {
        return NULL;
    }
    if (!ready) {
        PyErr_SetString(PyExc_RuntimeError, "init() has not been called");
        return NULL;
    }
    if (n_layer == 0 || n_layer > 1000000) {
        PyErr_Format(PyExc_ValueError, "n_layer: expected 1 to 1000000, got %u", n_layer);
        return NULL;
    }
    HookObject * self = (HookObject *) type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    pthread_mutex_init(&self->hook.lock, NULL);
    self->hook.plan.n_layer = n_layer;
    self->hook.plan.layers  = PyMem_Calloc(n_layer, sizeof(struct ropebend_plan_layer));
    self->hook.n_qk         = PyMem_Calloc(n_layer, sizeof(uint32_t));
    self->hook.n_shift      = PyMem_Calloc(n_layer, sizeof(uint32_t));
    if (self->hook.plan.layers == NULL || self->hook.n_qk == NULL || self->hook.n_shift == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *) self;
}

static void hook_dealloc(PyObject * obj) {
    HookObject *   self = (HookObject *) obj;
    PyTypeObject * type = Py_TYPE(obj);
    pthread_mutex_destroy(&self->hook.lock);
    PyMem_Free(self->hook.plan.layers);
    PyMem_Free(self->hook.n_qk);
    PyMem_Free(self->hook.n_shift);
    type->tp_free(obj);
    Py_DECREF(type);
}

static bool is_f32_row(const Py_buffer * view, uint32_t n) {
    return view->itemsize == sizeof(float) && view->format != NULL && strcmp(view->format, "f") == 0 &&
           view->len == (Py_ssize_t) (n * sizeof(float));
}

PyDoc_STRVAR(hook_set_plan_doc,
             "set_plan(stretch, base_stretch, yarn_factor, yarn_n_ctx_orig)\n--\n\n"
             "Apply this plan from the next graph on. stretch, base_stretch: float32 buffers of shape [n_layer].\n"
             "Raises ValueError if a buffer has another shape or type.");

static PyObject * hook_set_plan(PyObject * obj, PyObject * args) {
    struct hook * hook = &((HookObject *) obj)->hook;
    PyObject *    arrays[2];
    float         yarn_factor;
    int           yarn_n_ctx_orig;
    if (!PyArg_ParseTuple(args, "OOfi", &arrays[0], &arrays[1], &yarn_factor, &yarn_n_ctx_orig)) {
        return NULL;
    }
    Py_buffer view[2];
    if (PyObject_GetBuffer(arrays[0], &view[0], PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(arrays[1], &view[1], PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
        PyBuffer_Release(&view[0]);
        return NULL;
    }
    const uint32_t n  = hook->plan.n_layer;
    const bool     ok = is_f32_row(&view[0], n) && is_f32_row(&view[1], n);
    if (ok) {
        pthread_mutex_lock(&hook->lock);
        for (uint32_t i = 0; i < n; i++) {
            hook->plan.layers[i].stretch      = ((const float *) view[0].buf)[i];
            hook->plan.layers[i].base_stretch = ((const float *) view[1].buf)[i];
        }
        hook->plan.yarn_factor     = yarn_factor;
        hook->plan.yarn_n_ctx_orig = yarn_n_ctx_orig;
        hook->active               = true;
        pthread_mutex_unlock(&hook->lock);
    }
    PyBuffer_Release(&view[0]);
    PyBuffer_Release(&view[1]);
    if (!ok) {
        PyErr_Format(PyExc_ValueError, "stretch, base_stretch: expected float32 buffers of %u elements", n);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject * hook_clear_plan(PyObject * obj, PyObject * Py_UNUSED(ignored)) {
    struct hook * hook = &((HookObject *) obj)->hook;
    pthread_mutex_lock(&hook->lock);
    hook->active = false;
    pthread_mutex_unlock(&hook->lock);
    Py_RETURN_NONE;
}

static PyObject * hook_reset_counts(PyObject * obj, PyObject * Py_UNUSED(ignored)) {
    struct hook * hook = &((HookObject *) obj)->hook;
    pthread_mutex_lock(&hook->lock);
    memset(hook->n_qk, 0, hook->plan.n_layer * sizeof(uint32_t));
    memset(hook->n_shift, 0, hook->plan.n_layer * sizeof(uint32_t));
    hook->n_problem  = 0;
    hook->problem[0] = '\0';
    pthread_mutex_unlock(&hook->lock);
    Py_RETURN_NONE;
}

static PyObject * counts(struct hook * hook, const uint32_t * n_seen) {
    PyObject * list = PyList_New(hook->plan.n_layer);
    for (uint32_t i = 0; list != NULL && i < hook->plan.n_layer; i++) {
        PyObject * n = PyLong_FromUnsignedLong(n_seen[i]);
        if (n == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, n);
        }
    }
    return list;
}

static PyObject * hook_get_n_qk(PyObject * obj, void * Py_UNUSED(closure)) {
    struct hook * hook = &((HookObject *) obj)->hook;
    return counts(hook, hook->n_qk);
}

static PyObject * hook_get_n_shift(PyObject * obj, void * Py_UNUSED(closure)) {
    struct hook * hook = &((HookObject *) obj)->hook;
    return counts(hook, hook->n_shift);
}

static PyObject * hook_get_problem(PyObject * obj, void * Py_UNUSED(closure)) {
    struct hook * hook = &((HookObject *) obj)->hook;
    if (hook->n_problem == 0) {
        Py_RETURN_NONE;
    }
    return PyUnicode_DecodeUTF8(hook->problem, (Py_ssize_t) strlen(hook->problem), "replace");
}

static PyObject * hook_get_cb_eval(PyObject * Py_UNUSED(obj), void * Py_UNUSED(closure)) {
    bool (*fn)(struct ggml_tensor *, bool, void *) = hook_cb_eval;
    void * address;
    memcpy(&address, &fn, sizeof(address));
    return PyLong_FromVoidPtr(address);
}

static PyObject * hook_get_user_data(PyObject * obj, void * Py_UNUSED(closure)) {
    return PyLong_FromVoidPtr(&((HookObject *) obj)->hook);
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
    { Py_tp_doc, (void *) hook_doc }, { Py_tp_new, hook_new },       { Py_tp_dealloc, hook_dealloc },
    { Py_tp_methods, hook_methods },  { Py_tp_getset, hook_getset }, { 0, NULL },
};

static PyType_Spec hook_spec = {
    .name      = "ropebend._native.Hook",
    .basicsize = sizeof(HookObject),
    .flags     = Py_TPFLAGS_DEFAULT,
    .slots     = hook_slots,
};

// ---------------------------------------------------------------------------------------------- module

static void * find_address(void * user, const char * name) {
    PyObject * address = PyDict_GetItemString((PyObject *) user, name); // borrowed
    return address == NULL ? NULL : PyLong_AsVoidPtr(address);
}

PyDoc_STRVAR(init_doc,
             "init(addresses)\n--\n\n"
             "Take llama.cpp's functions (name -> address, for every name in API) and find out its struct layout.\n"
             "Returns the layout: byte offsets and op codes. Raises RuntimeError if something does not check out.");

static PyObject * native_init(PyObject * Py_UNUSED(self), PyObject * args) {
    PyObject * addresses;
    if (!PyArg_ParseTuple(args, "O!", &PyDict_Type, &addresses)) {
        return NULL;
    }
    struct ropebend_ggml_api new_api;
    struct ropebend_layout   new_layout;
    const char *             missing = ropebend_ggml_api_load(&new_api, find_address, addresses);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (missing != NULL) {
        PyErr_Format(PyExc_RuntimeError, "llama.cpp exports no %s", missing);
        return NULL;
    }
    const char * problem = ropebend_layout_probe(&new_api, &new_layout);
    if (problem != NULL) {
        PyErr_Format(PyExc_RuntimeError, "layout probe: %s", problem);
        return NULL;
    }
    api    = new_api;
    layout = new_layout;
    ready  = true;
    return Py_BuildValue("{s:i,s:i,s:n,s:n,s:n,s:n,s:n}", "op_rope", layout.op_rope, "op_rope_back",
                         layout.op_rope_back, "ne", (Py_ssize_t) layout.ne, "op", (Py_ssize_t) layout.op, "op_params",
                         (Py_ssize_t) layout.op_params, "src", (Py_ssize_t) layout.src, "name",
                         (Py_ssize_t) layout.name);
}

PyDoc_STRVAR(
    node_layer_doc,
    "node_layer(address)\n--\n\n"
    "(layer, is_shift) of the rope node at this address: -1 if the layer cannot be told; is_shift: the node turns\n"
    "a K cache.");

static PyObject * native_node_layer(PyObject * Py_UNUSED(self), PyObject * args) {
    PyObject * number;
    if (!PyArg_ParseTuple(args, "O!", &PyLong_Type, &number)) {
        return NULL;
    }
    const struct ggml_tensor * node = PyLong_AsVoidPtr(number);
    if (node == NULL || !ready) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "expected the address of a node, after init()");
    }
    bool          is_shift;
    const int64_t layer = ropebend_rope_layer(&layout, node, &is_shift);
    return Py_BuildValue("LO", (long long) layer, is_shift ? Py_True : Py_False);
}

static PyObject * scalar(int type, const char * data) {
#define AS(ctype, make)              \
    {                                \
        ctype v;                     \
        memcpy(&v, data, sizeof(v)); \
        return make;                 \
    }
    switch (type) {
        case ROPEBEND_GGUF_U8: AS(uint8_t, PyLong_FromLong(v))
        case ROPEBEND_GGUF_I8: AS(int8_t, PyLong_FromLong(v))
        case ROPEBEND_GGUF_U16: AS(uint16_t, PyLong_FromLong(v))
        case ROPEBEND_GGUF_I16: AS(int16_t, PyLong_FromLong(v))
        case ROPEBEND_GGUF_U32: AS(uint32_t, PyLong_FromUnsignedLong(v))
        case ROPEBEND_GGUF_I32: AS(int32_t, PyLong_FromLong(v))
        case ROPEBEND_GGUF_U64: AS(uint64_t, PyLong_FromUnsignedLongLong(v))
        case ROPEBEND_GGUF_I64: AS(int64_t, PyLong_FromLongLong(v))
        case ROPEBEND_GGUF_F32: AS(float, PyFloat_FromDouble((double) v))
        case ROPEBEND_GGUF_F64: AS(double, PyFloat_FromDouble(v))
        case ROPEBEND_GGUF_BOOL: AS(int8_t, PyBool_FromLong(v != 0))
        case ROPEBEND_GGUF_STR: return PyUnicode_DecodeUTF8(data, (Py_ssize_t) strlen(data), "replace");
        default: PyErr_Format(PyExc_ValueError, "unknown GGUF value type %d", type); return NULL;
    }
#undef AS
}

static Py_ssize_t scalar_size(int type) {
    switch (type) {
        case ROPEBEND_GGUF_U8:
        case ROPEBEND_GGUF_I8:
        case ROPEBEND_GGUF_BOOL: return 1;
        case ROPEBEND_GGUF_U16:
        case ROPEBEND_GGUF_I16: return 2;
        case ROPEBEND_GGUF_U64:
        case ROPEBEND_GGUF_I64:
        case ROPEBEND_GGUF_F64: return 8;
        default: return 4;
    }
}

static PyObject * to_python(const struct ropebend_metadata_value * value) {
    if (!value->array) {
        return scalar(value->type, value->data);
    }
    PyObject * list = PyList_New((Py_ssize_t) value->n);
    for (size_t i = 0; list != NULL && i < value->n; i++) {
        PyObject * item = scalar(value->type, (const char *) value->data + (Py_ssize_t) i * scalar_size(value->type));
        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t) i, item);
        }
    }
    return list;
}

PyDoc_STRVAR(read_metadata_doc,
             "read_metadata(path)\n--\n\n"
             "All metadata of a GGUF file but arrays of strings and arrays: dict of key to Python value.\n"
             "Returns None if llama.cpp's reader refuses the file (it logs why). Tensors are not read.");

static PyObject * native_read_metadata(PyObject * Py_UNUSED(self), PyObject * args) {
    PyObject * path = NULL;
    if (!PyArg_ParseTuple(args, "O&", PyUnicode_FSConverter, &path)) {
        return NULL;
    }
    if (!ready) {
        Py_DECREF(path);
        PyErr_SetString(PyExc_RuntimeError, "init() has not been called");
        return NULL;
    }
    // the GIL stays: the reader may log, and the log callback is Python's
    struct gguf_context * gguf = api.gguf_init_from_file(PyBytes_AS_STRING(path),
                                                         (struct gguf_init_params) { true, NULL });
    Py_DECREF(path);
    if (gguf == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *    dict = PyDict_New();
    const int64_t n    = api.gguf_get_n_kv(gguf);
    for (int64_t i = 0; dict != NULL && i < n; i++) {
        const char *                   key = api.gguf_get_key(gguf, i);
        struct ropebend_metadata_value value;
        if (ropebend_metadata_get(&api, gguf, key, &value) != ROPEBEND_METADATA_FOUND) {
            continue;
        }
        PyObject * name = PyUnicode_DecodeUTF8(key, (Py_ssize_t) strlen(key), "replace");
        PyObject * item = name == NULL ? NULL : to_python(&value);
        if (item == NULL || PyDict_SetItem(dict, name, item) != 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(name);
        Py_XDECREF(item);
    }
    api.gguf_free(gguf);
    return dict;
}

// Add a NULL-terminated list of texts to the module, as a tuple.
static bool add_names(PyObject * module, const char * attribute, const char * const * list) {
    PyObject * names = PyList_New(0);
    for (int i = 0; names != NULL && list[i] != NULL; i++) {
        PyObject * name = PyUnicode_FromString(list[i]);
        if (name == NULL || PyList_Append(names, name) != 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(name);
    }
    PyObject * tuple = names == NULL ? NULL : PyList_AsTuple(names);
    const bool added = tuple != NULL && PyModule_AddObjectRef(module, attribute, tuple) == 0;
    Py_XDECREF(names);
    Py_XDECREF(tuple);
    return added;
}

static int native_exec(PyObject * module) {
    PyObject * hook  = PyType_FromSpec(&hook_spec);
    const bool added = hook != NULL && PyModule_AddObjectRef(module, "Hook", hook) == 0 &&
                       add_names(module, "API", ropebend_ggml_api_names) &&
                       add_names(module, "ARCHITECTURES_WITHOUT_ROPE", ropebend_architectures_without_rope) &&
                       add_names(module, "ARCHITECTURES_WITH_SHARED_KEYS", ropebend_architectures_with_shared_keys);
    Py_XDECREF(hook);
    return added ? 0 : -1;
}

static PyMethodDef native_methods[] = {
    { "init", native_init, METH_VARARGS, init_doc },
    { "node_layer", native_node_layer, METH_VARARGS, node_layer_doc },
    { "read_metadata", native_read_metadata, METH_VARARGS, read_metadata_doc },
    { NULL, NULL, 0, NULL },
};

static PyModuleDef_Slot native_slots[] = {
    { Py_mod_exec, native_exec },
    { 0, NULL },
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name    = "ropebend._native",
    .m_doc     = "C core of ropebend: layout probe, rope plan, graph callback, metadata reader.",
    .m_methods = native_methods,
    .m_slots   = native_slots,
};

PyMODINIT_FUNC PyInit__native(void) {
    return PyModuleDef_Init(&native_module);
}
