#include "announce.h"

static void range(FILE * out, const float * values, uint32_t n, const char * name, const char * always) {
    float low = values[0], high = values[0];
    for (uint32_t i = 1; i < n; i++) {
        low  = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    if (always != NULL || low != 1.0f || high != 1.0f) {
        fprintf(out, "%s%g to %g", name, (double) low, (double) high);
    }
}

void ropebend_announce(const struct ropebend_file_plan * plan, uint32_t n_layer, FILE * out) {
    const struct ropebend_file * file = plan->file;
    const size_t                 row  = (size_t) plan->index * file->n_layer;
    if (plan->unscaled) {
        fprintf(out, "ropebend: %s: runs unscaled", file->path);
    } else {
        fprintf(out, "ropebend: %s: scales of %u layers applied, ", file->path, n_layer);
        range(out, file->layer_scale + row, file->n_layer, "", "always");
        fprintf(out, ", method %s, factor %g", ropebend_method_names[file->method], (double) file->factor);
        range(out, file->layer_attn_factor + row, file->n_layer, ", attention factors ", NULL);
    }
    if (file->n_plan > 1) {
        const bool last = plan->index == file->n_plan - 1;
        fprintf(out, ", the plan for %s %u tokens", last ? "more than" : "up to",
                file->up_to[last ? plan->index - 1 : plan->index]);
    }
    fprintf(out, "\n");
}
