#define _XOPEN_SOURCE 700 // strdup with -std=c11
#include "scaled_file.h"

#include "architectures.h"
#include "gguf_metadata.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// the keys and limits of plugin/scaling/__init__.py
static const char  PREFIX[]          = "ropebend.";
static const char  KEY_VERSION[]     = "ropebend.version";
static const char  KEY_LAYER_SCALE[] = "ropebend.layer_scale";
static const char  KEY_ATTN_FACTOR[] = "ropebend.layer_attn_factor";
static const char  KEY_UP_TO[]       = "ropebend.plan.up_to";
static const char  KEY_METHOD[]      = "ropebend.rope.method";
static const char  KEY_FACTOR[]      = "ropebend.rope.factor";
static const char  KEY_N_CTX_ORIG[]  = "ropebend.rope.original_context";
static const float MIN_SCALE = 0.1f, MAX_SCALE = 1000.0f, MIN_ATTN_FACTOR = 0.1f, MAX_ATTN_FACTOR = 10.0f;

enum { MAX_PLANS = 256 };

const char * const ropebend_method_names[ROPEBEND_N_METHODS] = { "none", "linear", "ntk", "dynamic-ntk", "yarn" };

static bool is_unscaled(const float * layer_scale, const struct ropebend_file * f) {
    uint32_t i = 0;
    while (i < f->n_layer && layer_scale[i] == 0.0f) {
        i++;
    }
    return i == f->n_layer;
}

struct reader {
    const struct ropebend_ggml_api * api;
    const struct gguf_context *      gguf;
    char *                           problem;
    size_t                           n_problem;
};

#define FAIL(reader, ...) (snprintf((reader)->problem, (reader)->n_problem, __VA_ARGS__), false)

// *found tells whether the key is there; false: it is, and has another type
static bool get(struct reader * r, const char * key, int type, bool array, struct ropebend_metadata_value * v,
                bool * found) {
    const enum ropebend_metadata_found result = ropebend_metadata_get(r->api, r->gguf, key, v);
    *found                                    = result == ROPEBEND_METADATA_FOUND;
    if (result == ROPEBEND_METADATA_ABSENT || (*found && v->type == type && v->array == array)) {
        return true;
    }
    return FAIL(r, "%s: expected %s%s, got %s%s", key, array ? "an array of " : "a ",
                ropebend_gguf_name((unsigned) type), *found && !v->array ? "a " : "an array of ",
                *found ? ropebend_gguf_name((unsigned) v->type) : "strings");
}

static bool get_u32(struct reader * r, const char * key, uint32_t * value, bool * found) {
    struct ropebend_metadata_value v;
    if (!get(r, key, ROPEBEND_GGUF_U32, false, &v, found)) {
        return false;
    }
    if (*found) {
        memcpy(value, v.data, sizeof(*value));
    }
    return true;
}

static bool need_u32(struct reader * r, const char * arch, const char * name, uint32_t * value) {
    char key[160];
    bool found;
    snprintf(key, sizeof(key), "%.100s.%s", arch, name);
    return get_u32(r, key, value, &found) && (found || FAIL(r, "%s: missing", key));
}

static bool read_method(struct reader * r, struct ropebend_file * f) {
    struct ropebend_metadata_value v;
    bool                           found;
    if (!get(r, KEY_METHOD, ROPEBEND_GGUF_STR, false, &v, &found)) {
        return false;
    }
    if (found) {
        int i = 0;
        while (i < ROPEBEND_N_METHODS && strcmp(v.data, ropebend_method_names[i]) != 0) {
            i++;
        }
        if (i == ROPEBEND_N_METHODS) {
            return FAIL(r, "%s: expected one of none, linear, ntk, dynamic-ntk, yarn, got '%.40s'", KEY_METHOD,
                        (const char *) v.data);
        }
        f->method = (enum ropebend_method) i;
    }
    f->factor = 1.0f;
    if (!get(r, KEY_FACTOR, ROPEBEND_GGUF_F32, false, &v, &found)) {
        return false;
    }
    if (found) {
        memcpy(&f->factor, v.data, sizeof(f->factor));
    }
    if (!(f->factor >= 1.0f && f->factor <= MAX_SCALE)) {
        return FAIL(r, "%s: expected a number in [1, 1000], got %g", KEY_FACTOR, (double) f->factor);
    }
    if (f->method == ROPEBEND_METHOD_NONE && f->factor != 1.0f) {
        return FAIL(r, "%s: method none has factor 1, got %g", KEY_FACTOR, (double) f->factor);
    }
    return true;
}

// [n] float32 in [low, high]; *values is allocated. unscaled: rows of zeros are allowed, too, but for the last plan.
static bool read_row(struct reader * r, const struct ropebend_file * f, const char * key, const char * what, float low,
                     float high, bool unscaled, float ** values) {
    struct ropebend_metadata_value v;
    bool                           found;
    const size_t                   n = (size_t) f->n_plan * f->n_layer;
    if (!get(r, key, ROPEBEND_GGUF_F32, true, &v, &found)) {
        return false;
    }
    *values = malloc(n * sizeof(float));
    if (*values == NULL) {
        return FAIL(r, "out of memory");
    }
    if (!found) {
        for (size_t i = 0; i < n; i++) {
            (*values)[i] = 1.0f;
        }
        return true;
    }
    if (v.n != n && f->n_plan == 1) {
        return FAIL(r, "%s: expected %u %ss, one per block, got %zu", key, f->n_layer, what, v.n);
    }
    if (v.n != n) {
        return FAIL(r, "%s: expected %zu %ss, for %u plans one per block, got %zu", key, n, what, f->n_plan, v.n);
    }
    memcpy(*values, v.data, n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        const float  value = (*values)[i];
        const size_t row   = i / f->n_layer;
        const bool   none  = unscaled && row < f->n_plan - 1 && is_unscaled(*values + row * f->n_layer, f);
        if (!(value >= low && value <= high) && !none) {
            return FAIL(r, "%s[%zu]: expected a finite %s in [%g, %g], got %g", key, i, what, (double) low,
                        (double) high, (double) value);
        }
    }
    return true;
}

static bool read_plans(struct reader * r, struct ropebend_file * f, uint32_t version) {
    struct ropebend_metadata_value v;
    bool                           found;
    if (f->n_layer == 0) {
        return FAIL(r, "block_count: expected a positive number, got 0");
    }
    for (int i = 0; i < 2 && version < 2; i++) {
        const char * key = i == 0 ? KEY_UP_TO : KEY_ATTN_FACTOR;
        if (r->api->gguf_find_key(r->gguf, key) >= 0) {
            return FAIL(r, "%s: expected 2, as %s is present, got %u", KEY_VERSION, key, version);
        }
    }
    if (!get(r, KEY_UP_TO, ROPEBEND_GGUF_U32, true, &v, &found)) {
        return false;
    }
    if (found && (v.n == 0 || v.n > MAX_PLANS)) {
        return FAIL(r, "%s: expected 1 to %d plans, got %zu", KEY_UP_TO, MAX_PLANS, v.n);
    }
    f->n_plan = found ? (uint32_t) v.n : 1;
    f->up_to  = malloc(f->n_plan * sizeof(*f->up_to));
    if (f->up_to == NULL) {
        return FAIL(r, "out of memory");
    }
    f->up_to[0] = UINT32_MAX;
    if (found) {
        memcpy(f->up_to, v.data, v.n * sizeof(*f->up_to));
    }
    for (uint32_t i = 0; i < f->n_plan; i++) {
        if (f->up_to[i] <= (i == 0 ? 0 : f->up_to[i - 1])) {
            return FAIL(r, "%s[%u]: expected numbers of tokens that ascend, got %u", KEY_UP_TO, i, f->up_to[i]);
        }
    }
    return read_row(r, f, KEY_LAYER_SCALE, "scale", MIN_SCALE, MAX_SCALE, found, &f->layer_scale) &&
           read_row(r, f, KEY_ATTN_FACTOR, "factor", MIN_ATTN_FACTOR, MAX_ATTN_FACTOR, false, &f->layer_attn_factor);
}

static bool read_all(struct reader * r, struct ropebend_file * f) {
    uint32_t                       version = 0;
    struct ropebend_metadata_value v;
    bool                           found;
    if (!get_u32(r, KEY_VERSION, &version, &found)) {
        return false;
    }
    if (version != 1 && version != 2) {
        return FAIL(r, "%s: expected 1 or 2, got %u; a newer ropebend may read it", KEY_VERSION, version);
    }
    if (!get(r, "general.architecture", ROPEBEND_GGUF_STR, false, &v, &found)) {
        return false;
    }
    if (!found) {
        return FAIL(r, "general.architecture: missing");
    }
    const char * arch    = v.data;
    const char * refusal = ropebend_architecture_refusal(arch);
    if (refusal != NULL) {
        return FAIL(r, "general.architecture: '%.40s' %s", arch, refusal);
    }
    if (!need_u32(r, arch, "block_count", &f->n_layer) || !read_plans(r, f, version) || !read_method(r, f) ||
        !get_u32(r, KEY_N_CTX_ORIG, &f->n_ctx_orig, &found)) {
        return false;
    }
    const bool from_model = !found && (f->method == ROPEBEND_METHOD_DYNAMIC_NTK || f->method == ROPEBEND_METHOD_YARN);
    if (from_model && !need_u32(r, arch, "context_length", &f->n_ctx_orig)) {
        return false;
    }
    if ((found || from_model) && (f->n_ctx_orig < 1 || f->n_ctx_orig > INT32_MAX)) {
        return FAIL(r, "%.100s%s: expected a positive number of tokens, got %u", from_model ? arch : "",
                    from_model ? ".context_length" : KEY_N_CTX_ORIG, f->n_ctx_orig);
    }
    return true;
}

enum ropebend_file_found ropebend_file_read(const struct ropebend_ggml_api * api, const struct gguf_context * gguf,
                                            const char * path, struct ropebend_file ** file, char * problem,
                                            size_t n_problem) {
    if (api->gguf_find_key(gguf, KEY_LAYER_SCALE) < 0) {
        for (int64_t i = 0, n = api->gguf_get_n_kv(gguf); i < n; i++) {
            const char * key = api->gguf_get_key(gguf, i);
            if (strncmp(key, PREFIX, strlen(PREFIX)) == 0) {
                snprintf(problem, n_problem, "%s: missing, although %.60s is present", KEY_LAYER_SCALE, key);
                return ROPEBEND_FILE_WRONG;
            }
        }
        return ROPEBEND_FILE_NONE;
    }
    struct reader          reader = { api, gguf, problem, n_problem };
    struct ropebend_file * f      = calloc(1, sizeof(*f));
    if (f == NULL || (f->path = strdup(path)) == NULL) {
        snprintf(problem, n_problem, "out of memory");
    } else if (read_all(&reader, f)) {
        *file = f;
        return ROPEBEND_FILE_FOUND;
    }
    ropebend_file_free(f);
    return ROPEBEND_FILE_WRONG;
}

void ropebend_file_free(struct ropebend_file * file) {
    if (file == NULL) {
        return;
    }
    while (file->plans != NULL) {
        struct ropebend_file_plan * next = file->plans->next;
        free(file->plans->plan.layers);
        free(file->plans);
        file->plans = next;
    }
    free(file->up_to);
    free(file->layer_scale);
    free(file->layer_attn_factor);
    free(file->path);
    free(file);
}

bool ropebend_file_equal(const struct ropebend_file * a, const struct ropebend_file * b) {
    if (strcmp(a->path, b->path) != 0 || a->n_layer != b->n_layer || a->n_plan != b->n_plan || a->method != b->method ||
        a->factor != b->factor || a->n_ctx_orig != b->n_ctx_orig) {
        return false;
    }
    const size_t n = (size_t) a->n_plan * a->n_layer * sizeof(float);
    return memcmp(a->up_to, b->up_to, a->n_plan * sizeof(*a->up_to)) == 0 &&
           memcmp(a->layer_scale, b->layer_scale, n) == 0 && memcmp(a->layer_attn_factor, b->layer_attn_factor, n) == 0;
}

// The number that the shortest decimal of a float32 stands for, so that products round as they do in plugin/scaling/__init__.py.
static double shortest(float value) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double) value);
        if (strtof(text, NULL) == value) {
            break;
        }
    }
    return strtod(text, NULL);
}

// f = max(1, f0*len/n - (f0-1)), len rounded up to n * sqrt(2)^k
static double dynamic_factor(double factor, double n_ctx_orig, double length) {
    double bucket = n_ctx_orig;
    for (int k = 1; bucket < length; k++) {
        bucket = ceil(n_ctx_orig * pow(2.0, k / 2.0));
    }
    return fmax(1.0, factor * bucket / n_ctx_orig - (factor - 1.0));
}

bool ropebend_file_by_length(const struct ropebend_file * file) {
    return file->n_plan > 1 || file->method == ROPEBEND_METHOD_DYNAMIC_NTK;
}

static bool fill(struct ropebend_file_plan * p, const struct ropebend_file * file) {
    const float * scale = file->layer_scale + (size_t) p->index * file->n_layer;
    const float * attn  = file->layer_attn_factor + (size_t) p->index * file->n_layer;
    p->file             = file;
    p->unscaled         = is_unscaled(scale, file);
    p->plan.n_layer     = file->n_layer;
    p->plan.layers      = calloc(file->n_layer, sizeof(*p->plan.layers));
    if (p->plan.layers == NULL) {
        return false;
    }
    double factor = shortest(file->factor);
    if (file->method == ROPEBEND_METHOD_DYNAMIC_NTK) {
        factor = dynamic_factor(factor, file->n_ctx_orig, p->length);
    }
    const bool by_base = file->method == ROPEBEND_METHOD_NTK || file->method == ROPEBEND_METHOD_DYNAMIC_NTK;
    for (uint32_t i = 0; i < file->n_layer; i++) {
        struct ropebend_plan_layer * layer   = &p->plan.layers[i];
        const float                  stretch = (float) (factor * shortest(scale[i]));
        layer->stretch                       = by_base ? 1.0f : stretch;
        layer->base_stretch                  = by_base ? stretch : 1.0f;
        layer->attn_factor                   = attn[i];
    }
    if (file->method == ROPEBEND_METHOD_YARN) {
        p->plan.yarn_factor     = (float) factor;
        p->plan.yarn_n_ctx_orig = (int32_t) file->n_ctx_orig;
    }
    return true;
}

const struct ropebend_file_plan * ropebend_file_plan(struct ropebend_file * file, uint32_t length) {
    uint32_t index = 0;
    while (index < file->n_plan - 1 && length > file->up_to[index]) {
        index++;
    }
    if (file->method != ROPEBEND_METHOD_DYNAMIC_NTK) {
        length = 0;
    }
    for (const struct ropebend_file_plan * p = file->plans; p != NULL; p = p->next) {
        if (p->index == index && p->length == length) {
            return p;
        }
    }
    struct ropebend_file_plan * p = calloc(1, sizeof(*p));
    if (p == NULL) {
        return NULL;
    }
    p->index  = index;
    p->length = length;
    if (!fill(p, file)) {
        free(p);
        return NULL;
    }
    p->next     = file->plans;
    file->plans = p;
    return p;
}
