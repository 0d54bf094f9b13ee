// A program that knows nothing of ropebend: decode CTX MODEL[@FREQ_SCALE]...
// Loads the models, and with each in turn decodes 24 tokens, drops four, closes the gap (a K-shift) and decodes three
// more. Prints a line of logits per model and step, as exact hexadecimal floats. "-MODEL" frees the models before it,
// "+MODEL" lets them do the first step before it is loaded.

#include <llama.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_MODELS = 8, N_FIRST = 24, N_MORE = 3, REMOVE_FROM = 4, REMOVE_TO = 8 };

struct run {
    struct llama_model *   model;
    struct llama_context * ctx;
    bool                   started;
};

static void quiet(enum ggml_log_level level, const char * text, void * user) {
    (void) user;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static void decode(struct run * r, int n, int pos);

static void first_step(struct run * runs, int n_run) {
    for (int i = 0; i < n_run; i++) {
        if (!runs[i].started) {
            decode(&runs[i], N_FIRST, 0);
        }
        runs[i].started = true;
    }
}

static void start(struct run * r, const char * path, int n_ctx, float freq_scale) {
    struct llama_model_params mparams = llama_model_default_params();
    r->model                          = llama_model_load_from_file(path, mparams);
    if (r->model == NULL) {
        exit(3);
    }
    struct llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx                       = (uint32_t) n_ctx;
    cparams.n_batch                     = 64;
    cparams.n_ubatch                    = 64;
    cparams.n_threads                   = 1;
    cparams.n_threads_batch             = 1;
#ifndef NO_FLASH_ATTN_TYPE // llama.cpp of 2025: a bool, off unless asked for
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
#endif
    cparams.rope_freq_scale = freq_scale;
    r->ctx                  = llama_init_from_model(r->model, cparams);
    if (r->ctx == NULL) {
        exit(3);
    }
    r->started = false;
}

static void stop(struct run * r) {
    llama_free(r->ctx);
    llama_model_free(r->model);
}

static void decode(struct run * r, int n, int pos) {
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        batch.token[i]     = 1 + (37 * (pos + i)) % 120;
        batch.pos[i]       = pos + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = i == n - 1;
    }
    batch.n_tokens = n;
    if (llama_decode(r->ctx, batch) != 0) {
        exit(3);
    }
    const float * logits  = llama_get_logits_ith(r->ctx, n - 1);
    const int     n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(r->model));
    for (int i = 0; i < n_vocab; i++) {
        printf("%a%c", (double) logits[i], i == n_vocab - 1 ? '\n' : ' ');
    }
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    struct run runs[MAX_MODELS];
    int        n_run = 0;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    for (int i = 2; i < argc && n_run < MAX_MODELS; i++) {
        char * path = argv[i];
        if (*path == '-') {
            while (n_run > 0) {
                stop(&runs[--n_run]);
            }
            path++;
        }
        if (*path == '+') {
            first_step(runs, n_run);
            path++;
        }
        char * at = strrchr(path, '@');
        if (at != NULL) {
            *at = '\0';
        }
        start(&runs[n_run++], path, atoi(argv[1]), at == NULL ? 0.0f : strtof(at + 1, NULL));
    }
    first_step(runs, n_run);
    for (int i = 0; i < n_run; i++) {
        llama_memory_t memory = llama_get_memory(runs[i].ctx);
        const int      type   = llama_model_rope_type(runs[i].model);
        if (memory == NULL || !llama_memory_can_shift(memory) || (type > 0 && (type & LLAMA_ROPE_TYPE_MROPE) != 0)) {
            continue;
        }
        llama_memory_seq_rm(memory, 0, REMOVE_FROM, REMOVE_TO);
        llama_memory_seq_add(memory, 0, REMOVE_TO, -1, REMOVE_FROM - REMOVE_TO);
        decode(&runs[i], N_MORE, N_FIRST - (REMOVE_TO - REMOVE_FROM));
    }
    while (n_run > 0) {
        stop(&runs[--n_run]);
    }
    llama_backend_free();
    return 0;
}
