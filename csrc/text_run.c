#include "text_run.h"

#include <stdbool.h>

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

size_t ropebend_longest_run(const char * text, size_t n) {
    size_t longest = 0, at = 0, space = 0; // space: bytes of white space before `at`
    while (at < n && is_space(text[at])) {
        at++, space++;
    }
    do {
        const size_t start = at - space;
        while (at < n && !is_space(text[at])) {
            at++;
        }
        for (space = 0; at < n && is_space(text[at]); space++) {
            at++;
        }
        longest = at - start > longest ? at - start : longest;
    } while (at < n);
    return longest;
}
