// ropebend._native.read_metadata: the metadata of a GGUF as Python values.

#include "gguf_metadata.h"
#include "module.h"

static PyObject * scalar(int type, const char * data) {
    union {
        uint8_t  u8;
        int8_t   i8;
        uint16_t u16;
        int16_t  i16;
        uint32_t u32;
        int32_t  i32;
        uint64_t u64;
        int64_t  i64;
        float    f32;
        double   f64;
    } v;
    memcpy(&v, data, ropebend_gguf_size((unsigned) type));
    switch (type) {
        case ROPEBEND_GGUF_U8: return PyLong_FromLong(v.u8);
        case ROPEBEND_GGUF_I8: return PyLong_FromLong(v.i8);
        case ROPEBEND_GGUF_U16: return PyLong_FromLong(v.u16);
        case ROPEBEND_GGUF_I16: return PyLong_FromLong(v.i16);
        case ROPEBEND_GGUF_U32: return PyLong_FromUnsignedLong(v.u32);
        case ROPEBEND_GGUF_I32: return PyLong_FromLong(v.i32);
        case ROPEBEND_GGUF_U64: return PyLong_FromUnsignedLongLong(v.u64);
        case ROPEBEND_GGUF_I64: return PyLong_FromLongLong(v.i64);
        case ROPEBEND_GGUF_F32: return PyFloat_FromDouble((double) v.f32);
        case ROPEBEND_GGUF_F64: return PyFloat_FromDouble(v.f64);
        case ROPEBEND_GGUF_BOOL: return PyBool_FromLong(v.i8 != 0);
        case ROPEBEND_GGUF_STR: return PyUnicode_DecodeUTF8(data, (Py_ssize_t) strlen(data), "replace");
        default: return PyErr_Format(PyExc_ValueError, "unknown GGUF value type %d", type);
    }
}

static PyObject * to_python(const struct ropebend_metadata_value * value) {
    if (!value->array) {
        return scalar(value->type, value->data);
    }
    const size_t size = ropebend_gguf_size((unsigned) value->type);
    PyObject *   list = PyList_New((Py_ssize_t) value->n);
    for (size_t i = 0; list != NULL && i < value->n; i++) {
        PyObject * item = scalar(value->type, (const char *) value->data + i * size);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t) i, item) != 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

const char ropebend_read_metadata_doc[] =
    "read_metadata(path)\n--\n\n"
    "All metadata of a GGUF file but arrays of strings and arrays: dict of key to Python value.\n"
    "Returns None if llama.cpp's reader refuses the file (it logs why). Tensors are not read.";

PyObject * ropebend_read_metadata(PyObject * Py_UNUSED(module), PyObject * args) {
    PyObject * path = NULL;
    if (!PyArg_ParseTuple(args, "O&", PyUnicode_FSConverter, &path)) {
        return NULL;
    }
    if (!ropebend_is_ready()) {
        Py_DECREF(path);
        return NULL;
    }
    // the GIL stays: the reader may log, and the log callback is Python's
    const struct ropebend_ggml_api * api  = &ropebend_native.api;
    struct gguf_context *            gguf = api->gguf_init_from_file(PyBytes_AsString(path),
                                                                     (struct gguf_init_params) { true, NULL });
    Py_DECREF(path);
    if (gguf == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *    dict = PyDict_New();
    const int64_t n    = api->gguf_get_n_kv(gguf);
    for (int64_t i = 0; dict != NULL && i < n; i++) {
        const char *                   key = api->gguf_get_key(gguf, i);
        struct ropebend_metadata_value value;
        if (ropebend_metadata_get(api, gguf, key, &value) != ROPEBEND_METADATA_FOUND) {
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
    api->gguf_free(gguf);
    return dict;
}
