// The layer scales that a GGUF carries, and the plans they make: what plugin/scaling.py does, for programs without Python.

#ifndef ROPEBEND_SCALED_FILE_H
#define ROPEBEND_SCALED_FILE_H

#include "rope_plan.h"

enum scaled_method { METHOD_NONE, METHOD_LINEAR, METHOD_NTK, METHOD_DYNAMIC_NTK, METHOD_YARN, N_METHODS };

extern const char * const scaled_method_names[N_METHODS];

// The plan of a file for sequences of up to `length` tokens. Only dynamic-ntk depends on it; elsewhere it is 0.
struct scaled_plan {
    const struct scaled_file * file;
    uint32_t                   length;
    struct rope_plan           plan;
    struct scaled_plan *       next;
};

struct scaled_file {
    char *               path;
    uint32_t             n_layer;
    float *              layer_scale; // [n_layer]
    enum scaled_method   method;
    float                factor;
    uint32_t             n_ctx_orig;
    struct scaled_plan * plans;       // made so far
    bool                 loaded;      // weights of the file are in some buffer
    bool                 applied;     // some graph was patched
};

enum scaled_file_found { SCALED_FILE_NONE, SCALED_FILE_FOUND, SCALED_FILE_WRONG };

// Read our keys. FOUND: *file is new and the caller's. WRONG: the keys do not fit this file; `problem` names the key, the
// value and what was expected.
enum scaled_file_found scaled_file_read(const struct ggml_api * api, const struct gguf_context * gguf, const char * path,
                                        struct scaled_file ** file, char * problem, size_t n_problem);

void scaled_file_free(struct scaled_file * file);

bool scaled_file_equal(const struct scaled_file * a, const struct scaled_file * b); // same path, same scales

// The plan for `length` tokens; lives as long as the file. NULL: out of memory.
const struct scaled_plan * scaled_file_plan(struct scaled_file * file, uint32_t length);

#endif
