// What the parts of the extension module share.

#ifndef ROPEBEND_MODULE_H
#define ROPEBEND_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ggml_layout.h"

// The llama.cpp of this process. Filled once, under the GIL, by init().
struct ropebend_native {
    struct ropebend_ggml_api api;
    struct ropebend_layout   layout;
    bool                     ready;
};

extern struct ropebend_native ropebend_native;

// false: init() has not been called, and a RuntimeError says so
bool ropebend_is_ready(void);

extern PyType_Spec ropebend_hook_spec; // Hook; py_hook.c

PyObject * ropebend_read_metadata(PyObject * module, PyObject * args); // py_metadata.c
PyObject * ropebend_tokenize(PyObject * module, PyObject * args);      // py_tokenize.c

extern const char ropebend_read_metadata_doc[];
extern const char ropebend_tokenize_doc[];

#endif
