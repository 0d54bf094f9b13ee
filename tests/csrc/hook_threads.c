// One thread decodes, others set plans and read counts: hook_threads LIBGGML. Build with -fsanitize=thread.

#define _GNU_SOURCE // RTLD_NOW with -std=c11
#include "hook.h"

#include <dlfcn.h>
#include <stdio.h>

enum { N_ROUNDS = 2000 };

static struct ropebend_ggml_api api;
static struct ropebend_layout   layout;
static struct ropebend_hook     hook;
static struct ggml_tensor *     nodes[3]; // of layers 0 and 1, and of one outside the plan

static void * find(void * user, const char * name) {
    return dlsym(user, name);
}

static void * decode(void * user) {
    for (int i = 0; i < N_ROUNDS; i++) {
        ropebend_hook_cb_eval(nodes[i % 3], true, &hook);
    }
    return user;
}

static void * set(void * user) {
    const struct ropebend_plan_layer layers[2] = { { 2.0f, 1.0f, 1.5f }, { 3.0f, 1.0f, 0.5f } };
    for (int i = 0; i < N_ROUNDS; i++) {
        if (i % 5 == 0) {
            ropebend_hook_clear_plan(&hook);
        } else {
            ropebend_hook_set_plan(&hook, layers, 0.0f, 0);
        }
    }
    return user;
}

static void * look(void * user) {
    uint32_t counts[2];
    char     problem[ROPEBEND_HOOK_PROBLEM];
    for (int i = 0; i < N_ROUNDS; i++) {
        ropebend_hook_get_counts(&hook, false, counts);
        ropebend_hook_get_problem(&hook, problem);
        if (i % 100 == 0) {
            ropebend_hook_reset_counts(&hook);
        }
    }
    return user;
}

int main(int argc, char ** argv) {
    void * lib = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (lib == NULL || ropebend_ggml_api_load(&api, find, lib) != NULL ||
        ropebend_layout_probe(&api, &layout) != NULL || !ropebend_hook_init(&hook, &layout, 2)) {
        printf("usage: hook_threads LIBGGML\n");
        return 2;
    }
    struct ggml_context * ctx = api.ggml_init((struct ggml_init_params) { 1 << 16, NULL, true });
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof(name), "Qcur-%d", i);
        struct ggml_tensor * a   = api.ggml_new_tensor_3d(ctx, 0, 64, 2, 3);
        struct ggml_tensor * pos = api.ggml_new_tensor_1d(ctx, 26, 3);
        nodes[i] = api.ggml_rope_ext(ctx, a, pos, NULL, 64, 0, 512, 1e4f, 0.5f, 0.0f, 1.0f, 32.0f, 1.0f);
        api.ggml_set_name(nodes[i], name);
    }
    void * (*const work[])(void *) = { decode, set, look, look };
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        pthread_create(&threads[i], NULL, work[i], NULL);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    ropebend_hook_free(&hook);
    api.ggml_free(ctx);
    printf("done\n");
    return 0;
}
