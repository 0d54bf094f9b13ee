#include "gguf_metadata.h"

enum ropebend_metadata_found ropebend_metadata_get(const struct ropebend_ggml_api * api,
                                                   const struct gguf_context * gguf, const char * key,
                                                   struct ropebend_metadata_value * value) {
    const int64_t id = api->gguf_find_key(gguf, key);
    if (id < 0) {
        return ROPEBEND_METADATA_ABSENT;
    }
    // gguf_get_* abort the process on a type they do not expect, so ask first
    value->type  = api->gguf_get_kv_type(gguf, id);
    value->array = value->type == ROPEBEND_GGUF_ARR;
    value->n     = 1;
    if (value->array) {
        value->type = api->gguf_get_arr_type(gguf, id);
        if (value->type == ROPEBEND_GGUF_STR || value->type == ROPEBEND_GGUF_ARR) {
            return ROPEBEND_METADATA_UNREADABLE;
        }
        value->n    = api->gguf_get_arr_n(gguf, id);
        value->data = value->n > 0 ? api->gguf_get_arr_data(gguf, id) : NULL;
    } else if (value->type == ROPEBEND_GGUF_STR) {
        value->data = api->gguf_get_val_str(gguf, id);
    } else {
        value->data = api->gguf_get_val_data(gguf, id);
    }
    return ROPEBEND_METADATA_FOUND;
}
