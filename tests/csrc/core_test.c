// Runs the C core under sanitizers against the real ggml: core_test LIBGGML GGUF
// The GGUF must hold test.u32 = 7, test.f32 = 1.5, test.str = "hi", test.arr = [1, 2, 3] (f32), test.strs (strings).

#define _GNU_SOURCE // RTLD_NOW with -std=c11
#include "ggml_layout.h"
#include "gguf_metadata.h"
#include "gguf_scan.h"
#include "graph_owner.h"
#include "rope_plan.h"
#include "text_run.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int n_failed;

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            n_failed++;                                                      \
        }                                                                    \
    } while (0)

static struct ropebend_ggml_api api;
static struct ropebend_layout   layout;

static void * find(void * user, const char * name) {
    return dlsym(user, name);
}

static void * find_all_but_one(void * user, const char * name) {
    return strcmp(name, "ggml_rope_ext") == 0 ? NULL : dlsym(user, name);
}

static const char * no_rope(int op) {
    (void) op;
    return "ADD";
}

static void * params_of(struct ggml_tensor * node) {
    return (char *) node + layout.op_params;
}

static float slot(struct ggml_tensor * node, int i) {
    float v;
    memcpy(&v, (char *) params_of(node) + 4 * i, sizeof(v));
    return v;
}

static void set_src(struct ggml_tensor * node, int i, struct ggml_tensor * src) {
    memcpy((char *) node + layout.src + (size_t) i * sizeof(src), &src, sizeof(src));
}

static struct ggml_tensor * rope_node(struct ggml_context * ctx, const char * name, float ext_factor) {
    struct ggml_tensor * a   = api.ggml_new_tensor_3d(ctx, 0, 64, 2, 3);
    struct ggml_tensor * pos = api.ggml_new_tensor_1d(ctx, 26, 3);
    struct ggml_tensor * n = api.ggml_rope_ext(ctx, a, pos, NULL, 64, 0, 512, 10000.0f, 0.5f, ext_factor, 1.25f, 32.0f,
                                               1.0f);
    api.ggml_set_name(n, name);
    return n;
}

static void test_probe(void * lib) {
    struct ropebend_ggml_api broken = api;
    struct ropebend_layout   other;
    CHECK(strcmp(ropebend_ggml_api_load(&broken, find_all_but_one, lib), "ggml_rope_ext") == 0);
    broken              = api;
    broken.ggml_op_name = no_rope;
    CHECK(ropebend_layout_probe(&broken, &other) != NULL);
    for (int i = 0; i < 50; i++) {
        CHECK(ropebend_layout_probe(&api, &other) == NULL);
        CHECK(memcmp(&other, &layout, sizeof(layout)) == 0);
    }
}

static void test_apply(struct ggml_context * ctx) {
    struct ropebend_plan_layer layers[2] = { { 1.0f, 1.0f, 1.0f }, { 4.0f, 2.0f, 1.0f } };
    struct ropebend_plan       plan      = { 2, 0.0f, 0, layers };
    uint32_t                   layer     = 99;

    struct ggml_tensor * node = rope_node(ctx, "Qcur-1", 0.0f);
    char                 before[64], patched[64];
    memcpy(before, params_of(node), sizeof(before));
    CHECK(ropebend_plan_apply(NULL, &layout, node, &layer) == ROPEBEND_APPLY_QK);
    CHECK(memcmp(before, params_of(node), sizeof(before)) == 0);
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_QK && layer == 1);
    CHECK(slot(node, 6) == 0.125f);
    CHECK(fabsf(slot(node, 5) / (10000.0f * powf(2.0f, 64.0f / 62.0f)) - 1.0f) < 1e-6f);
    CHECK(slot(node, 8) == 1.25f);
    memcpy(patched, params_of(node), sizeof(patched));
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_QK); // idempotent
    CHECK(memcmp(patched, params_of(node), sizeof(patched)) == 0);
    CHECK(ropebend_plan_apply(NULL, &layout, node, &layer) == ROPEBEND_APPLY_QK); // and undone
    CHECK(memcmp(before + 16, (char *) params_of(node) + 16, 28) == 0);

    // a graph that is rebuilt at the same address has fresh values, which count as the node's own
    memcpy(params_of(node), before, sizeof(before));
    const float quarter = 0.25f;
    memcpy((char *) params_of(node) + 24, &quarter, sizeof(quarter));
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_QK);
    CHECK(slot(node, 6) == 0.0625f);

    // the model's own YaRN keeps its magnitude: attn * (1 + 0.1 ln(1/freq_scale)) does not change
    node            = rope_node(ctx, "Kcur-1", 1.0f);
    const float own = slot(node, 8) * (1.0f + 0.1f * logf(1.0f / slot(node, 6)));
    ropebend_plan_apply(&plan, &layout, node, &layer);
    CHECK(fabsf(slot(node, 8) * (1.0f + 0.1f * logf(1.0f / slot(node, 6))) / own - 1.0f) < 1e-6f);

    // the layer's attention factor multiplies whatever magnitude there is, but not in a K-shift
    const float before_factor = slot(node, 8);
    layers[1].attn_factor     = 1.5f;
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_QK);
    CHECK(fabsf(slot(node, 8) / before_factor / 1.5f - 1.0f) < 1e-6f);
    api.ggml_set_name(node, "cache_k_l1 (view)");
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_SHIFT);
    CHECK(fabsf(slot(node, 8) * (1.0f + 0.1f * logf(1.0f / slot(node, 6))) - 1.0f) < 1e-6f);

    // anything else is left alone
    struct ggml_tensor * other = api.ggml_new_tensor_1d(ctx, 0, 8);
    CHECK(ropebend_plan_apply(&plan, &layout, other, &layer) == ROPEBEND_APPLY_NOT_ROPE);
}

static void test_names(struct ggml_context * ctx) {
    struct ropebend_plan_layer layers[2] = { { 2.0f, 1.0f, 1.0f }, { 2.0f, 1.0f, 1.0f } };
    struct ropebend_plan       plan      = { 2, 0.0f, 0, layers };
    uint32_t                   layer;
    static const char * const  unresolved[] = { "",      "-", "Qcur", "Qcur-", "Qcur-x", "Qcur-1x", "Qcur-9999999999",
                                                "Qcur-2" };
    for (size_t i = 0; i < sizeof(unresolved) / sizeof(unresolved[0]); i++) {
        CHECK(ropebend_plan_apply(&plan, &layout, rope_node(ctx, unresolved[i], 0.0f), &layer) ==
              ROPEBEND_APPLY_UNRESOLVED);
    }
    // by way of src[1], seven steps up, as with a quantised K cache
    struct ggml_tensor * node = rope_node(ctx, "node_12", 0.0f);
    struct ggml_tensor * at   = node;
    for (int i = 0; i < 7; i++) {
        struct ggml_tensor * up = api.ggml_new_tensor_1d(ctx, 0, 1);
        set_src(at, 0, api.ggml_new_tensor_1d(ctx, 0, 1));
        set_src(at, 1, up);
        at = up;
    }
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_UNRESOLVED);
    api.ggml_set_name(at, "cache_k_l1 (view) (copy)");
    CHECK(ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_SHIFT && layer == 1);
    CHECK(slot(node, 8) == 1.0f); // the shift leaves the magnitude of cached keys alone
}

static void test_many_values(struct ggml_context * ctx) {
    struct ropebend_plan_layer layers[1] = { { 2.0f, 1.0f, 1.0f } };
    struct ropebend_plan       plan      = { 1, 0.0f, 0, layers };
    struct ggml_tensor *       node      = rope_node(ctx, "Qcur-0", 0.0f);
    uint32_t                   layer;
    int                        n_full = 0;
    for (int i = 1; i <= 5000; i++) {
        int32_t fresh[16] = { 0, 64, 0, 0, i };
        memcpy(fresh + 5, (float[]) { 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f }, 24);
        memcpy(params_of(node), fresh, sizeof(fresh));
        n_full += ropebend_plan_apply(&plan, &layout, node, &layer) == ROPEBEND_APPLY_FULL;
        CHECK(slot(node, 6) == (n_full ? 1.0f : 0.5f));
    }
    CHECK(n_full > 0 && n_full < 1000);
}

static void test_yarn_does_not_compose(struct ggml_context * ctx) {
    struct ropebend_plan_layer layers[1] = { { 2.0f, 1.0f, 1.0f } };
    struct ropebend_plan       plan      = { 1, 4.0f, 512, layers };
    struct ggml_tensor *       a         = api.ggml_new_tensor_3d(ctx, 0, 64, 2, 3);
    struct ggml_tensor *       pos       = api.ggml_new_tensor_1d(ctx, 26, 3);
    struct ggml_tensor *       factors   = api.ggml_new_tensor_1d(ctx, 0, 32);
    struct ggml_tensor * n = api.ggml_rope_ext(ctx, a, pos, factors, 64, 0, 512, 1e4f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f);
    uint32_t             layer;
    char                 before[64];
    api.ggml_set_name(n, "Qcur-0");
    memcpy(before, params_of(n), sizeof(before));
    CHECK(ropebend_plan_apply(&plan, &layout, n, &layer) == ROPEBEND_APPLY_YARN_FACTORS);
    CHECK(memcmp(before, params_of(n), sizeof(before)) == 0);
    CHECK(ropebend_plan_apply(&plan, &layout, rope_node(ctx, "Qcur-0", 1.0f), &layer) == ROPEBEND_APPLY_YARN_TWICE);
    CHECK(ropebend_plan_apply(&plan, &layout, rope_node(ctx, "Qcur-0", 0.0f), &layer) == ROPEBEND_APPLY_YARN_SCALED);
    CHECK(ropebend_apply_problem(ROPEBEND_APPLY_YARN_TWICE) != NULL &&
          ropebend_apply_problem(ROPEBEND_APPLY_QK) == NULL);
}

// ---- whose graph is it; a graph here is an array of nodes that ends with NULL

static int fake_n_nodes(struct ggml_cgraph * graph) {
    int n = 0;
    while (((struct ggml_tensor **) graph)[n] != NULL) {
        n++;
    }
    return n;
}

static struct ggml_tensor * fake_node(struct ggml_cgraph * graph, int i) {
    return ((struct ggml_tensor **) graph)[i];
}

static struct ropebend_graph_layout graph_layout;

static struct ggml_tensor * named(struct ggml_context * ctx, const char * name, void * buffer) {
    struct ggml_tensor * t = api.ggml_new_tensor_3d(ctx, 0, 64, 7, 1);
    api.ggml_set_name(t, name);
    memcpy((char *) t + graph_layout.buffer, &buffer, sizeof(buffer));
    return t;
}

static enum ropebend_owner_result owner(struct ropebend_owner_state * s, struct ggml_tensor * weight,
                                        struct ggml_tensor * cache, struct ggml_tensor * rope,
                                        const struct ropebend_file_plan ** plan) {
    struct ggml_tensor * graph[2] = { rope, NULL };
    set_src(rope, 0, cache);
    set_src(rope, 2, weight);
    return ropebend_owner_find(s, cache == NULL ? s : (void *) cache, (struct ggml_cgraph *) graph, plan);
}

static void test_owner(struct ggml_context * ctx, void * lib) {
    struct ropebend_graph_api graph_api;
    CHECK(ropebend_graph_api_load(&graph_api, find, lib) == NULL);
    CHECK(ropebend_graph_layout_probe(&api, &graph_api, &graph_layout) == NULL);
    graph_api.ggml_graph_n_nodes = fake_n_nodes;
    graph_api.ggml_graph_node    = fake_node;

    float                scales[2] = { 1.0f, 2.0f }, ones[2] = { 1.0f, 1.0f };
    uint32_t             up_to[1] = { UINT32_MAX };
    struct ropebend_file file     = { .path              = "a",
                                      .n_layer           = 2,
                                      .n_plan            = 1,
                                      .up_to             = up_to,
                                      .layer_scale       = scales,
                                      .layer_attn_factor = ones,
                                      .factor            = 1.0f };
    struct ropebend_file other    = file;
    other.path                    = "b";
    int buffers[5]; // addresses, no more: scaled, scaled too, unscaled, caches, a second model's caches
    struct ropebend_owner_state       s = { .api = &graph_api, .layout = &layout, .graph_layout = &graph_layout };
    const struct ropebend_file_plan * plan;
    struct ggml_tensor *              rope = rope_node(ctx, "Qcur-1", 0.0f);
    CHECK(ropebend_map_set(&s.weights, &buffers[0], &file, &buffers[0]));
    CHECK(ropebend_map_set(&s.weights, &buffers[1], &other, &buffers[1]));
    CHECK(ropebend_map_set(&s.weights, &buffers[2], NULL, &buffers[2]));
    struct ggml_tensor * scaled    = named(ctx, "blk.0.attn_k.weight", &buffers[0]);
    struct ggml_tensor * too       = named(ctx, "blk.0.attn_k.weight", &buffers[1]);
    struct ggml_tensor * unscaled  = named(ctx, "blk.0.attn_k.weight", &buffers[2]);
    struct ggml_tensor * shared    = named(ctx, "token_embd.weight", &buffers[0]);
    struct ggml_tensor * cache     = named(ctx, "cache_k_l1", &buffers[3]);
    struct ggml_tensor * far_cache = named(ctx, "cache_k_l1", &buffers[4]);
    struct ggml_tensor * view      = graph_api.ggml_view_tensor(ctx, cache);
    api.ggml_set_name(view, "k-1");

    CHECK(owner(&s, NULL, view, rope, &plan) == ROPEBEND_OWNER_UNKNOWN); // a shift before any decode
    CHECK(owner(&s, shared, NULL, rope, &plan) == ROPEBEND_OWNER_UNKNOWN);
    CHECK(owner(&s, unscaled, far_cache, rope, &plan) == ROPEBEND_OWNER_UNSCALED && plan == NULL);
    CHECK(owner(&s, scaled, view, rope, &plan) == ROPEBEND_OWNER_SCALED && plan->file == &file);
    CHECK(owner(&s, NULL, view, rope, &plan) == ROPEBEND_OWNER_SCALED && plan->file == &file); // its shift
    CHECK(owner(&s, NULL, far_cache, rope, &plan) == ROPEBEND_OWNER_UNSCALED);
    CHECK(owner(&s, unscaled, cache, rope, &plan) == ROPEBEND_OWNER_FOREIGN_CACHE); // a draft on the target's cache
    CHECK(owner(&s, scaled, far_cache, rope, &plan) == ROPEBEND_OWNER_FOREIGN_CACHE);
    CHECK(owner(&s, too, cache, rope, &plan) == ROPEBEND_OWNER_FOREIGN_CACHE);
    ropebend_map_drop_group(&s.caches, &buffers[3]); // freed; the address comes again
    CHECK(owner(&s, unscaled, cache, rope, &plan) == ROPEBEND_OWNER_UNSCALED);
    CHECK(owner(&s, scaled, cache, rope, &plan) == ROPEBEND_OWNER_FOREIGN_CACHE);
    ropebend_map_drop_group(&s.caches, &buffers[3]);
    CHECK(owner(&s, scaled, cache, rope, &plan) == ROPEBEND_OWNER_SCALED);
    ropebend_map_drop_group(&s.caches, &buffers[3]); // as if no decode had touched this cache: the scheduler knows
    CHECK(owner(&s, NULL, cache, rope, &plan) == ROPEBEND_OWNER_SCALED && plan->file == &file);
    ropebend_map_drop_group(&s.scheds, cache);
    CHECK(owner(&s, NULL, cache, rope, &plan) == ROPEBEND_OWNER_UNKNOWN);
    CHECK(owner(&s, scaled, cache, rope, &plan) == ROPEBEND_OWNER_SCALED);
    ropebend_map_drop_group(&s.weights, &buffers[0]);
    CHECK(owner(&s, scaled, NULL, rope, &plan) == ROPEBEND_OWNER_UNKNOWN);

    other.method     = ROPEBEND_METHOD_DYNAMIC_NTK;
    other.factor     = 2.0f;
    other.n_ctx_orig = 4;
    CHECK(owner(&s, too, NULL, rope, &plan) == ROPEBEND_OWNER_NO_CACHE);
    ropebend_map_drop_group(&s.caches, &buffers[3]);
    CHECK(owner(&s, too, cache, rope, &plan) == ROPEBEND_OWNER_SCALED && plan->length == 7);
    CHECK(plan->plan.layers[1].base_stretch == 6.0f); // bucket 8: f = 2 * 8 / 4 - 1

    for (int i = 0; i < 1000; i++) {
        CHECK(ropebend_map_set(&s.caches, (char *) &file + 16 * i, &file, &buffers[i % 3]));
    }
    ropebend_map_drop_group(&s.caches, &buffers[1]);
    for (int i = 0; i < 1000; i++) {
        CHECK((ropebend_map_get(&s.caches, (char *) &file + 16 * i) == NULL) == (i % 3 == 1));
    }
    free(s.weights.entries);
    free(s.caches.entries);
    free(s.scheds.entries);
    for (struct ropebend_file * f = &file; f != NULL; f = f == &file ? &other : NULL) {
        while (f->plans != NULL) {
            struct ropebend_file_plan * next = f->plans->next;
            free(f->plans->plan.layers);
            free(f->plans);
            f->plans = next;
        }
    }
}

// every cut of a real file must be survived
static void test_scan(const char * path) {
    char         text[65536], part[] = "/tmp/ropebend_scan_XXXXXX";
    const int    whole = open(path, O_RDONLY), cut = mkstemp(part);
    const size_t size = (size_t) read(whole, text, sizeof(text));
    CHECK(ropebend_scan_has_prefix(whole, "test.") && ropebend_scan_has_prefix(whole, "test.i64"));
    CHECK(!ropebend_scan_has_prefix(whole, "tesu.") && !ropebend_scan_has_prefix(whole, "test.i64x"));
    CHECK(write(cut, text, size) == (ssize_t) size);
    for (size_t n = size; n-- > 0;) {
        CHECK(ftruncate(cut, (off_t) n) == 0);
        CHECK(!ropebend_scan_has_prefix(cut, "tesu."));
    }
    for (size_t at = 0; at + 8 < size && at < 400; at++) { // lengths and types that lie
        CHECK(ftruncate(cut, 0) == 0 && pwrite(cut, text, size, 0) == (ssize_t) size);
        CHECK(pwrite(cut, "\xff\xff\xff\xff\xff\xff\xff\x7f", 8, (off_t) at) == 8);
        CHECK(!ropebend_scan_has_prefix(cut, "tesu."));
    }
    close(whole);
    close(cut);
    unlink(part);
}

static void test_metadata(const char * path) {
    struct gguf_context * gguf = api.gguf_init_from_file(path, (struct gguf_init_params) { true, NULL });
    CHECK(gguf != NULL);
    if (gguf == NULL) {
        return;
    }
    struct ropebend_metadata_value v;
    uint32_t                       u32;
    CHECK(ropebend_metadata_get(&api, gguf, "test.u32", &v) == ROPEBEND_METADATA_FOUND && v.type == ROPEBEND_GGUF_U32 &&
          !v.array);
    memcpy(&u32, v.data, sizeof(u32));
    CHECK(u32 == 7);
    CHECK(ropebend_metadata_get(&api, gguf, "test.str", &v) == ROPEBEND_METADATA_FOUND && strcmp(v.data, "hi") == 0);
    CHECK(ropebend_metadata_get(&api, gguf, "test.arr", &v) == ROPEBEND_METADATA_FOUND && v.array && v.n == 3 &&
          v.type == ROPEBEND_GGUF_F32);
    CHECK(memcmp(v.data, (float[]) { 1.0f, 2.0f, 3.0f }, 12) == 0);
    CHECK(ropebend_metadata_get(&api, gguf, "test.strs", &v) == ROPEBEND_METADATA_UNREADABLE);
    CHECK(ropebend_metadata_get(&api, gguf, "test.none", &v) == ROPEBEND_METADATA_ABSENT);
    api.gguf_free(gguf);
}

static void test_longest_run(void) {
    static const struct {
        const char * text;
        size_t       longest;
    } cases[] = {
        { "", 0 },          { " ", 1 },    { "abc", 3 },  { "a b", 2 },          { " a b ", 3 },
        { "aa  bbb c", 6 }, { "   a", 4 }, { "a   ", 4 }, { "\t\n a\r\v\f", 7 }, { "\xc2\xa0\xe3\x80\x80", 5 },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK(ropebend_longest_run(cases[i].text, strlen(cases[i].text)) == cases[i].longest);
    }
    CHECK(ropebend_longest_run("a\0b c", 5) == 4);
}

int main(int argc, char ** argv) {
    void * lib = argc == 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (lib == NULL) {
        printf("usage: core_test LIBGGML GGUF (%s)\n", argc == 3 ? dlerror() : "two arguments");
        return 2;
    }
    const char * problem = ropebend_ggml_api_load(&api, find, lib);
    if (problem == NULL) {
        problem = ropebend_layout_probe(&api, &layout);
    }
    if (problem != NULL) {
        printf("%s\n", problem);
        return 2;
    }
    struct ggml_context * ctx = api.ggml_init((struct ggml_init_params) { 1 << 20, NULL, true });
    test_probe(lib);
    test_apply(ctx);
    test_names(ctx);
    test_yarn_does_not_compose(ctx);
    test_owner(ctx, lib);
    test_scan(argv[2]);
    test_many_values(ctx);
    test_longest_run();
    test_metadata(argv[2]);
    api.ggml_free(ctx);
    printf("%d failed\n", n_failed);
    return n_failed != 0;
}
