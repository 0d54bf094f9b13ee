#include "architectures.h"

#include <stddef.h>
#include <string.h>

// llama_model_rope_type returns NONE for these; bert and starcoder have a rope type, but learned positions and no rope
// node in their graphs
static const char * const without_rope[] = {
    "arwkv7",     "bert",           "bloom",  "clip",      "glm5-next",
    "gpt2",       "gptj",           "jais",   "jamba",     "jina-bert-v2",
    "kimi-k3",    "kimi-linear",    "mamba",  "mamba2",    "mpt",
    "nemotron_h", "nemotron_h_moe", "refact", "rwkv6",     "rwkv6qwen2",
    "rwkv7",      "starcoder",      "t5",     "t5encoder", "wavtokenizer-dec",
    NULL,
};

// Some layers read the keys of another layer, so Q would turn by one scale and K by another.
static const char * const with_shared_keys[] = { "gemma3n", "gemma4", "gemma4-assistant", NULL };

static int contains(const char * const * list, const char * name) {
    while (*list != NULL && strcmp(*list, name) != 0) {
        list++;
    }
    return *list != NULL;
}

const char * ropebend_architecture_refusal(const char * architecture) {
    if (contains(without_rope, architecture)) {
        return "has no RoPE, so there is nothing to scale";
    }
    if (contains(with_shared_keys, architecture)) {
        return "is not supported: some of its layers read the keys of another layer";
    }
    return NULL;
}
