#include "hook.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool ropebend_hook_init(struct ropebend_hook * hook, const struct ropebend_layout * layout, uint32_t n_layer) {
    memset(hook, 0, sizeof(*hook));
    pthread_mutex_init(&hook->lock, NULL);
    hook->layout       = layout;
    hook->plan.n_layer = n_layer;
    hook->plan.layers  = calloc(n_layer, sizeof(*hook->plan.layers));
    hook->n_qk         = calloc(n_layer, sizeof(*hook->n_qk));
    hook->n_shift      = calloc(n_layer, sizeof(*hook->n_shift));
    return hook->plan.layers != NULL && hook->n_qk != NULL && hook->n_shift != NULL;
}

void ropebend_hook_free(struct ropebend_hook * hook) {
    pthread_mutex_destroy(&hook->lock);
    free(hook->plan.layers);
    free(hook->n_qk);
    free(hook->n_shift);
}

bool ropebend_hook_cb_eval(struct ggml_tensor * node, bool ask, void * user_data) {
    struct ropebend_hook * hook = user_data;
    if (!ask) {
        return true;
    }
    if (!ropebend_is_rope(hook->layout, node)) {
        return false; // nearly every node: no lock
    }
    pthread_mutex_lock(&hook->lock);
    uint32_t                     layer  = 0;
    const struct ropebend_plan * plan   = hook->active ? &hook->plan : NULL;
    enum ropebend_apply_result   result = ropebend_plan_apply(plan, hook->layout, node, &layer);
    if ((result == ROPEBEND_APPLY_QK || result == ROPEBEND_APPLY_SHIFT) && layer >= hook->plan.n_layer) {
        result = ROPEBEND_APPLY_UNRESOLVED; // without an active plan the core does not know how many layers there are
    }
    const char * problem = ropebend_apply_problem(result);
    if (problem != NULL) {
        if (hook->n_problem++ == 0) {
            snprintf(hook->problem, sizeof(hook->problem), "rope node '%.64s' %s",
                     ropebend_tensor_name(hook->layout, node), problem);
        }
    } else {
        (result == ROPEBEND_APPLY_SHIFT ? hook->n_shift : hook->n_qk)[layer]++;
    }
    pthread_mutex_unlock(&hook->lock);
    return false; // never wait for a node: the whole graph is computed in one go
}

void ropebend_hook_set_plan(struct ropebend_hook * hook, const struct ropebend_plan_layer * layers, float yarn_factor,
                            int32_t yarn_n_ctx_orig) {
    pthread_mutex_lock(&hook->lock);
    memcpy(hook->plan.layers, layers, hook->plan.n_layer * sizeof(*layers));
    hook->plan.yarn_factor     = yarn_factor;
    hook->plan.yarn_n_ctx_orig = yarn_n_ctx_orig;
    hook->active               = true;
    pthread_mutex_unlock(&hook->lock);
}

void ropebend_hook_clear_plan(struct ropebend_hook * hook) {
    pthread_mutex_lock(&hook->lock);
    hook->active = false;
    pthread_mutex_unlock(&hook->lock);
}

void ropebend_hook_reset_counts(struct ropebend_hook * hook) {
    pthread_mutex_lock(&hook->lock);
    memset(hook->n_qk, 0, hook->plan.n_layer * sizeof(*hook->n_qk));
    memset(hook->n_shift, 0, hook->plan.n_layer * sizeof(*hook->n_shift));
    hook->n_problem  = 0;
    hook->problem[0] = '\0';
    pthread_mutex_unlock(&hook->lock);
}

void ropebend_hook_get_counts(struct ropebend_hook * hook, bool shift, uint32_t * n_seen) {
    pthread_mutex_lock(&hook->lock);
    memcpy(n_seen, shift ? hook->n_shift : hook->n_qk, hook->plan.n_layer * sizeof(*n_seen));
    pthread_mutex_unlock(&hook->lock);
}

bool ropebend_hook_get_problem(struct ropebend_hook * hook, char problem[ROPEBEND_HOOK_PROBLEM]) {
    pthread_mutex_lock(&hook->lock);
    const bool any = hook->n_problem > 0;
    memcpy(problem, hook->problem, ROPEBEND_HOOK_PROBLEM);
    pthread_mutex_unlock(&hook->lock);
    return any;
}
