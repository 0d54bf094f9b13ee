// libropebend_preload.so: layer scales for unmodified programs on a shared llama.cpp, by way of LD_PRELOAD. Over 400
// lines, because all that stands here shares one state under one lock.
//
// Interposed are the functions by which llama.cpp opens a GGUF or looks at its metadata (learn its scales), marks a buffer
// as holding weights (know which model it is of), frees either, and computes a graph (patch its rope nodes). A scaled file
// runs scaled or not at all: whatever cannot be done ends the process with a message.

#define _GNU_SOURCE // RTLD_NEXT
#include "announce.h"
#include "ggml_layout.h"
#include "gguf_metadata.h"
#include "gguf_scan.h"
#include "graph_owner.h"
#include "loaded_libraries.h"
#include "rope_plan.h"
#include "scaled_file.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { BUFFER_USAGE_WEIGHTS = 1 }; // ggml_backend_buffer_usage in ggml-backend.h

// plugin/native.py refuses to work in a process that has this symbol: both would scale the same nodes
EXPORT const int ropebend_preload_version = 1;

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char * format, ...) {
    va_list args;
    fflush(stdout); // not NULL: a thread may wait for stdin, with its lock
    fputs("ropebend: error: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("\n", stderr);
    fflush(stderr);
    _exit(1); // not exit: other threads may be at work
}

// ------------------------------------------------------------------------------------------- the real functions

static void * real(const char * name) {
    bool   several;
    void * address = dlsym(RTLD_NEXT, name);
    return address != NULL ? address : ropebend_look_up(name, &several);
}

// Declares `next_NAME`, resolved at the first call; NULL cannot be: the caller was linked against the function.
#define NEXT(name, ret, args)                                                 \
    static ret(*next_##name) args;                                            \
    static void resolve_##name(void) {                                        \
        void * address = real(#name);                                         \
        if (address == NULL) {                                                \
            die("the program calls " #name ", but no loaded library has it"); \
        }                                                                     \
        memcpy(&next_##name, &address, sizeof(address));                      \
    }                                                                         \
    static pthread_once_t once_##name = PTHREAD_ONCE_INIT

NEXT(gguf_init_from_file, struct gguf_context *, (const char *, struct gguf_init_params));
NEXT(gguf_init_from_file_ptr, struct gguf_context *, (FILE *, struct gguf_init_params));
NEXT(gguf_free, void, (struct gguf_context *) );
NEXT(gguf_get_version, uint32_t, (const struct gguf_context *) );
NEXT(ggml_backend_buffer_set_usage, void, (struct ggml_backend_buffer *, int) );
NEXT(ggml_backend_buffer_free, void, (struct ggml_backend_buffer *) );
NEXT(ggml_backend_sched_free, void, (void *) );
NEXT(ggml_backend_sched_graph_compute, int, (void *, struct ggml_cgraph *) );
NEXT(ggml_backend_sched_graph_compute_async, int, (void *, struct ggml_cgraph *) );
NEXT(fopen, FILE *, (const char *, const char *) );
NEXT(fopen64, FILE *, (const char *, const char *) );

#define CALL_NEXT(name) (pthread_once(&once_##name, resolve_##name), next_##name)

// ------------------------------------------------------------------------------------------------------- state

static pthread_mutex_t              lock = PTHREAD_MUTEX_INITIALIZER; // of everything in this section
static struct ropebend_ggml_api     api;
static struct ropebend_graph_api    graph_api;
static struct ropebend_layout       layout;
static struct ropebend_graph_layout graph_layout;
static struct ropebend_owner_state  owners = { .api = &graph_api, .layout = &layout, .graph_layout = &graph_layout };
static bool                         can_read;   // `api` is filled
static bool                         ready;      // all that stands above it is
static bool                         any_scaled; // a file with scales was opened

struct open_file {
    char *                 path;
    struct ropebend_file * scales; // or NULL
    struct open_file *     next;
};

static struct open_file * files; // every GGUF that llama.cpp opened, each once

// what the thread's next weights buffers belong to; llama.cpp opens a model and allocates its buffers in one thread
static _Thread_local const struct open_file *    current;
static _Thread_local const struct gguf_context * current_gguf; // its metadata, if llama.cpp itself opened the file
static _Thread_local bool                        inside_gguf;

static void * find_function(void * user, const char * name) {
    (void) user;
    return real(name);
}

// Get to know the llama.cpp of this process. NULL, or what is wrong with it.
static const char * prepare(void) {
    static char message[128];
    if (ready) {
        return NULL;
    }
    const char * missing = ropebend_ggml_api_load(&api, find_function, NULL);
    can_read             = missing == NULL;
    if (can_read) {
        missing = ropebend_graph_api_load(&graph_api, find_function, NULL);
    }
    if (missing != NULL) {
        snprintf(message, sizeof(message), "it exports no %s", missing);
        return message;
    }
    bool several;
    ropebend_look_up("ggml_backend_sched_graph_compute_async", &several);
    if (several) {
        return "two different ones are loaded in this process";
    }
    const char * problem = ropebend_layout_probe(&api, &layout);
    if (problem == NULL) {
        problem = ropebend_graph_layout_probe(&api, &graph_api, &graph_layout);
    }
    ready = problem == NULL;
    return problem;
}

// ------------------------------------------------------------------------------------------------ opening files

static const char PREFIX[] = "ropebend.";

#define UNPATCHABLE "%s carries layer scales, but this llama.cpp cannot be patched: %s"

// The entry for a file that llama.cpp opened. A model is opened more than once, and may have been rewritten in between.
static const struct open_file * remember(const char * path, struct ropebend_file * scales) {
    struct open_file * f = files;
    while (f != NULL && !(strcmp(f->path, path) == 0 && (f->scales == NULL) == (scales == NULL) &&
                          (scales == NULL || ropebend_file_equal(f->scales, scales)))) {
        f = f->next;
    }
    if (f != NULL) {
        ropebend_file_free(scales);
        return f;
    }
    f = calloc(1, sizeof(*f));
    if (f == NULL || (f->path = strdup(path)) == NULL) {
        die("out of memory");
    }
    f->scales = scales;
    f->next   = files;
    files     = f;
    return f;
}

static bool is_known(const char * path) {
    pthread_mutex_lock(&lock);
    const struct open_file * f = files;
    while (f != NULL && strcmp(f->path, path) != 0) {
        f = f->next;
    }
    pthread_mutex_unlock(&lock);
    return f != NULL;
}

// Some tools repeat the whole metadata in every part; llama.cpp reads the first one's.
static bool is_later_part(const struct gguf_context * gguf) {
    struct ropebend_metadata_value v;
    uint16_t                       number = 0;
    if (ropebend_metadata_get(&api, gguf, "split.no", &v) == ROPEBEND_METADATA_FOUND && v.type == ROPEBEND_GGUF_U16 &&
        !v.array) {
        memcpy(&number, v.data, sizeof(number));
    }
    return number > 0;
}

// From now on this thread's weights buffers are those of this model. Ends the process if its scales cannot be applied.
static void adopt(const struct gguf_context * gguf, const char * path) {
    const char * reason = prepare(); // in any case: the caches of unscaled models must be known, too
    if (!can_read || is_later_part(gguf)) {
        return;
    }
    char                           problem[256];
    struct ropebend_file *         scales = NULL;
    const enum ropebend_file_found found  = ropebend_file_read(&api, gguf, path, &scales, problem, sizeof(problem));
    if (found != ROPEBEND_FILE_NONE && reason != NULL) {
        die(UNPATCHABLE, path, reason);
    }
    if (found == ROPEBEND_FILE_WRONG) {
        die("%s: %s", path, problem);
    }
    any_scaled   = any_scaled || scales != NULL;
    current      = remember(path, scales);
    current_gguf = gguf;
}

static void learn(const struct gguf_context * gguf, FILE * file, const char * path) {
    if (gguf == NULL || !ropebend_scan_has_prefix(fileno(file), "general.architecture")) {
        return; // no model, or the second part of one: the buffers to come are still those of the file before
    }
    pthread_mutex_lock(&lock);
    const char * reason = prepare();
    if (!can_read && ropebend_scan_has_prefix(fileno(file), PREFIX)) {
        die(UNPATCHABLE, path, reason);
    }
    adopt(gguf, path);
    pthread_mutex_unlock(&lock);
}

EXPORT struct gguf_context * gguf_init_from_file(const char * path, struct gguf_init_params params) {
    inside_gguf                = true; // it may call gguf_init_from_file_ptr
    struct gguf_context * gguf = CALL_NEXT(gguf_init_from_file)(path, params);
    FILE *                file = gguf == NULL ? NULL : CALL_NEXT(fopen)(path, "rb");
    inside_gguf                = false;
    if (file != NULL) {
        learn(gguf, file, path);
        fclose(file);
    }
    return gguf;
}

EXPORT struct gguf_context * gguf_init_from_file_ptr(FILE * file, struct gguf_init_params params) {
    struct gguf_context * gguf = CALL_NEXT(gguf_init_from_file_ptr)(file, params);
    if (!inside_gguf) {
        char link[64], path[4096];
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fileno(file));
        const ssize_t n     = readlink(link, path, sizeof(path) - 1);
        path[n < 0 ? 0 : n] = '\0';
        learn(gguf, file, n > 0 ? path : "a GGUF without a name");
    }
    return gguf;
}

// The weights of the next model can come from anywhere (llama_model_init_from_user).
EXPORT void gguf_free(struct gguf_context * gguf) {
    if (gguf != NULL && gguf == current_gguf) {
        current      = NULL;
        current_gguf = NULL;
    }
    CALL_NEXT(gguf_free)(gguf);
}

// llama.cpp asks this about the metadata of every model that it loads, also where the program made or read them without
// a function of ours on its way: in memory, from a callback, or by way of dlsym (ctypes).
EXPORT uint32_t gguf_get_version(const struct gguf_context * gguf) {
    if (gguf != NULL && gguf != current_gguf) {
        pthread_mutex_lock(&lock);
        adopt(gguf, "the program's own metadata");
        current_gguf = NULL; // when the program frees them need not be seen, so the address may come again
        pthread_mutex_unlock(&lock);
    }
    return CALL_NEXT(gguf_get_version)(gguf);
}

// A llama.cpp that was linked into the program, or to itself, reads GGUF files all the same, by way of the C library. So do
// programs that have none and only copy or check a file.
static void guard(const char * path, FILE * file, const void * caller) {
    if (file == NULL || inside_gguf || !ropebend_scan_has_prefix(fileno(file), PREFIX) || is_known(path)) {
        return;
    }
    bool         several;
    const void * reader = ropebend_look_up("gguf_init_from_file", &several);
    if (reader == NULL ? ropebend_any_llama_cpp() : ropebend_object_of(reader) == ropebend_object_of(caller)) {
        die("%s carries layer scales, but this program's llama.cpp is not a shared library that can be patched; "
            "use a build with -DBUILD_SHARED_LIBS=ON, or ropebend serve",
            path);
    }
}

EXPORT FILE * fopen(const char * path, const char * mode) {
    FILE * file = CALL_NEXT(fopen)(path, mode);
    guard(path, file, __builtin_return_address(0));
    return file;
}

EXPORT FILE * fopen64(const char * path, const char * mode) {
    FILE * file = CALL_NEXT(fopen64)(path, mode);
    guard(path, file, __builtin_return_address(0));
    return file;
}

// --------------------------------------------------------------------------------------- buffers and schedulers

EXPORT void ggml_backend_buffer_set_usage(struct ggml_backend_buffer * buffer, int usage) {
    CALL_NEXT(ggml_backend_buffer_set_usage)(buffer, usage);
    if (usage != BUFFER_USAGE_WEIGHTS || current == NULL) {
        return;
    }
    pthread_mutex_lock(&lock);
    if (!ropebend_map_set(&owners.weights, buffer, current->scales, buffer)) {
        die("out of memory");
    }
    if (current->scales != NULL) {
        current->scales->loaded = true;
    }
    pthread_mutex_unlock(&lock);
}

EXPORT void ggml_backend_buffer_free(struct ggml_backend_buffer * buffer) {
    if (buffer != NULL) {
        pthread_mutex_lock(&lock);
        ropebend_map_drop_group(&owners.weights, buffer);
        ropebend_map_drop_group(&owners.caches, buffer);
        pthread_mutex_unlock(&lock);
    }
    CALL_NEXT(ggml_backend_buffer_free)(buffer);
}

EXPORT void ggml_backend_sched_free(void * sched) {
    if (sched != NULL) {
        pthread_mutex_lock(&lock);
        ropebend_map_drop_group(&owners.scheds, sched);
        pthread_mutex_unlock(&lock);
    }
    CALL_NEXT(ggml_backend_sched_free)(sched);
}

// ------------------------------------------------------------------------------------------------------- graphs

static void tell(struct ropebend_file * file, const struct ropebend_file_plan * plan, uint32_t n_layer) {
    ropebend_announce(plan, n_layer, stderr);
    file->applied = true;
}

static void apply(struct ggml_cgraph * graph, const struct ropebend_file_plan * plan) {
    struct ropebend_file * file = (struct ropebend_file *) plan->file;
    if (plan->unscaled) {
        if (!file->applied) {
            tell(file, plan, 0);
        }
        return;
    }
    uint32_t n_layer = 0;
    bool *   seen    = calloc(file->n_layer, sizeof(*seen));
    if (seen == NULL) {
        die("out of memory");
    }
    for (int i = 0, n = graph_api.ggml_graph_n_nodes(graph); i < n; i++) {
        struct ggml_tensor *             node   = graph_api.ggml_graph_node(graph, i);
        uint32_t                         layer  = 0;
        const enum ropebend_apply_result result = ropebend_plan_apply(&plan->plan, &layout, node, &layer);
        if (result == ROPEBEND_APPLY_NOT_ROPE) {
            continue;
        }
        const char * problem = ropebend_apply_problem(result);
        if (problem != NULL) {
            die("%s: rope node '%.64s' %s; its scale cannot be applied", file->path,
                ropebend_tensor_name(&layout, node), problem);
        }
        n_layer += !seen[layer];
        seen[layer] = true;
    }
    free(seen);
    if (n_layer == 0 && !file->applied) {
        die("%s: no rope node in the model's graph; layer scales would have no effect", file->path);
    }
    if (!file->applied) {
        tell(file, plan, n_layer);
    }
}

static void patch(const void * sched, struct ggml_cgraph * graph) {
    pthread_mutex_lock(&lock);
    const struct ropebend_file_plan * plan = NULL;
    if (ready) {
        switch (ropebend_owner_find(&owners, sched, graph, &plan)) {
            case ROPEBEND_OWNER_UNSCALED: break;
            case ROPEBEND_OWNER_SCALED: apply(graph, plan); break;
            case ROPEBEND_OWNER_UNKNOWN:
                if (!any_scaled) {
                    break;
                }
                die("a graph with rope nodes was met, and nothing tells which model it belongs to; a K-shift before "
                    "the "
                    "first decode is such a graph");
            case ROPEBEND_OWNER_FOREIGN_CACHE:
                die("a model reads the K cache of another model, and one of the two carries layer scales; "
                    "use another draft model, or none");
            case ROPEBEND_OWNER_NO_CACHE:
                die("plans by length (dynamic-ntk, too) need a K cache to know how long a sequence may become");
            case ROPEBEND_OWNER_NO_MEMORY: die("out of memory");
        }
    }
    pthread_mutex_unlock(&lock);
}

EXPORT int ggml_backend_sched_graph_compute(void * sched, struct ggml_cgraph * graph) {
    patch(sched, graph);
    return CALL_NEXT(ggml_backend_sched_graph_compute)(sched, graph);
}

EXPORT int ggml_backend_sched_graph_compute_async(void * sched, struct ggml_cgraph * graph) {
    patch(sched, graph);
    return CALL_NEXT(ggml_backend_sched_graph_compute_async)(sched, graph);
}

__attribute__((destructor)) static void tell_what_was_not_used(void) {
    for (const struct open_file * f = files; f != NULL; f = f->next) {
        if (f->scales != NULL && f->scales->loaded && !f->scales->applied) {
            fprintf(stderr, "ropebend: %s: carries layer scales, and this program computed nothing with it\n", f->path);
        }
    }
}
