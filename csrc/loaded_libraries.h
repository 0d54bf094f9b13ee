// Looks through the libraries that are loaded in this process.

#ifndef ROPEBEND_LOADED_LIBRARIES_H
#define ROPEBEND_LOADED_LIBRARIES_H

#include <stdbool.h>

// The start of the library or program that an address lies in, or NULL.
const void * ropebend_object_of(const void * address);

// A function in the libraries of this process, but for this one; *several: there are different ones. RTLD_NEXT alone
// does not see libraries that were opened RTLD_LOCAL (ctypes).
void * ropebend_look_up(const char * name, bool * several);

// True if some library, or the program, was built from llama.cpp, whatever was stripped or hidden.
bool ropebend_any_llama_cpp(void);

#endif
