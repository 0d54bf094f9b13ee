// Reads a GGUF through the C library, in a thread with a small stack, and has no llama.cpp that could be patched.
// With LLAMA_CPP_INSIDE it stands in for a program with llama.cpp linked in.

#include <pthread.h>
#include <stdio.h>

#ifdef LLAMA_CPP_INSIDE
const char assertion[] = "/src/ggml-backend.cpp"; // as llama.cpp's own have
#endif

enum { STACK_SIZE = 32 << 10 };

static char magic[4];

static void * read_magic(void * path) {
    FILE *       file = fopen(path, "rb");
    const size_t n    = file == NULL ? 0 : fread(magic, 1, sizeof(magic), file);
    if (file != NULL) {
        fclose(file);
    }
    return n == sizeof(magic) ? magic : NULL;
}

int main(int argc, char ** argv) {
    pthread_attr_t small;
    pthread_t      thread;
    void *         found = NULL;
    if (argc != 2 || pthread_attr_init(&small) != 0 || pthread_attr_setstacksize(&small, STACK_SIZE) != 0 ||
        pthread_create(&thread, &small, read_magic, argv[1]) != 0 || pthread_join(thread, &found) != 0 ||
        found == NULL) {
        return 3;
    }
    printf("read %.4s\n", magic);
    return 0;
}
