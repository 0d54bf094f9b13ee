#define _XOPEN_SOURCE 700 // pread with -std=c11
#include "gguf_scan.h"

#include "gguf_types.h"

#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_KEY = 65535 };

struct scan {
    int      fd;
    uint64_t size;         // of the file
    uint64_t at;           // next byte
    uint64_t start;        // of the buffer
    size_t   n;            // bytes in it
    char     buffer[4096]; // of any thread that calls fopen, so its stack may be small
};

static bool skip(struct scan * s, uint64_t n) {
    if (n > s->size - s->at) {
        return false;
    }
    s->at += n;
    return true;
}

static bool take(struct scan * s, void * out, size_t n) {
    if (n > s->size - s->at) {
        return false;
    }
    if (s->at < s->start || s->at + n > s->start + s->n) {
        const ssize_t got = pread(s->fd, s->buffer, sizeof(s->buffer), (off_t) s->at);
        s->start          = s->at;
        s->n              = got < 0 ? 0 : (size_t) got;
        if (n > s->n) {
            return false;
        }
    }
    memcpy(out, s->buffer + (s->at - s->start), n);
    s->at += n;
    return true;
}

static bool skip_string(struct scan * s) {
    uint64_t n;
    return take(s, &n, sizeof(n)) && skip(s, n);
}

static bool skip_value(struct scan * s, uint32_t type) {
    if (type == ROPEBEND_GGUF_STR) {
        return skip_string(s);
    }
    if (type != ROPEBEND_GGUF_ARR) {
        return type < ROPEBEND_GGUF_N_TYPES && skip(s, ropebend_gguf_size(type));
    }
    uint32_t element;
    uint64_t n;
    if (!take(s, &element, sizeof(element)) || !take(s, &n, sizeof(n)) || element >= ROPEBEND_GGUF_N_TYPES ||
        element == ROPEBEND_GGUF_ARR) {
        return false;
    }
    if (element != ROPEBEND_GGUF_STR) {
        return n <= s->size && skip(s, n * ropebend_gguf_size(element));
    }
    bool ok = true;
    for (uint64_t i = 0; i < n && ok; i++) {
        ok = skip_string(s);
    }
    return ok;
}

bool ropebend_scan_has_prefix(int fd, const char * prefix) {
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 24) {
        return false;
    }
    struct scan s = { .fd = fd, .size = (uint64_t) st.st_size };
    struct {
        char     magic[4];
        uint32_t version;
        uint64_t n_tensors, n_kv;
    } header;
    if (pread(fd, &header, sizeof(header), 0) != (ssize_t) sizeof(header) || memcmp(header.magic, "GGUF", 4) != 0 ||
        header.version < 2 || header.version > 0xffff) { // version 1 is older than our keys
        return false;
    }
    skip(&s, sizeof(header));
    const size_t n_prefix = strlen(prefix);
    for (uint64_t i = 0; i < header.n_kv; i++) {
        char     key[64];
        uint64_t n;
        uint32_t type;
        if (!take(&s, &n, sizeof(n)) || n > MAX_KEY) {
            return false;
        }
        if (n >= n_prefix && n_prefix <= sizeof(key)) {
            if (!take(&s, key, n_prefix)) {
                return false;
            }
            if (memcmp(key, prefix, n_prefix) == 0) {
                return true;
            }
            n -= n_prefix;
        }
        if (!skip(&s, n) || !take(&s, &type, sizeof(type)) || !skip_value(&s, type)) {
            return false;
        }
    }
    return false;
}
