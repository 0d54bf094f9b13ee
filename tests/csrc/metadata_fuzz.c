// Feeds damaged GGUF files to the metadata reader: metadata_fuzz LIBGGML RUNS SEED FILE...
// Build with sanitizers. Every run takes one of the files, damages it in one to eight places, has llama.cpp read it
// and then reads every value through ropebend_metadata_get to its last byte. Prints the number of files that were accepted.

#define _GNU_SOURCE // memfd_create
#include "ggml_layout.h"
#include "gguf_metadata.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_SIZE 65536

static struct ropebend_ggml_api api;
static uint64_t                 state;
static volatile char            sink;

static void * find(void * user, const char * name) {
    return dlsym(user, name);
}

static uint64_t next_random(void) { // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static size_t damage(unsigned char * data, size_t size) {
    static const uint64_t extremes[] = {
        0,          1,          7,          8,          9,          12,         13,         255,           0x7fffffff,
        0xffffffff, 1ull << 32, 1ull << 60, 1ull << 61, 1ull << 62, 1ull << 63, UINT64_MAX, UINT64_MAX - 7
    };
    for (uint64_t n = next_random() % 8 + 1; n > 0 && size > 0; n--) {
        const size_t at = next_random() % size;
        switch (next_random() % 6) {
            case 0: data[at] ^= (unsigned char) (1u << next_random() % 8); break;
            case 1: data[at] = (unsigned char) next_random(); break;
            case 2: data[at] = (unsigned char) (next_random() % 16); break; // a type or a small length
            case 3: {
                const uint64_t v     = extremes[next_random() % (sizeof(extremes) / sizeof(extremes[0]))];
                const size_t   width = next_random() % 2 ? 8 : 4;
                if (at + width <= size) {
                    memcpy(data + at, &v, width);
                }
                break;
            }
            case 4: size = at; break;
            default: {
                const size_t from = next_random() % size;
                const size_t len  = next_random() % 64;
                if (from + len <= size && at + len <= size) {
                    memmove(data + at, data + from, len);
                }
            }
        }
    }
    return size;
}

static void touch(const void * data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sink = (char) (sink + ((const char *) data)[i]);
    }
}

static bool read_all(const char * path) {
    struct gguf_context * gguf = api.gguf_init_from_file(path, (struct gguf_init_params) { true, NULL });
    if (gguf == NULL) {
        return false;
    }
    const int64_t n = api.gguf_get_n_kv(gguf);
    for (int64_t i = 0; i < n; i++) {
        struct ropebend_metadata_value value;
        if (ropebend_metadata_get(&api, gguf, api.gguf_get_key(gguf, i), &value) != ROPEBEND_METADATA_FOUND) {
            continue;
        }
        if (value.type == ROPEBEND_GGUF_STR) {
            touch(value.data, strlen(value.data) + 1);
        } else {
            touch(value.data, value.n * ropebend_gguf_size((unsigned) value.type));
        }
    }
    api.gguf_free(gguf);
    return true;
}

static void quiet(int level, const char * text, void * user) {
    (void) level;
    (void) text;
    (void) user;
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s LIBGGML RUNS SEED FILE...\n", argv[0]);
        return 2;
    }
    void *       lib     = dlopen(argv[1], RTLD_NOW);
    const char * missing = lib == NULL ? argv[1] : ropebend_ggml_api_load(&api, find, lib);
    const int    fd      = memfd_create("gguf", 0);
    char         path[64];
    if (missing != NULL || fd < 0) {
        fprintf(stderr, "missing: %s\n", missing != NULL ? missing : "memfd_create");
        return 2;
    }
    // llama.cpp would say a million times why it refuses a file
    void (*log_set)(void (*)(int, const char *, void *), void *);
    void * symbol = dlsym(lib, "ggml_log_set");
    memcpy(&log_set, &symbol, sizeof(log_set));
    log_set(quiet, NULL);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    const unsigned long  runs     = strtoul(argv[2], NULL, 10);
    unsigned long        accepted = 0;
    static unsigned char data[MAX_SIZE];
    state = strtoull(argv[3], NULL, 10) * 2 + 1;
    for (unsigned long i = 0; i < runs; i++) {
        FILE * file = fopen(argv[4 + i % (unsigned long) (argc - 4)], "rb");
        if (file == NULL) {
            return 2;
        }
        size_t size = fread(data, 1, sizeof(data), file);
        fclose(file);
        if (i >= (unsigned long) (argc - 4)) { // the first time as they are
            size = damage(data, size);
        }
        if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size) {
            return 2;
        }
        accepted += read_all(path);
    }
    printf("%lu runs, %lu accepted\n", runs, accepted);
    return 0;
}
