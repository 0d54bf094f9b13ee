// Which model a whole graph of llama.cpp's scheduler belongs to, told from the data that flows into it.
//
// A decode graph reads weights named blk.*, which lie in a buffer of the file they came from. The graph of a K-shift reads
// no weights, only the K cache: its tensors are known from the decode graphs that came before it, or else (caches that no
// decode has touched) the scheduler is, which belongs to one context.

#ifndef ROPEBEND_GRAPH_OWNER_H
#define ROPEBEND_GRAPH_OWNER_H

#include "pointer_map.h"
#include "scaled_file.h"

struct ropebend_owner_state {
    const struct ropebend_graph_api *    api;
    const struct ropebend_layout *       layout;
    const struct ropebend_graph_layout * graph_layout;
    struct ropebend_map                  weights; // buffer -> ropebend_file, or NULL for a file without scales
    struct ropebend_map                  caches;  // cache_k_l* tensor -> ropebend_file_plan, or NULL; grouped by buffer
    struct ropebend_map                  scheds;  // scheduler -> ropebend_file_plan, or NULL
};

enum ropebend_owner_result {
    ROPEBEND_OWNER_UNSCALED,      // a model without scales, or no rope in it
    ROPEBEND_OWNER_SCALED,        // *plan is to be applied
    ROPEBEND_OWNER_UNKNOWN,       // it has rope nodes, and nothing tells whose they are
    ROPEBEND_OWNER_FOREIGN_CACHE, // it reads the K cache of another model, and one of the two is scaled
    ROPEBEND_OWNER_NO_CACHE,      // plans by length, and no K cache tells how long a sequence may become
    ROPEBEND_OWNER_NO_MEMORY,
};

enum ropebend_owner_result ropebend_owner_find(struct ropebend_owner_state * state, const void * sched,
                                               struct ggml_cgraph * graph, const struct ropebend_file_plan ** plan);

#endif
