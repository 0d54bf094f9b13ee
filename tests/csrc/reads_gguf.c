// Stands in for a program with llama.cpp linked in: it reads the GGUF through the C library, and nothing can be patched.

#include <stdio.h>

int main(int argc, char ** argv) {
    char   magic[4] = "";
    FILE * file     = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL || fread(magic, 1, 4, file) != 4) {
        return 3;
    }
    fclose(file);
    printf("read %.4s\n", magic);
    return 0;
}
