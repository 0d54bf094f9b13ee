// What is known of llama.cpp's architectures by name, before a graph is seen.

#ifndef ROPEBEND_ARCHITECTURES_H
#define ROPEBEND_ARCHITECTURES_H

// Why layer scales cannot be applied to this general.architecture: a static text, or NULL if nothing speaks against it.
const char * ropebend_architecture_refusal(const char * architecture);

#endif
