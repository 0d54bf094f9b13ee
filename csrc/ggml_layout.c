#include "ggml_layout.h"

#include <stdlib.h>
#include <string.h>

const char * const ropebend_ggml_api_names[] = {
#define X(name, ret, args) #name,
    ROPEBEND_GGML_FUNCTIONS(X)
#undef X
        NULL,
};

struct function {
    const char * name;
    size_t       offset; // of its pointer
};

static const char * load(const struct function * functions, void * api, ropebend_find * find, void * user) {
    for (; functions->name != NULL; functions++) {
        void * address = find(user, functions->name);
        if (address == NULL) {
            return functions->name;
        }
        memcpy((char *) api + functions->offset, &address, sizeof(address));
    }
    return NULL;
}

const char * ropebend_ggml_api_load(struct ropebend_ggml_api * api, ropebend_find * find, void * user) {
    static const struct function functions[] = {
#define X(name, ret, args) { #name, offsetof(struct ropebend_ggml_api, name) },
        ROPEBEND_GGML_FUNCTIONS(X)
#undef X
            { NULL, 0 },
    };
    return load(functions, api, find, user);
}

const char * ropebend_graph_api_load(struct ropebend_graph_api * api, ropebend_find * find, void * user) {
    static const struct function functions[] = {
#define X(name, ret, args) { #name, offsetof(struct ropebend_graph_api, name) },
        ROPEBEND_GRAPH_FUNCTIONS(X)
#undef X
            { NULL, 0 },
    };
    return load(functions, api, find, user);
}

enum {
    TYPE_F32    = 0,
    TYPE_I32    = 26,
    MAX_OP_CODE = 90, // GGML_OP_ROPE has stood well below this in every version; ggml_op_name checks no bounds
    N_SLOT      = 11, // op_params[0 .. 10]
    N_A         = 46 * 3 * 5,
};

// Tensors of known contents, in a context without data; the slack behind its pool lets a scan run past the last one.
struct probe {
    const struct ropebend_ggml_api * api;
    size_t                           size; // an upper bound for sizeof(struct ggml_tensor)
    void *                           pool;
    struct ggml_context *            ctx;
    int32_t                          op_rope;
    const void *                     t[5]; // what the test of a field needs
};

static bool open_probe(struct probe * p, const struct ropebend_ggml_api * api) {
    p->api              = api;
    p->size             = api->ggml_tensor_overhead();
    const size_t n_pool = 8 * (p->size + 64);
    p->pool             = calloc(1, n_pool + p->size + 256);
    p->ctx              = p->pool == NULL ? NULL : api->ggml_init((struct ggml_init_params) { n_pool, p->pool, true });
    return p->ctx != NULL;
}

static void close_probe(struct probe * p) {
    if (p->ctx != NULL) {
        p->api->ggml_free(p->ctx);
    }
    free(p->pool);
}

// The offset at which `is_field` holds, in steps of `step`. A field is accepted only if exactly one offset matches.
static bool find_field(const struct probe * p, size_t step, bool (*is_field)(const struct probe *, size_t),
                       size_t * found) {
    int n_hit = 0;
    for (size_t offset = 0; offset < p->size; offset += step) {
        if (is_field(p, offset)) {
            *found = offset;
            n_hit++;
        }
    }
    return n_hit == 1;
}

static struct ggml_tensor * make_a(const struct probe * p) {
    return p->api->ggml_new_tensor_3d(p->ctx, TYPE_F32, 46, 3, 5);
}

struct probe_rope {
    int   n_dims, mode, n_ctx_orig;
    float param[6]; // freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
};

static const struct probe_rope ROPES[2] = {
    { 38, 0, 4711, { 12345.5f, 0.375f, 0.2500f, 1.7500f, 31.5f, 1.2500f } },
    { 34, 2, 8123, { 54321.5f, 0.625f, 0.1875f, 1.3125f, 29.5f, 1.0625f } },
};

static struct ggml_tensor * make_rope(const struct probe * p, struct ggml_tensor * a, struct ggml_tensor * pos,
                                      struct ggml_tensor * factors, const struct probe_rope * r) {
    return p->api->ggml_rope_ext(p->ctx, a, pos, factors, r->n_dims, r->mode, r->n_ctx_orig, r->param[0], r->param[1],
                                 r->param[2], r->param[3], r->param[4], r->param[5]);
}

static bool holds(const void * tensor, size_t offset, const void * contents, size_t n) {
    return memcmp((const char *) tensor + offset, contents, n) == 0;
}

static bool is_ne(const struct probe * p, size_t offset) {
    static const int64_t ne_a[4] = { 46, 3, 5, 1 }, ne_pos[4] = { 5, 1, 1, 1 };
    return holds(p->t[0], offset, ne_a, sizeof(ne_a)) && holds(p->t[2], offset, ne_a, sizeof(ne_a)) &&
           holds(p->t[3], offset, ne_pos, sizeof(ne_pos));
}

static bool is_op(const struct probe * p, size_t offset) {
    static const int32_t none = 0;
    return holds(p->t[0], offset, &p->op_rope, sizeof(none)) && holds(p->t[1], offset, &p->op_rope, sizeof(none)) &&
           holds(p->t[2], offset, &none, sizeof(none)) && holds(p->t[3], offset, &none, sizeof(none));
}

static bool is_op_params(const struct probe * p, size_t offset) {
    for (int i = 0; i < 2; i++) {
        // slots 0 and 3 must be zero: we use them
        int32_t expect[N_SLOT] = { 0, ROPES[i].n_dims, ROPES[i].mode, 0, ROPES[i].n_ctx_orig };
        memcpy(expect + 5, ROPES[i].param, sizeof(ROPES[i].param));
        if (!holds(p->t[i], offset, expect, sizeof(expect))) {
            return false;
        }
    }
    return true;
}

static bool is_src(const struct probe * p, size_t offset) {
    const void * with_factors[3] = { p->t[2], p->t[3], p->t[4] };
    const void * without[3]      = { p->t[2], p->t[3], NULL };
    return holds(p->t[0], offset, with_factors, sizeof(with_factors)) &&
           holds(p->t[1], offset, without, sizeof(without));
}

static const char * const NAMES[2] = { "ropebend_probe-1", "ropebend_probe-22" };

static bool is_name(const struct probe * p, size_t offset) {
    return holds(p->t[0], offset, NAMES[0], strlen(NAMES[0]) + 1) &&
           holds(p->t[1], offset, NAMES[1], strlen(NAMES[1]) + 1);
}

static const char * find_op_codes(const struct ropebend_ggml_api * api, struct ropebend_layout * layout) {
    for (int i = 0; i < MAX_OP_CODE && (layout->op_rope == 0 || layout->op_rope_back == 0); i++) {
        const char * name = api->ggml_op_name(i);
        if (name == NULL) {
            break;
        }
        if (strcmp(name, "ROPE") == 0) {
            layout->op_rope = i;
        } else if (strcmp(name, "ROPE_BACK") == 0) {
            layout->op_rope_back = i;
        }
    }
    if (layout->op_rope == 0 || layout->op_rope_back == 0) {
        return "ggml_op_name knows no ROPE and ROPE_BACK";
    }
    const char * i32 = api->ggml_type_name(TYPE_I32);
    const char * f32 = api->ggml_type_name(TYPE_F32);
    if (i32 == NULL || f32 == NULL || strcmp(i32, "i32") != 0 || strcmp(f32, "f32") != 0) {
        return "ggml_type_name: the codes of i32 and f32 have moved";
    }
    return NULL;
}

const char * ropebend_layout_probe(const struct ropebend_ggml_api * api, struct ropebend_layout * layout) {
    memset(layout, 0, sizeof(*layout));
    const char * problem = find_op_codes(api, layout);
    if (problem != NULL) {
        return problem;
    }
    struct probe p = { 0 };
    if (!open_probe(&p, api)) {
        close_probe(&p);
        return "ggml_init failed";
    }
    struct ggml_tensor * a       = make_a(&p);
    struct ggml_tensor * pos     = api->ggml_new_tensor_1d(p.ctx, TYPE_I32, 5);
    struct ggml_tensor * factors = api->ggml_new_tensor_1d(p.ctx, TYPE_F32, 23);
    struct ggml_tensor * with    = make_rope(&p, a, pos, factors, &ROPES[0]);
    struct ggml_tensor * without = make_rope(&p, a, pos, NULL, &ROPES[1]);
    api->ggml_set_name(with, NAMES[0]);
    api->ggml_set_name(without, NAMES[1]);
    memcpy(p.t, (const void *[]) { with, without, a, pos, factors }, sizeof(p.t));
    p.op_rope = layout->op_rope;

    if (!find_field(&p, sizeof(int64_t), is_ne, &layout->ne)) {
        problem = "no unique offset for ggml_tensor.ne";
    } else if (!find_field(&p, sizeof(int32_t), is_op, &layout->op)) {
        problem = "no unique offset for ggml_tensor.op";
    } else if (!find_field(&p, sizeof(int32_t), is_op_params, &layout->op_params)) {
        problem = "no unique offset for ggml_tensor.op_params";
    } else if (!find_field(&p, sizeof(void *), is_src, &layout->src)) {
        problem = "no unique offset for ggml_tensor.src";
    } else if (!find_field(&p, 1, is_name, &layout->name)) {
        problem = "no unique offset for ggml_tensor.name";
    }
    close_probe(&p);
    return problem;
}

// t: buffer, a tensor in it, one without, a view of the first
static bool is_buffer(const struct probe * p, size_t offset) {
    return ropebend_pointer_at(p->t[1], offset) == p->t[0] && ropebend_pointer_at(p->t[2], offset) == NULL;
}

static bool is_view_src(const struct probe * p, size_t offset) {
    return ropebend_pointer_at(p->t[3], offset) == p->t[1] && ropebend_pointer_at(p->t[1], offset) == NULL;
}

const char * ropebend_graph_layout_probe(const struct ropebend_ggml_api *  api,
                                         const struct ropebend_graph_api * graph_api,
                                         struct ropebend_graph_layout *    layout) {
    enum { N_BYTES = N_A * sizeof(float), ALIGNMENT = 64 };
    memset(layout, 0, sizeof(*layout));

    struct probe                 p       = { 0 };
    const char *                 problem = "ggml_init failed";
    void *                       data    = aligned_alloc(ALIGNMENT, (N_BYTES / ALIGNMENT + 1) * ALIGNMENT);
    struct ggml_backend_buffer * buffer  = NULL;
    if (data != NULL && open_probe(&p, api)) {
        buffer = graph_api->ggml_backend_cpu_buffer_from_ptr(data, N_BYTES);
    }
    if (buffer != NULL) {
        struct ggml_tensor * a = make_a(&p);
        struct ggml_tensor * b = make_a(&p); // not allocated
        graph_api->ggml_backend_tensor_alloc(buffer, a, data);
        struct ggml_tensor * view = graph_api->ggml_view_tensor(p.ctx, a);
        memcpy(p.t, (const void *[]) { buffer, a, b, view }, 4 * sizeof(p.t[0]));
        problem = NULL;
        if (!find_field(&p, sizeof(void *), is_buffer, &layout->buffer)) {
            problem = "no unique offset for ggml_tensor.buffer";
        } else if (!find_field(&p, sizeof(void *), is_view_src, &layout->view_src)) {
            problem = "no unique offset for ggml_tensor.view_src";
        }
        graph_api->ggml_backend_buffer_free(buffer);
    }
    close_probe(&p);
    free(data);
    return problem;
}
