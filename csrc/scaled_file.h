// The layer scales that a GGUF carries, and the plans they make: what plugin/scaling.py does, for programs without Python.

#ifndef ROPEBEND_SCALED_FILE_H
#define ROPEBEND_SCALED_FILE_H

#include "rope_plan.h"

enum ropebend_method {
    ROPEBEND_METHOD_NONE,
    ROPEBEND_METHOD_LINEAR,
    ROPEBEND_METHOD_NTK,
    ROPEBEND_METHOD_DYNAMIC_NTK,
    ROPEBEND_METHOD_YARN,
    ROPEBEND_N_METHODS
};

extern const char * const ropebend_method_names[ROPEBEND_N_METHODS];

// The plan of a file for sequences of up to `length` tokens. Only dynamic-ntk depends on it; elsewhere it is 0.
struct ropebend_file_plan {
    const struct ropebend_file * file;
    uint32_t                     length;
    struct ropebend_plan         plan;
    struct ropebend_file_plan *  next;
};

struct ropebend_file {
    char *                      path;
    uint32_t                    n_layer;
    float *                     layer_scale; // [n_layer]
    enum ropebend_method        method;
    float                       factor;
    uint32_t                    n_ctx_orig;
    struct ropebend_file_plan * plans;   // made so far
    bool                        loaded;  // weights of the file are in some buffer
    bool                        applied; // some graph was patched
};

enum ropebend_file_found { ROPEBEND_FILE_NONE, ROPEBEND_FILE_FOUND, ROPEBEND_FILE_WRONG };

// Read our keys. FOUND: *file is new and the caller's. WRONG: the keys do not fit this file; `problem` names the key, the
// value and what was expected.
enum ropebend_file_found ropebend_file_read(const struct ropebend_ggml_api * api, const struct gguf_context * gguf,
                                            const char * path, struct ropebend_file ** file, char * problem,
                                            size_t n_problem);

void ropebend_file_free(struct ropebend_file * file);

bool ropebend_file_equal(const struct ropebend_file * a, const struct ropebend_file * b); // same path, same scales

// The plan for `length` tokens; lives as long as the file. NULL: out of memory.
const struct ropebend_file_plan * ropebend_file_plan(struct ropebend_file * file, uint32_t length);

#endif
