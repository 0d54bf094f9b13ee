#define _XOPEN_SOURCE 700 // pread with -std=c11
#include "gguf_scan.h"

#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// gguf_type in gguf.h; part of the file format
enum { TYPE_STRING = 8, TYPE_ARRAY = 9, N_TYPES = 13, MAX_KEY = 65535 };

static const uint8_t TYPE_SIZE[N_TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

struct scan {
    int      fd;
    uint64_t size;   // of the file
    uint64_t at;     // next byte
    uint64_t start;  // of the buffer
    size_t   n;      // bytes in it
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
        s->start = s->at;
        s->n     = got < 0 ? 0 : (size_t) got;
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
    if (type == TYPE_STRING) {
        return skip_string(s);
    }
    if (type != TYPE_ARRAY) {
        return type < N_TYPES && skip(s, TYPE_SIZE[type]);
    }
    uint32_t element;
    uint64_t n;
    if (!take(s, &element, sizeof(element)) || !take(s, &n, sizeof(n)) || element >= N_TYPES || element == TYPE_ARRAY) {
        return false;
    }
    if (element != TYPE_STRING) {
        return n <= s->size && skip(s, n * TYPE_SIZE[element]);
    }
    bool ok = true;
    for (uint64_t i = 0; i < n && ok; i++) {
        ok = skip_string(s);
    }
    return ok;
}

bool gguf_scan_has_prefix(int fd, const char * prefix) {
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
