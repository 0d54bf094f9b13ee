// Reads single metadata values of a GGUF file through llama.cpp's own reader, without loading tensors.

#ifndef ROPEBEND_GGUF_METADATA_H
#define ROPEBEND_GGUF_METADATA_H

#include "ggml_layout.h"
#include "gguf_types.h"

struct ropebend_metadata_value {
    int          type; // element type: a scalar, or ROPEBEND_GGUF_STR
    bool         array;
    size_t       n;    // elements; 1 unless array
    const void * data; // n values, or for a string a NUL-terminated string
};

enum ropebend_metadata_found { ROPEBEND_METADATA_FOUND, ROPEBEND_METADATA_ABSENT, ROPEBEND_METADATA_UNREADABLE };

// Value of `key`. UNREADABLE: an array of strings or of arrays, which no key of interest is.
enum ropebend_metadata_found ropebend_metadata_get(const struct ropebend_ggml_api * api,
                                                   const struct gguf_context * gguf, const char * key,
                                                   struct ropebend_metadata_value * value);

#endif
