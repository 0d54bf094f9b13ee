// Looks into a GGUF without llama.cpp: for programs whose own llama.cpp is out of reach.

#ifndef ROPEBEND_GGUF_SCAN_H
#define ROPEBEND_GGUF_SCAN_H

#include <stdbool.h>

// True if the file is a GGUF with a metadata key that starts with `prefix`. Leaves the file position alone.
bool ropebend_scan_has_prefix(int fd, const char * prefix);

#endif
