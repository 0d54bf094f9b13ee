#include "graph_owner.h"

#include <string.h>

enum { N_SRC = 3 }; // weights, caches and their views are among the first sources of every op that reads them

struct evidence {
    bool                              scaled, unscaled, rope;
    struct ropebend_file *            file;
    uint32_t                          n_cells;    // of the longest K cache
    const struct ropebend_file_plan * cache_plan; // of K caches seen before
    bool                              cache_scaled, cache_unscaled, cache_new;
};

static bool has_prefix(const char * name, const char * prefix) {
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static const struct ggml_tensor * cache_root(const struct ropebend_owner_state * s, const struct ggml_tensor * tensor) {
    const struct ggml_tensor * base = ropebend_pointer_at(tensor, s->graph_layout->view_src);
    const struct ggml_tensor * root = base != NULL ? base : tensor;
    return has_prefix(ropebend_tensor_name(s->layout, root), "cache_k_l") ? root : NULL;
}

static void * buffer_of(const struct ropebend_owner_state * s, const struct ggml_tensor * tensor) {
    return ropebend_pointer_at(tensor, s->graph_layout->buffer);
}

static void look(const struct ropebend_owner_state * s, const struct ggml_tensor * tensor, struct evidence * e) {
    const struct ggml_tensor * root = cache_root(s, tensor);
    if (root != NULL) {
        int64_t n_cells;
        memcpy(&n_cells, (const char *) root + s->layout->ne + sizeof(n_cells), sizeof(n_cells));
        if (n_cells > e->n_cells && n_cells < UINT32_MAX) {
            e->n_cells = (uint32_t) n_cells;
        }
        const struct ropebend_map_entry * known = ropebend_map_get(&s->caches, root);
        if (known != NULL && known->value != NULL) {
            e->cache_plan   = known->value;
            e->cache_scaled = true;
        } else if (known != NULL) {
            e->cache_unscaled = true;
        } else {
            e->cache_new = true;
        }
        return;
    }
    const void * buffer = buffer_of(s, tensor);
    if (buffer == NULL) {
        return;
    }
    const struct ropebend_map_entry * known = ropebend_map_get(&s->weights, buffer);
    if (known != NULL && known->value == NULL) {
        e->unscaled = true;
    } else if (known != NULL && has_prefix(ropebend_tensor_name(s->layout, tensor), "blk.")) {
        e->scaled = true;
        e->file   = (struct ropebend_file *) known->value;
    }
}

static bool learn(struct ropebend_owner_state * s, const void * sched, struct ggml_cgraph * graph,
                  const struct evidence * e, const struct ropebend_file_plan * plan) {
    if (!ropebend_map_set(&s->scheds, sched, plan, sched)) {
        return false;
    }
    if (!e->cache_new && e->cache_plan == plan) {
        return true; // nearly every graph
    }
    for (int i = 0, n = s->api->ggml_graph_n_nodes(graph); i < n; i++) {
        const struct ggml_tensor * node = s->api->ggml_graph_node(graph, i);
        for (int k = -1; k < N_SRC; k++) {
            const struct ggml_tensor * tensor = k < 0 ? node : ropebend_src(s->layout, node, k);
            const struct ggml_tensor * root   = tensor == NULL ? NULL : cache_root(s, tensor);
            if (root == NULL) {
                continue;
            }
            const struct ropebend_map_entry * known = ropebend_map_get(&s->caches, root);
            if ((known == NULL || known->value != plan) &&
                !ropebend_map_set(&s->caches, root, plan, buffer_of(s, root))) {
                return false;
            }
        }
    }
    return true;
}

enum ropebend_owner_result ropebend_owner_find(struct ropebend_owner_state * s, const void * sched,
                                               struct ggml_cgraph * graph, const struct ropebend_file_plan ** plan) {
    struct evidence e = { 0 };
    for (int i = 0, n = s->api->ggml_graph_n_nodes(graph); i < n; i++) {
        const struct ggml_tensor * node = s->api->ggml_graph_node(graph, i);
        e.rope                          = e.rope || ropebend_is_rope(s->layout, node);
        look(s, node, &e);
        for (int k = 0; k < N_SRC; k++) {
            const struct ggml_tensor * src = ropebend_src(s->layout, node, k);
            if (src != NULL) {
                look(s, src, &e);
            }
        }
    }
    *plan = NULL;
    if (e.scaled) {
        if (e.cache_unscaled || (e.cache_scaled && e.cache_plan->file != e.file)) {
            return ROPEBEND_OWNER_FOREIGN_CACHE;
        }
        if (ropebend_file_by_length(e.file) && e.n_cells == 0) {
            return ROPEBEND_OWNER_NO_CACHE;
        }
        *plan = ropebend_file_plan(e.file, e.n_cells);
        return *plan != NULL && learn(s, sched, graph, &e, *plan) ? ROPEBEND_OWNER_SCALED : ROPEBEND_OWNER_NO_MEMORY;
    }
    if (e.unscaled) {
        if (e.cache_scaled) {
            return ROPEBEND_OWNER_FOREIGN_CACHE;
        }
        return learn(s, sched, graph, &e, NULL) ? ROPEBEND_OWNER_UNSCALED : ROPEBEND_OWNER_NO_MEMORY;
    }
    if (e.cache_scaled && e.cache_unscaled) {
        return ROPEBEND_OWNER_FOREIGN_CACHE;
    }
    if (e.cache_scaled) {
        *plan = e.cache_plan;
        return ROPEBEND_OWNER_SCALED;
    }
    if (e.cache_unscaled || !e.rope) {
        return ROPEBEND_OWNER_UNSCALED;
    }
    const struct ropebend_map_entry * known = ropebend_map_get(&s->scheds, sched);
    if (known == NULL || e.n_cells == 0) {
        return ROPEBEND_OWNER_UNKNOWN;
    }
    *plan = known->value;
    return *plan != NULL ? ROPEBEND_OWNER_SCALED : ROPEBEND_OWNER_UNSCALED;
}
