#include "rope_plan.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

// int32 slots of a rope node's op_params (ggml_rope_impl in ggml.c)
enum {
    SLOT_MARKER = 0, // unused by ggml: here we leave our mark ...
    SLOT_N_DIMS = 1,
    SLOT_INDEX  = 3, // ... and the index of the node's own values
    SLOT_VALUES = 4, // n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow
};

// op_params 4 .. 10
struct rope_values {
    int32_t n_ctx_orig;
    float   freq_base;
    float   freq_scale;
    float   ext_factor;
    float   attn_factor;
    float   beta_fast;
    float   beta_slow;
};

static const int32_t MARKER = 0x626f7072; // "rpob"

// The nodes' own values. A graph that is rebuilt has its slots reset; a graph that is reused still holds the mark and
// the index. Keying by the node's address would be wrong: addresses are reused. There are only a few different values
// in a process (one for each kind of layer and context), so entries are shared and never freed.
enum { N_ORIGINAL = 4096 };

static struct rope_values originals[N_ORIGINAL];
static int32_t            n_originals;
static pthread_mutex_t    originals_lock = PTHREAD_MUTEX_INITIALIZER;

static int32_t original_index(const struct rope_values * v) {
    int32_t index = -1;
    pthread_mutex_lock(&originals_lock);
    for (int32_t i = 0; i < n_originals && index < 0; i++) {
        if (memcmp(&originals[i], v, sizeof(*v)) == 0) {
            index = i;
        }
    }
    if (index < 0 && n_originals < N_ORIGINAL) {
        index            = n_originals++;
        originals[index] = *v;
    }
    pthread_mutex_unlock(&originals_lock);
    return index;
}

static bool original_get(int32_t index, struct rope_values * v) {
    bool found = false;
    pthread_mutex_lock(&originals_lock);
    if (index >= 0 && index < n_originals) {
        *v    = originals[index];
        found = true;
    }
    pthread_mutex_unlock(&originals_lock);
    return found;
}

bool ropebend_is_rope(const struct ropebend_layout * layout, const struct ggml_tensor * node) {
    int32_t op;
    memcpy(&op, (const char *) node + layout->op, sizeof(op));
    return op == layout->op_rope || op == layout->op_rope_back;
}

const char * ropebend_tensor_name(const struct ropebend_layout * layout, const struct ggml_tensor * node) {
    return (const char *) node + layout->name;
}

// The number that starts at `s`, if it has at most 9 digits and ends with the string or (if `prefix`) anywhere.
static int64_t parse_layer(const char * s, bool prefix) {
    int64_t layer = 0;
    int     n     = 0;
    for (; s[n] >= '0' && s[n] <= '9'; n++) {
        if (n == 9) {
            return -1;
        }
        layer = 10 * layer + (s[n] - '0');
    }
    return n == 0 || (s[n] != '\0' && !prefix) ? -1 : layer;
}

static int64_t name_layer(const char * name, bool * is_shift) {
    static const char CACHE_K[] = "cache_k_l"; // llama-kv-cache.cpp
    if (strncmp(name, CACHE_K, sizeof(CACHE_K) - 1) == 0) {
        *is_shift = true;
        return parse_layer(name + sizeof(CACHE_K) - 1, true);
    }
    const char * dash = strrchr(name, '-'); // llm_graph_context::cb names nodes "Qcur-3"
    return dash == NULL ? -1 : parse_layer(dash + 1, false);
}

static int64_t walk(const struct ropebend_layout * layout, const struct ggml_tensor * node, int depth,
                    bool * is_shift) {
    int64_t layer = name_layer(ropebend_tensor_name(layout, node), is_shift);
    // src[1] too: with a quantised K cache the shift graph multiplies by a Hadamard matrix, which is src[0]
    for (int i = 0; i < 2 && layer < 0 && depth > 0; i++) {
        const struct ggml_tensor * src = ropebend_src(layout, node, i);
        if (src != NULL) {
            layer = walk(layout, src, depth - 1, is_shift);
        }
    }
    return layer;
}

int64_t ropebend_rope_layer(const struct ropebend_layout * layout, const struct ggml_tensor * node, bool * is_shift) {
    *is_shift = false;
    return walk(layout, node, 8, is_shift);
}

const char * ropebend_apply_problem(enum ropebend_apply_result result) {
    switch (result) {
        case ROPEBEND_APPLY_UNRESOLVED: return "belongs to no layer of the plan";
        case ROPEBEND_APPLY_FULL: return "is one too many: too many different rope parameters in one process";
        case ROPEBEND_APPLY_YARN_TWICE: return "has YaRN already, so method yarn does not fit";
        case ROPEBEND_APPLY_YARN_SCALED: return "is interpolated already, so method yarn does not fit";
        case ROPEBEND_APPLY_YARN_FACTORS: return "has frequency factors, so method yarn does not fit";
        case ROPEBEND_APPLY_NOT_ROPE:
        case ROPEBEND_APPLY_QK:
        case ROPEBEND_APPLY_SHIFT: break;
    }
    return NULL;
}

// YaRN ramps between freq_scale and 1 by the rotations of base^(-2i/d): on top of another method both ends would be wrong.
// `result` where it fits.
static enum ropebend_apply_result check_yarn(const struct rope_values * own, bool has_factors,
                                             enum ropebend_apply_result result) {
    if (own->ext_factor != 0.0f) {
        return ROPEBEND_APPLY_YARN_TWICE;
    }
    if (own->freq_scale != 1.0f) {
        return ROPEBEND_APPLY_YARN_SCALED;
    }
    return has_factors ? ROPEBEND_APPLY_YARN_FACTORS : result;
}

// ggml's rope multiplies cos and sin by attn_factor * yarn_gain(freq_scale) where ext_factor is not 0
static float yarn_gain(float freq_scale) {
    return 1.0f + 0.1f * logf(1.0f / freq_scale);
}

static struct rope_values planned(const struct rope_values * own, const struct ropebend_plan * plan,
                                  const struct ropebend_plan_layer * layer, int32_t n_dims, bool is_shift) {
    struct rope_values v = *own;
    if (layer->stretch != 1.0f) {
        v.freq_scale = own->freq_scale / layer->stretch;
    }
    if (layer->base_stretch != 1.0f && n_dims > 2) { // with two dimensions the only angle does not depend on the base
        v.freq_base = own->freq_base * powf(layer->base_stretch, (float) n_dims / (float) (n_dims - 2));
    }
    if (plan->yarn_factor > 0.0f) {
        v.n_ctx_orig  = plan->yarn_n_ctx_orig;
        v.ext_factor  = 1.0f;
        v.beta_fast   = 32.0f; // the values of the YaRN paper and llama.cpp's defaults
        v.beta_slow   = 1.0f;
        v.attn_factor = own->attn_factor * yarn_gain(1.0f / plan->yarn_factor) / yarn_gain(v.freq_scale);
    } else if (own->ext_factor != 0.0f && layer->stretch != 1.0f) {
        v.attn_factor = own->attn_factor * yarn_gain(own->freq_scale) / yarn_gain(v.freq_scale);
    }
    v.attn_factor *= layer->attn_factor;
    if (is_shift) { // cached keys carry the magnitude already; llama.cpp's own shift would apply it again
        v.attn_factor = v.ext_factor != 0.0f ? 1.0f / yarn_gain(v.freq_scale) : 1.0f;
    }
    return v;
}

enum ropebend_apply_result ropebend_plan_apply(const struct ropebend_plan * plan, const struct ropebend_layout * layout,
                                               struct ggml_tensor * node, uint32_t * layer) {
    if (!ropebend_is_rope(layout, node)) {
        return ROPEBEND_APPLY_NOT_ROPE;
    }

    bool          is_shift;
    const int64_t found = ropebend_rope_layer(layout, node, &is_shift);
    if (found < 0 || (plan != NULL && found >= plan->n_layer)) {
        return ROPEBEND_APPLY_UNRESOLVED;
    }
    *layer                            = (uint32_t) found;
    enum ropebend_apply_result result = is_shift ? ROPEBEND_APPLY_SHIFT : ROPEBEND_APPLY_QK;

    char *             params = (char *) node + layout->op_params;
    int32_t            slot[SLOT_VALUES];
    struct rope_values own;
    memcpy(slot, params, sizeof(slot));
    const bool marked = slot[SLOT_MARKER] == MARKER && original_get(slot[SLOT_INDEX], &own);
    if (!marked && plan == NULL) {
        return result; // never touched: nothing to put back
    }
    if (!marked) {
        memcpy(&own, params + SLOT_VALUES * sizeof(int32_t), sizeof(own));
    }
    if (plan != NULL && plan->yarn_factor > 0.0f) {
        result = check_yarn(&own, ropebend_src(layout, node, 2) != NULL, result);
        if (ropebend_apply_problem(result) != NULL) {
            return result;
        }
    }
    if (!marked) {
        slot[SLOT_INDEX] = original_index(&own);
        if (slot[SLOT_INDEX] < 0) {
            return ROPEBEND_APPLY_FULL;
        }
        slot[SLOT_MARKER] = MARKER;
        memcpy(params, slot, sizeof(slot));
    }
    const struct rope_values v = plan == NULL ? own
                                              : planned(&own, plan, &plan->layers[*layer], slot[SLOT_N_DIMS], is_shift);
    memcpy(params + SLOT_VALUES * sizeof(int32_t), &v, sizeof(v));
    return result;
}
