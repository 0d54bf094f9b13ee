// The value types of GGUF metadata (gguf_type in gguf.h); part of the file format, so they never change.

#ifndef ROPEBEND_GGUF_TYPES_H
#define ROPEBEND_GGUF_TYPES_H

#include <stddef.h>

// clang-format off
// number, suffix of the constant, bytes of a value (0: it says its length itself), name as people write it
#define ROPEBEND_GGUF_TYPES(X) \
    X( 0, U8,   1, "u8")       \
    X( 1, I8,   1, "i8")       \
    X( 2, U16,  2, "u16")      \
    X( 3, I16,  2, "i16")      \
    X( 4, U32,  4, "u32")      \
    X( 5, I32,  4, "i32")      \
    X( 6, F32,  4, "f32")      \
    X( 7, BOOL, 1, "bool")     \
    X( 8, STR,  0, "string")   \
    X( 9, ARR,  0, "array")    \
    X(10, U64,  8, "u64")      \
    X(11, I64,  8, "i64")      \
    X(12, F64,  8, "f64")
// clang-format on

enum ropebend_gguf_type {
#define X(number, suffix, size, name) ROPEBEND_GGUF_##suffix = number,
    ROPEBEND_GGUF_TYPES(X)
#undef X
        ROPEBEND_GGUF_N_TYPES
};

// Bytes of a value; 0 for strings, arrays and what is no type.
static inline size_t ropebend_gguf_size(unsigned type) {
    static const unsigned char sizes[] = {
#define X(number, suffix, size, name) [number] = size,
        ROPEBEND_GGUF_TYPES(X)
#undef X
    };
    return type < ROPEBEND_GGUF_N_TYPES ? sizes[type] : 0;
}

static inline const char * ropebend_gguf_name(unsigned type) {
    static const char * const names[] = {
#define X(number, suffix, size, name) [number] = name,
        ROPEBEND_GGUF_TYPES(X)
#undef X
    };
    return type < ROPEBEND_GGUF_N_TYPES ? names[type] : "unknown";
}

#endif
