// The plan (what each layer's rope shall be) and how it is written into a node of llama.cpp's graph.

#ifndef ROPEBEND_ROPE_PLAN_H
#define ROPEBEND_ROPE_PLAN_H

#include "ggml_layout.h"

#include <stdbool.h>
#include <stdint.h>

struct ropebend_plan_layer {
    float stretch;      // divides freq_scale
    float base_stretch; // r in freq_base * r^(d/(d-2)), d = the node's n_dims (NTK-aware scaling)
    float attn_factor;  // multiplies the node's own, and so cos and sin: the attention's logits by its square
};

struct ropebend_plan {
    uint32_t                     n_layer;
    float                        yarn_factor; // > 0: YaRN with this factor's magnitude; 0: leave the node's own
    int32_t                      yarn_n_ctx_orig;
    struct ropebend_plan_layer * layers;
};

enum ropebend_apply_result {
    ROPEBEND_APPLY_NOT_ROPE, // some other op
    ROPEBEND_APPLY_QK,       // a rope of Q or K in a decode graph; *layer is set
    ROPEBEND_APPLY_SHIFT,    // a rope over the K cache (llama_memory_seq_add); *layer is set
    // the rest are failures; the node is left as it was
    ROPEBEND_APPLY_UNRESOLVED,   // a rope whose layer cannot be told, or lies outside the plan
    ROPEBEND_APPLY_FULL,         // more different rope parameters in one process than fit the table
    ROPEBEND_APPLY_YARN_TWICE,   // method yarn on a node that has YaRN already,
    ROPEBEND_APPLY_YARN_SCALED,  // ... on one that is interpolated already,
    ROPEBEND_APPLY_YARN_FACTORS, // ... or on one with frequency factors (Llama-3, LongRoPE)
};

// What went wrong, to be read after the node's name; NULL if nothing did.
const char * ropebend_apply_problem(enum ropebend_apply_result result);

// Write `plan` into `node` if it is a rope; with plan = NULL put back what an earlier plan changed.
// Idempotent: the node's own values are remembered, so a reused graph can be patched with another plan.
enum ropebend_apply_result ropebend_plan_apply(const struct ropebend_plan * plan, const struct ropebend_layout * layout,
                                               struct ggml_tensor * node, uint32_t * layer);

bool ropebend_is_rope(const struct ropebend_layout * layout, const struct ggml_tensor * node); // op ROPE or ROPE_BACK

// The layer a node belongs to, by name, or -1. *is_shift tells whether the K cache is its source.
int64_t ropebend_rope_layer(const struct ropebend_layout * layout, const struct ggml_tensor * node, bool * is_shift);

const char * ropebend_tensor_name(const struct ropebend_layout * layout, const struct ggml_tensor * node);

#endif
