// Runs a function on a stack of a given size.

#ifndef ROPEBEND_BIG_STACK_H
#define ROPEBEND_BIG_STACK_H

#include <stddef.h>

// Call run(user) on a thread of its own and wait for it. Returns 0, or an errno where there is no such thread to be had.
int ropebend_on_stack(size_t n_stack, void (*run)(void * user), void * user);

#endif
