// Which model a whole graph of llama.cpp's scheduler belongs to, told from the data that flows into it.
//
// A decode graph reads weights named blk.*, which lie in a buffer of the file they came from. The graph of a K-shift reads
// no weights, only the K cache: its tensors are known from the decode graphs that came before it, or else (caches that no
// decode has touched) the scheduler is, which belongs to one context.

#ifndef ROPEBEND_GRAPH_OWNER_H
#define ROPEBEND_GRAPH_OWNER_H

#include "pointer_map.h"
#include "scaled_file.h"

struct graph_owner_state {
    const struct ggml_graph_api *    api;
    const struct ggml_layout *       layout;
    const struct ggml_graph_layout * graph_layout;
    struct pointer_map               weights; // buffer -> scaled_file, or NULL for a file without scales
    struct pointer_map               caches;  // cache_k_l* tensor -> scaled_plan, or NULL; grouped by buffer
    struct pointer_map               scheds;  // scheduler -> scaled_plan, or NULL
};

enum graph_owner_result {
    GRAPH_OWNER_UNSCALED,      // a model without scales, or no rope in it
    GRAPH_OWNER_SCALED,        // *plan is to be applied
    GRAPH_OWNER_UNKNOWN,       // it has rope nodes, and nothing tells whose they are
    GRAPH_OWNER_FOREIGN_CACHE, // it reads the K cache of another model, and one of the two is scaled
    GRAPH_OWNER_NO_CACHE,      // dynamic-ntk, and no K cache tells how long a sequence may become
    GRAPH_OWNER_NO_MEMORY,
};

enum graph_owner_result graph_owner_find(struct graph_owner_state * state, const void * sched,
                                         struct ggml_cgraph * graph, const struct scaled_plan ** plan);

#endif
