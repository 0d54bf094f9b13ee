// The line that says what the preload library has done.

#ifndef ROPEBEND_ANNOUNCE_H
#define ROPEBEND_ANNOUNCE_H

#include "scaled_file.h"

#include <stdio.h>

// n_layer: in so many layers a rope node was patched.
void ropebend_announce(const struct ropebend_file_plan * plan, uint32_t n_layer, FILE * out);

#endif
