// What llama.cpp's scheduler calls for every node it is about to compute (llama_context_params.cb_eval).
//
// The plan is set, and the counts are read, in other threads than the one that decodes: all of it goes by a lock.

#ifndef ROPEBEND_HOOK_H
#define ROPEBEND_HOOK_H

#include "rope_plan.h"

#include <pthread.h>

enum { ROPEBEND_HOOK_PROBLEM = 192 };

struct ropebend_hook {
    const struct ropebend_layout * layout;
    pthread_mutex_t                lock; // of all that follows
    struct ropebend_plan           plan;
    bool                           active;  // false: `plan` is not applied, patched nodes get their own values back
    uint32_t *                     n_qk;    // [n_layer] rope nodes of Q and K seen since the last reset
    uint32_t *                     n_shift; // [n_layer] rope nodes over the K cache seen since the last reset
    uint64_t                       n_problem;
    char                           problem[ROPEBEND_HOOK_PROBLEM]; // the first one
};

// false: out of memory. `layout` must outlive the hook, and the hook must outlive its context.
bool ropebend_hook_init(struct ropebend_hook * hook, const struct ropebend_layout * layout, uint32_t n_layer);
void ropebend_hook_free(struct ropebend_hook * hook);

// cb_eval, with the hook as its user data
bool ropebend_hook_cb_eval(struct ggml_tensor * node, bool ask, void * user_data);

// From the next graph on. layers: [n_layer], copied.
void ropebend_hook_set_plan(struct ropebend_hook * hook, const struct ropebend_plan_layer * layers, float yarn_factor,
                            int32_t yarn_n_ctx_orig);
void ropebend_hook_clear_plan(struct ropebend_hook * hook);

void ropebend_hook_reset_counts(struct ropebend_hook * hook);
void ropebend_hook_get_counts(struct ropebend_hook * hook, bool shift, uint32_t * n_seen); // [n_layer]

// The first rope node that could not be patched; false: there was none.
bool ropebend_hook_get_problem(struct ropebend_hook * hook, char problem[ROPEBEND_HOOK_PROBLEM]);

#endif
