// Where llama.cpp keeps the fields of a graph node, found out at run time.
//
// ropebend has no build-time dependency on llama.cpp: the functions it needs come as pointers, and the offsets of
// the struct fields it reads are found by making tensors with known contents and looking for these contents.

#ifndef ROPEBEND_GGML_LAYOUT_H
#define ROPEBEND_GGML_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct ggml_backend_buffer;
struct ggml_cgraph;
struct ggml_context;
struct ggml_tensor;
struct gguf_context;

// as in ggml.h and gguf.h; passed by value, so they must match
struct ggml_init_params {
    size_t mem_size;
    void * mem_buffer;
    bool   no_alloc;
};

struct gguf_init_params {
    bool                   no_alloc;
    struct ggml_context ** ctx;
};

// clang-format off
// name, return type, parameters of every function that is taken from the loaded llama.cpp
#define ROPEBEND_GGML_FUNCTIONS(X)                                                                                     \
    X(ggml_init,            struct ggml_context *, (struct ggml_init_params))                                          \
    X(ggml_free,            void,                  (struct ggml_context *))                                            \
    X(ggml_op_name,         const char *,          (int))                                                              \
    X(ggml_type_name,       const char *,          (int))                                                              \
    X(ggml_tensor_overhead, size_t,                (void))                                                             \
    X(ggml_new_tensor_1d,   struct ggml_tensor *,  (struct ggml_context *, int, int64_t))                              \
    X(ggml_new_tensor_3d,   struct ggml_tensor *,  (struct ggml_context *, int, int64_t, int64_t, int64_t))            \
    X(ggml_set_name,        struct ggml_tensor *,  (struct ggml_tensor *, const char *))                               \
    X(ggml_rope_ext,        struct ggml_tensor *,  (struct ggml_context *, struct ggml_tensor *, struct ggml_tensor *, \
                                                    struct ggml_tensor *, int, int, int, float, float, float, float,   \
                                                    float, float))                                                     \
    X(gguf_init_from_file,  struct gguf_context *, (const char *, struct gguf_init_params))                            \
    X(gguf_free,            void,                  (struct gguf_context *))                                            \
    X(gguf_find_key,        int64_t,               (const struct gguf_context *, const char *))                        \
    X(gguf_get_n_kv,        int64_t,               (const struct gguf_context *))                                      \
    X(gguf_get_key,         const char *,          (const struct gguf_context *, int64_t))                             \
    X(gguf_get_kv_type,     int,                   (const struct gguf_context *, int64_t))                             \
    X(gguf_get_arr_type,    int,                   (const struct gguf_context *, int64_t))                             \
    X(gguf_get_arr_n,       size_t,                (const struct gguf_context *, int64_t))                             \
    X(gguf_get_arr_data,    const void *,          (const struct gguf_context *, int64_t))                             \
    X(gguf_get_val_data,    const void *,          (const struct gguf_context *, int64_t))                             \
    X(gguf_get_val_str,     const char *,          (const struct gguf_context *, int64_t))

// and what the preload library needs on top: it sees whole graphs, and buffers
#define ROPEBEND_GRAPH_FUNCTIONS(X)                                                                                    \
    X(ggml_graph_n_nodes,               int,                          (struct ggml_cgraph *))                          \
    X(ggml_graph_node,                  struct ggml_tensor *,         (struct ggml_cgraph *, int))                     \
    X(ggml_view_tensor,                 struct ggml_tensor *,         (struct ggml_context *, struct ggml_tensor *))   \
    X(ggml_backend_cpu_buffer_from_ptr, struct ggml_backend_buffer *, (void *, size_t))                                \
    X(ggml_backend_tensor_alloc,        int,                          (struct ggml_backend_buffer *,                   \
                                                                       struct ggml_tensor *, void *))                  \
    X(ggml_backend_buffer_free,         void,                         (struct ggml_backend_buffer *))
// clang-format on

struct ropebend_ggml_api {
#define X(name, ret, args) ret(*name) args;
    ROPEBEND_GGML_FUNCTIONS(X)
#undef X
};

struct ropebend_graph_api {
#define X(name, ret, args) ret(*name) args;
    ROPEBEND_GRAPH_FUNCTIONS(X)
#undef X
};

extern const char * const ropebend_ggml_api_names[]; // NULL-terminated

typedef void * ropebend_find(void * user, const char * name); // the address of a function, or NULL

// Fill `api` through `find`. Returns NULL, or the name of the first function that is missing.
const char * ropebend_ggml_api_load(struct ropebend_ggml_api * api, ropebend_find * find, void * user);
const char * ropebend_graph_api_load(struct ropebend_graph_api * api, ropebend_find * find, void * user);

struct ropebend_layout {
    int32_t op_rope;      // enum value of GGML_OP_ROPE
    int32_t op_rope_back; // enum value of GGML_OP_ROPE_BACK
    size_t  ne;           // byte offsets into struct ggml_tensor
    size_t  op;
    size_t  op_params;
    size_t  src;
    size_t  name;
};

struct ropebend_graph_layout {
    size_t buffer;
    size_t view_src;
};

// Find the layout. Returns NULL, or a static text that says what did not check out.
const char * ropebend_layout_probe(const struct ropebend_ggml_api * api, struct ropebend_layout * layout);
const char * ropebend_graph_layout_probe(const struct ropebend_ggml_api *  api,
                                         const struct ropebend_graph_api * graph_api,
                                         struct ropebend_graph_layout *    layout);

// the pointer at a byte offset of a tensor
static inline void * ropebend_pointer_at(const struct ggml_tensor * tensor, size_t offset) {
    void * pointer;
    memcpy(&pointer, (const char *) tensor + offset, sizeof(pointer));
    return pointer;
}

static inline const struct ggml_tensor * ropebend_src(const struct ropebend_layout * layout,
                                                      const struct ggml_tensor * tensor, int i) {
    return ropebend_pointer_at(tensor, layout->src + (size_t) i * sizeof(void *));
}

#endif
