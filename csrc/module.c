// ropebend._native: the C core for Python. Nothing here knows more than the core does; policy lives in plugin/.

#include "module.h"

#include "architectures.h"
#include "rope_plan.h"

struct ropebend_native ropebend_native;

bool ropebend_is_ready(void) {
    if (!ropebend_native.ready) {
        PyErr_SetString(PyExc_RuntimeError, "init() has not been called");
    }
    return ropebend_native.ready;
}

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
    struct ropebend_native now     = { .ready = true };
    const char *           missing = ropebend_ggml_api_load(&now.api, find_address, addresses);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (missing != NULL) {
        PyErr_Format(PyExc_RuntimeError, "llama.cpp exports no %s", missing);
        return NULL;
    }
    const char * problem = ropebend_layout_probe(&now.api, &now.layout);
    if (problem != NULL) {
        PyErr_Format(PyExc_RuntimeError, "layout probe: %s", problem);
        return NULL;
    }
    ropebend_native                = now;
    const struct ropebend_layout l = now.layout;
    return Py_BuildValue("{s:i,s:i,s:n,s:n,s:n,s:n,s:n}", "op_rope", l.op_rope, "op_rope_back", l.op_rope_back, "ne",
                         (Py_ssize_t) l.ne, "op", (Py_ssize_t) l.op, "op_params", (Py_ssize_t) l.op_params, "src",
                         (Py_ssize_t) l.src, "name", (Py_ssize_t) l.name);
}

PyDoc_STRVAR(node_layer_doc,
             "node_layer(address)\n--\n\n"
             "(layer, is_shift) of the rope node at this address: -1 if the layer cannot be told; is_shift: the node\n"
             "turns a K cache.");

static PyObject * native_node_layer(PyObject * Py_UNUSED(self), PyObject * args) {
    PyObject * number;
    if (!PyArg_ParseTuple(args, "O!", &PyLong_Type, &number) || !ropebend_is_ready()) {
        return NULL;
    }
    const struct ggml_tensor * node = PyLong_AsVoidPtr(number);
    if (node == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "expected the address of a node");
    }
    bool          is_shift;
    const int64_t layer = ropebend_rope_layer(&ropebend_native.layout, node, &is_shift);
    return Py_BuildValue("LO", (long long) layer, is_shift ? Py_True : Py_False);
}

PyDoc_STRVAR(architecture_refusal_doc,
             "architecture_refusal(architecture)\n--\n\n"
             "Why layer scales cannot be applied to this general.architecture, to be read after its name, or None.");

static PyObject * native_architecture_refusal(PyObject * Py_UNUSED(self), PyObject * args) {
    const char * architecture;
    if (!PyArg_ParseTuple(args, "s", &architecture)) {
        return NULL;
    }
    return Py_BuildValue("z", ropebend_architecture_refusal(architecture));
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
    PyObject * hook  = PyType_FromSpec(&ropebend_hook_spec);
    const bool added = hook != NULL && PyModule_AddObjectRef(module, "Hook", hook) == 0 &&
                       add_names(module, "API", ropebend_ggml_api_names);
    Py_XDECREF(hook);
    return added ? 0 : -1;
}

static PyMethodDef native_methods[] = {
    { "init", native_init, METH_VARARGS, init_doc },
    { "architecture_refusal", native_architecture_refusal, METH_VARARGS, architecture_refusal_doc },
    { "node_layer", native_node_layer, METH_VARARGS, node_layer_doc },
    { "read_metadata", ropebend_read_metadata, METH_VARARGS, ropebend_read_metadata_doc },
    { "tokenize", ropebend_tokenize, METH_VARARGS, ropebend_tokenize_doc },
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
