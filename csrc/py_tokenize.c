// ropebend._native.tokenize: llama_tokenize, such that no text can end the process.
//
// Many of llama.cpp's pre-tokenisers are std::regex, which calls itself for every character of a match: some 320 bytes
// of stack each, so that 30,000 letters without a blank overrun the stack of a thread. What may need more than a small
// part of any stack goes to a thread whose stack is large enough.

#include "big_stack.h"
#include "module.h"
#include "text_run.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

enum {
    STACK_PER_BYTE = 512,     // of the longest run; 320 were measured with every pre-tokeniser, see tests/plugin
    STACK_BASE     = 1 << 20, // what tokenising needs for itself
    MAX_RUN        = 1 << 20, // 512 MiB of stack
    SMALL_RUN      = 256,     // 128 KiB: on the caller's own stack, the smallest of which (macOS) is 512 KiB
};

typedef int32_t llama_tokenize_fn(const void * vocab, const char * text, int32_t text_len, int32_t * tokens,
                                  int32_t n_tokens_max, bool add_special, bool parse_special);

struct job {
    llama_tokenize_fn * tokenize;
    const void *        vocab;
    const char *        text;
    int32_t             n_text;
    bool                add_special, parse_special;
    int32_t *           tokens; // malloc'd
    int32_t             n;      // -1: out of memory
};

static void run(void * user) {
    struct job * job = user;
    int32_t      n   = job->n_text < INT32_MAX - 16 ? job->n_text + 16 : INT32_MAX;
    for (int i = 0; i < 2; i++) {
        free(job->tokens);
        job->tokens = malloc((size_t) n * sizeof(*job->tokens));
        if (job->tokens == NULL) {
            break;
        }
        job->n = job->tokenize(job->vocab, job->text, job->n_text, job->tokens, n, job->add_special,
                               job->parse_special);
        if (job->n >= 0 || job->n == INT32_MIN) { // that many tokens do not fit its int32
            return;
        }
        n = -job->n; // so many they are
    }
    job->n = -1;
}

const char ropebend_tokenize_doc[] =
    "tokenize(function, vocab, text, add_special, parse_special)\n--\n\n"
    "Tokens of a text (UTF-8 bytes) as int32 in bytes. function: the address of llama_tokenize, vocab: of "
    "llama_vocab.\n"
    "Raises ValueError if the text is 2 GiB or holds more than 1 MiB without white space, which some pre-tokenisers\n"
    "have no stack for; MemoryError if it cannot be done for lack of memory.";

PyObject * ropebend_tokenize(PyObject * Py_UNUSED(module), PyObject * args) {
    PyObject *   function, *vocab;
    const char * text;
    Py_ssize_t   n_text;
    int          add_special, parse_special;
    if (!PyArg_ParseTuple(args, "O!O!y#pp", &PyLong_Type, &function, &PyLong_Type, &vocab, &text, &n_text, &add_special,
                          &parse_special)) {
        return NULL;
    }
    void *     address = PyLong_AsVoidPtr(function);
    struct job job     = {
        .vocab         = PyLong_AsVoidPtr(vocab),
        .text          = text,
        .n_text        = (int32_t) n_text,
        .add_special   = add_special != 0,
        .parse_special = parse_special != 0,
    };
    if (PyErr_Occurred()) {
        return NULL;
    }
    memcpy(&job.tokenize, &address, sizeof(address));
    if (n_text > INT32_MAX) {
        return PyErr_Format(PyExc_ValueError, "the text has %zd bytes, more than llama.cpp takes", n_text);
    }
    const size_t longest = ropebend_longest_run(text, (size_t) n_text);
    if (longest > MAX_RUN) {
        return PyErr_Format(PyExc_ValueError, "the text holds %zu bytes without white space in between, at most %d",
                            longest, MAX_RUN);
    }
    int error = 0;
    Py_BEGIN_ALLOW_THREADS // text belongs to an argument, so it stays
        if (longest <= SMALL_RUN) {
        run(&job);
    }
    else {
        error = ropebend_on_stack(STACK_BASE + STACK_PER_BYTE * longest, run, &job);
    }
    Py_END_ALLOW_THREADS PyObject * tokens = NULL;
    if (error != 0 || job.n == -1) {
        PyErr_Format(PyExc_MemoryError, "no memory to tokenise %zd bytes", n_text);
    } else if (job.n == INT32_MIN) {
        PyErr_Format(PyExc_ValueError, "the text has too many tokens for llama.cpp");
    } else {
        tokens = PyBytes_FromStringAndSize((const char *) job.tokens,
                                           (Py_ssize_t) job.n * (Py_ssize_t) sizeof(int32_t));
    }
    free(job.tokens);
    return tokens;
}
