#include "big_stack.h"

#include <pthread.h>

struct call {
    void (*run)(void * user);
    void * user;
};

static void * start(void * argument) {
    const struct call * call = argument;
    call->run(call->user);
    return NULL;
}

int ropebend_on_stack(size_t n_stack, void (*run)(void * user), void * user) {
    struct call    call = { run, user };
    pthread_t      thread;
    pthread_attr_t attributes;
    int            error = pthread_attr_init(&attributes);
    if (error != 0) {
        return error;
    }
    error = pthread_attr_setstacksize(&attributes, n_stack);
    if (error == 0) {
        error = pthread_create(&thread, &attributes, start, &call);
    }
    pthread_attr_destroy(&attributes);
    return error != 0 ? error : pthread_join(thread, NULL);
}
