// The plan (what each layer's rope shall be) and how it is written into a node of llama.cpp's graph.

#ifndef ROPEBEND_ROPE_PLAN_H
#define ROPEBEND_ROPE_PLAN_H

#include "ggml_layout.h"

#include <stdbool.h>
#include <stdint.h>

struct rope_plan_layer {
    float stretch;       // divides freq_scale
    float base_stretch;  // r in freq_base * r^(d/(d-2)), d = the node's n_dims (NTK-aware scaling)
};

struct rope_plan {
    uint32_t                 n_layer;
    float                    yarn_factor;      // > 0: YaRN with this factor's magnitude; 0: leave the node's own
    int32_t                  yarn_n_ctx_orig;
    struct rope_plan_layer * layers;
};

enum rope_apply_result {
    ROPE_APPLY_NOT_ROPE,    // some other op
    ROPE_APPLY_QK,          // a rope of Q or K in a decode graph; *layer is set
    ROPE_APPLY_SHIFT,       // a rope over the K cache (llama_memory_seq_add); *layer is set
    // the rest are failures; the node is left as it was
    ROPE_APPLY_UNRESOLVED,    // a rope whose layer cannot be told, or lies outside the plan
    ROPE_APPLY_FULL,          // more different rope parameters in one process than fit the table
    ROPE_APPLY_YARN_TWICE,    // method yarn on a node that has YaRN already,
    ROPE_APPLY_YARN_SCALED,   // ... on one that is interpolated already,
    ROPE_APPLY_YARN_FACTORS,  // ... or on one with frequency factors (Llama-3, LongRoPE)
};

// What went wrong, to be read after the node's name; NULL if nothing did.
const char * rope_apply_problem(enum rope_apply_result result);

// Write `plan` into `node` if it is a rope; with plan = NULL put back what an earlier plan changed.
// Idempotent: the node's own values are remembered, so a reused graph can be patched with another plan.
enum rope_apply_result rope_plan_apply(const struct rope_plan * plan, const struct ggml_layout * layout,
                                       struct ggml_tensor * node, uint32_t * layer);

bool rope_node_is(const struct ggml_layout * layout, const struct ggml_tensor * node); // op ROPE or ROPE_BACK

// The layer a node belongs to, by name, or -1. *is_shift tells whether the K cache is its source.
int64_t rope_node_layer(const struct ggml_layout * layout, const struct ggml_tensor * node, bool * is_shift);

const char * rope_node_name(const struct ggml_layout * layout, const struct ggml_tensor * node);

#endif
