// The longest piece that a pre-tokeniser can make of a text.

#ifndef ROPEBEND_TEXT_RUN_H
#define ROPEBEND_TEXT_RUN_H

#include <stddef.h>

// Bytes of the longest stretch without a place where every pre-tokeniser cuts: after what is not white space, before
// white space that something else follows. So a stretch is white space, other bytes, white space. White space beyond
// ASCII does not count as such, which makes stretches longer than they are.
size_t ropebend_longest_run(const char * text, size_t n);

#endif
