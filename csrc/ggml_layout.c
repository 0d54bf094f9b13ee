#include "ggml_layout.h"

#include <stdlib.h>
#include <string.h>

const char * const ggml_api_names[] = {
#define X(name, ret, args) #name,
    GGML_API_FUNCTIONS(X)
#undef X
    NULL,
};

#define LOAD(name, ret, args)                  \
    p = find(user, #name);                     \
    if (p == NULL) {                           \
        return #name;                          \
    }                                          \
    memcpy(&api->name, &p, sizeof(api->name));

const char * ggml_api_load(struct ggml_api * api, void * (*find)(void * user, const char * name), void * user) {
    void * p;
    GGML_API_FUNCTIONS(LOAD)
    return NULL;
}

const char * ggml_graph_api_load(struct ggml_graph_api * api, void * (*find)(void * user, const char * name), void * user) {
    void * p;
    GGML_GRAPH_API_FUNCTIONS(LOAD)
    return NULL;
}

enum {
    TYPE_F32    = 0,
    TYPE_I32    = 26,
    MAX_OP_CODE = 90, // GGML_OP_ROPE has stood well below this in every version; ggml_op_name checks no bounds
    N_SLOT      = 11, // op_params[0 .. 10]
    N_A         = 46 * 3 * 5,
};

static struct ggml_tensor * make_a(const struct ggml_api * api, struct ggml_context * ctx) {
    return api->ggml_new_tensor_3d(ctx, TYPE_F32, 46, 3, 5);
}

struct probe_rope {
    int   n_dims, mode, n_ctx_orig;
    float param[6]; // freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
};

static const struct probe_rope PROBE[2] = {
    { 38, 0, 4711, { 12345.5f, 0.375f, 0.2500f, 1.7500f, 31.5f, 1.2500f } },
    { 34, 2, 8123, { 54321.5f, 0.625f, 0.1875f, 1.3125f, 29.5f, 1.0625f } },
};

static struct ggml_tensor * make_rope(const struct ggml_api * api, struct ggml_context * ctx, struct ggml_tensor * a,
                                      struct ggml_tensor * pos, struct ggml_tensor * factors, const struct probe_rope * p) {
    return api->ggml_rope_ext(ctx, a, pos, factors, p->n_dims, p->mode, p->n_ctx_orig, p->param[0], p->param[1],
                              p->param[2], p->param[3], p->param[4], p->param[5]);
}

static int32_t read_i32(const void * tensor, size_t offset) {
    int32_t v;
    memcpy(&v, (const char *) tensor + offset, sizeof(v));
    return v;
}

static bool is_ne(const void * const * t, size_t offset) {
    static const int64_t ne_a[4] = { 46, 3, 5, 1 }, ne_pos[4] = { 5, 1, 1, 1 };
    return memcmp((const char *) t[0] + offset, ne_a, sizeof(ne_a)) == 0 &&
           memcmp((const char *) t[2] + offset, ne_a, sizeof(ne_a)) == 0 &&
           memcmp((const char *) t[3] + offset, ne_pos, sizeof(ne_pos)) == 0;
}

static bool is_op(const void * const * t, size_t offset, int32_t op_rope) {
    return read_i32(t[0], offset) == op_rope && read_i32(t[1], offset) == op_rope && read_i32(t[2], offset) == 0 &&
           read_i32(t[3], offset) == 0;
}

static bool is_op_params(const void * const * t, size_t offset) {
    for (int i = 0; i < 2; i++) {
        int32_t expect[N_SLOT] = { 0, PROBE[i].n_dims, PROBE[i].mode, 0, PROBE[i].n_ctx_orig };
        memcpy(expect + 5, PROBE[i].param, sizeof(PROBE[i].param));
        if (memcmp((const char *) t[i] + offset, expect, sizeof(expect)) != 0) {
            return false;
        }
    }
    return true;
}

static bool is_src(const void * const * t, size_t offset) {
    const void * with_factors[3] = { t[2], t[3], t[4] };
    const void * without[3]      = { t[2], t[3], NULL };
    return memcmp((const char *) t[0] + offset, with_factors, sizeof(with_factors)) == 0 &&
           memcmp((const char *) t[1] + offset, without, sizeof(without)) == 0;
}

static const char * const NAMES[2] = { "ropebend_probe-1", "ropebend_probe-22" };

static bool is_name(const void * const * t, size_t offset) {
    return memcmp((const char *) t[0] + offset, NAMES[0], strlen(NAMES[0]) + 1) == 0 &&
           memcmp((const char *) t[1] + offset, NAMES[1], strlen(NAMES[1]) + 1) == 0;
}

// Room for some tensors without data; the slack of *pool lets a scan run past the end of the last one.
static struct ggml_context * make_context(const struct ggml_api * api, size_t tensor_size, void ** pool) {
    const size_t n_pool = 8 * (tensor_size + 64);
    *pool = calloc(1, n_pool + tensor_size + 256);
    struct ggml_context * ctx =
        *pool == NULL ? NULL : api->ggml_init((struct ggml_init_params){ n_pool, *pool, true });
    if (ctx == NULL) {
        free(*pool);
    }
    return ctx;
}

// A field is accepted only if exactly one offset matches.
#define FIND_UNIQUE(field, step, test)                              \
    do {                                                            \
        int n_hit = 0;                                              \
        for (size_t offset = 0; offset < size; offset += (step)) {  \
            if (test) {                                             \
                layout->field = offset;                             \
                n_hit++;                                            \
            }                                                       \
        }                                                           \
        if (n_hit != 1) {                                           \
            problem = "no unique offset for ggml_tensor." #field;   \
            goto done;                                              \
        }                                                           \
    } while (0)

const char * ggml_layout_probe(const struct ggml_api * api, struct ggml_layout * layout) {
    memset(layout, 0, sizeof(*layout));

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

    const char * problem = NULL;
    const size_t size    = api->ggml_tensor_overhead(); // an upper bound for sizeof(struct ggml_tensor)
    void *       pool;
    struct ggml_context * ctx = make_context(api, size, &pool);
    if (ctx == NULL) {
        return "ggml_init failed";
    }
    struct ggml_tensor * a       = make_a(api, ctx);
    struct ggml_tensor * pos     = api->ggml_new_tensor_1d(ctx, TYPE_I32, 5);
    struct ggml_tensor * factors = api->ggml_new_tensor_1d(ctx, TYPE_F32, 23);
    struct ggml_tensor * with    = make_rope(api, ctx, a, pos, factors, &PROBE[0]);
    struct ggml_tensor * without = make_rope(api, ctx, a, pos, NULL, &PROBE[1]);
    api->ggml_set_name(with, NAMES[0]);
    api->ggml_set_name(without, NAMES[1]);

    const void * const t[5] = { with, without, a, pos, factors };
    FIND_UNIQUE(ne, sizeof(int64_t), is_ne(t, offset));
    FIND_UNIQUE(op, sizeof(int32_t), is_op(t, offset, layout->op_rope));
    FIND_UNIQUE(op_params, sizeof(int32_t), is_op_params(t, offset)); // slots 0 and 3 must be zero: we use them
    FIND_UNIQUE(src, sizeof(void *), is_src(t, offset));
    FIND_UNIQUE(name, 1, is_name(t, offset));

done:
    api->ggml_free(ctx);
    free(pool);
    return problem;
}

const char * ggml_graph_layout_probe(const struct ggml_api * api, const struct ggml_graph_api * graph_api,
                                     struct ggml_graph_layout * layout) {
    enum { N_BYTES = N_A * sizeof(float), ALIGNMENT = 64 };
    memset(layout, 0, sizeof(*layout));

    const char * problem = NULL;
    const size_t size    = api->ggml_tensor_overhead();
    void *       pool;
    void *       data = aligned_alloc(ALIGNMENT, (N_BYTES / ALIGNMENT + 1) * ALIGNMENT);
    struct ggml_context * ctx = make_context(api, size, &pool);
    if (data == NULL || ctx == NULL) {
        free(data);
        return "ggml_init failed";
    }
    struct ggml_backend_buffer * buffer = graph_api->ggml_backend_cpu_buffer_from_ptr(data, N_BYTES);
    struct ggml_tensor *         a      = make_a(api, ctx);
    struct ggml_tensor *         b      = make_a(api, ctx); // not allocated
    graph_api->ggml_backend_tensor_alloc(buffer, a, data);
    struct ggml_tensor * view = graph_api->ggml_view_tensor(ctx, a);

    FIND_UNIQUE(buffer, sizeof(void *), ggml_layout_pointer(a, offset) == buffer && ggml_layout_pointer(b, offset) == NULL);
    FIND_UNIQUE(view_src, sizeof(void *), ggml_layout_pointer(view, offset) == a && ggml_layout_pointer(a, offset) == NULL);

done:
    graph_api->ggml_backend_buffer_free(buffer);
    api->ggml_free(ctx);
    free(pool);
    free(data);
    return problem;
}
