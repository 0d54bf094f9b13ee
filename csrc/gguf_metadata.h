// Reads single metadata values of a GGUF file through llama.cpp's own reader, without loading tensors.

#ifndef ROPEBEND_GGUF_METADATA_H
#define ROPEBEND_GGUF_METADATA_H

#include "ggml_layout.h"

// gguf_type in gguf.h; part of the file format, so it never changes
enum gguf_metadata_type {
    GGUF_U8 = 0, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STR, GGUF_ARR,
    GGUF_U64, GGUF_I64, GGUF_F64,
};

struct gguf_metadata_value {
    int          type;  // element type: a scalar, or GGUF_STR
    bool         array;
    size_t       n;     // elements; 1 unless array
    const void * data;  // n values, or for GGUF_STR a NUL-terminated string
};

enum gguf_metadata_found { GGUF_METADATA_FOUND, GGUF_METADATA_ABSENT, GGUF_METADATA_UNREADABLE };

// Value of `key`. UNREADABLE: an array of strings or of arrays, which no key of interest is.
enum gguf_metadata_found gguf_metadata_get(const struct ggml_api * api, const struct gguf_context * gguf,
                                           const char * key, struct gguf_metadata_value * value);

#endif
