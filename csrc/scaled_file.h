// The layer scales that a GGUF carries, and the plans they make: what plugin/scaling/__init__.py does, for programs without Python.

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

// The plan of a file for sequences that may reach some number of tokens.
struct ropebend_file_plan {
    const struct ropebend_file * file;
    uint32_t                     index;    // of the file's plans
    uint32_t                     length;   // in tokens, with dynamic-ntk; else 0
    bool                         unscaled; // such sequences run as if the file carried no scales; `plan` is empty
    struct ropebend_plan         plan;
    struct ropebend_file_plan *  next;
};

struct ropebend_file {
    char *                      path;
    uint32_t                    n_layer;
    uint32_t                    n_plan;
    uint32_t *                  up_to;       // [n_plan] tokens, ascending; beyond the last one the last plan holds
    float *                     layer_scale; // [n_plan * n_layer]; of an unscaled plan: 0
    float *                     layer_attn_factor; // [n_plan * n_layer]
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

// The plan for sequences that may reach `length` tokens; lives as long as the file. NULL: out of memory.
const struct ropebend_file_plan * ropebend_file_plan(struct ropebend_file * file, uint32_t length);

// True if sequences of different lengths have different plans.
bool ropebend_file_by_length(const struct ropebend_file * file);

#endif
