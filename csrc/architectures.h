// What is known of llama.cpp's architectures by name, before a graph is seen. Lists end with NULL.

#ifndef ROPEBEND_ARCHITECTURES_H
#define ROPEBEND_ARCHITECTURES_H

extern const char * const ropebend_architectures_without_rope[]; // llama_model_rope_type returns NONE

// Some layers read the keys of another layer, so Q would turn by one scale and K by another.
extern const char * const ropebend_architectures_with_shared_keys[];

// Why layer scales cannot be applied to this general.architecture: a static text, or NULL if nothing speaks against it.
const char * ropebend_architecture_refusal(const char * architecture);

#endif
