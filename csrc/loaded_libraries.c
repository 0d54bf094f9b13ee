#define _GNU_SOURCE // dladdr, dl_iterate_phdr, memmem
#include "loaded_libraries.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>

static const char self; // an address in this library

struct objects {
    char ** names;
    size_t  n;
};

static int collect_object(struct dl_phdr_info * info, size_t size, void * user) {
    (void) size;
    struct objects * o = user;
    if (info->dlpi_name == NULL || info->dlpi_name[0] == '\0') {
        return 0; // the program itself: dlsym would search everything, and find this library
    }
    char ** names = realloc(o->names, (o->n + 1) * sizeof(*names));
    if (names != NULL) {
        o->names       = names;
        o->names[o->n] = strdup(info->dlpi_name);
        o->n += o->names[o->n] != NULL;
    }
    return 0;
}

const void * ropebend_object_of(const void * address) {
    Dl_info info;
    return dladdr(address, &info) != 0 ? info.dli_fbase : NULL;
}

void * ropebend_look_up(const char * name, bool * several) {
    struct objects o     = { NULL, 0 };
    void *         found = NULL;
    *several             = false;
    dl_iterate_phdr(collect_object, &o); // holds a lock of the loader, so dlopen must wait until it is done
    for (size_t i = 0; i < o.n; i++) {
        void * handle  = dlopen(o.names[i], RTLD_LAZY | RTLD_NOLOAD);
        void * address = handle == NULL ? NULL : dlsym(handle, name);
        if (address != NULL && ropebend_object_of(address) != ropebend_object_of(&self)) {
            *several = *several || (found != NULL && address != found);
            found    = found != NULL ? found : address;
        }
        if (handle != NULL) {
            dlclose(handle);
        }
        free(o.names[i]);
    }
    free(o.names);
    return found;
}

// plugin/preload.py looks for it, too: a file name in llama.cpp's assertions
static const char LLAMA_CPP_MARK[] = "ggml-backend.cpp";

// Stops at the first object whose constants hold the mark.
static int holds_llama_cpp(struct dl_phdr_info * info, size_t size, void * user) {
    (void) size;
    (void) user;
    int found = 0;
    for (int i = 0; i < info->dlpi_phnum && !found; i++) {
        const ElfW(Phdr) * segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && (segment->p_flags & (PF_R | PF_W)) == PF_R) {
            const char * start = (const char *) (info->dlpi_addr + segment->p_vaddr);
            const char * hit   = memmem(start, segment->p_filesz, LLAMA_CPP_MARK, sizeof(LLAMA_CPP_MARK) - 1);
            found              = hit != NULL && hit != LLAMA_CPP_MARK;
        }
    }
    return found;
}

bool ropebend_any_llama_cpp(void) {
    return dl_iterate_phdr(holds_llama_cpp, NULL) != 0;
}
