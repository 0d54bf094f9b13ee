"""No text can end the process on its way through llama.cpp's tokenisers."""

import subprocess
import sys
import threading
from pathlib import Path

import gguf
import pytest
from random_models import add_bpe, write_llama

from ropebend import Llama, Model, RopebendError, TextError
from ropebend.native import captured_log, read_metadata

#: Every name that llama-vocab.cpp compares ``tokenizer.ggml.pre`` with.
PRE_TOKENIZERS = [
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell",
    "cohere2moe", "command-r", "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3",
    "default", "exaone", "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1", "falcon3", "gemma4",
    "gigachat", "glm4", "glm5", "gpt-2", "gpt-4o", "gpt3-finnish", "granite-docling", "granite-embed-multi-311m",
    "granite-embed-multi-97m", "grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "jais", "jais-2", "jina-de",
    "jina-es", "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm", "kanana2",
    "kimi-k2", "kormo", "laguna", "lfm2", "llada-moe", "llama-bpe", "llama-v3", "llama3", "llama4", "megrez",
    "mellum", "mellum2", "midm-2.0", "minerva-7b", "minicpm5", "minimax-m2", "modern-bert", "mpt", "olmo",
    "phi-2", "pixtral", "poro-chat", "qwen2", "qwen35", "refact", "roberta-bpe", "sarvam-moe", "seed-coder",
    "smaug-bpe", "smollm", "solar-open", "spark2_5", "stablelm2", "starcoder", "superbpe", "talkie", "tekken",
    "tiny_aya", "trillion", "ufakzeka", "viking", "whitespace", "youtu",
]  # fmt: skip

#: Loads vocabularies and tokenises 3,000 of each alphabet's letters on a thread with the smallest stack there is.
SCRIPT = """
import os, sys, threading
import llama_cpp.llama_cpp as lib
from ropebend.native import captured_log, tokenize

def work():
    for path in sys.argv[1:]:
        params = lib.llama_model_default_params()
        params.vocab_only = True
        with captured_log() as log:
            model = lib.llama_model_load_from_file(os.fsencode(path), params)
        assert model, (path, log)
        vocab = lib.llama_model_get_vocab(model)
        for alphabet in ("A", "aB", " ", "=", "中"):
            text = alphabet * (3000 // len(alphabet))
            tokens = tokenize(vocab, text, False, False)
            assert alphabet != "A" or len(tokens) == len(text), (path, len(tokens))
        lib.llama_model_free(model)
    print("tokenised")

threading.stack_size(512 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_every_pre_tokenizer_takes_long_words_on_a_small_stack(tmp_path: Path) -> None:
    paths = []
    for name in PRE_TOKENIZERS:
        paths.append(tmp_path / f"{name}.gguf")
        w = gguf.GGUFWriter(paths[-1], "llama")
        add_bpe(w, name, "whitespace" if name == "whitespace" else "gpt2")
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
    run = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "tokenised\n"), run.stderr[-2000:]


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tekken") / "tekken.gguf", pre_tokenizer="tekken")


def test_a_mebibyte_without_white_space_is_the_longest_run(tekken: Path) -> None:
    with Model(tekken) as model:
        assert len(model.tokenize("A" * 2**20, add_special=False)) == 2**20
        with pytest.raises(TextError, match="1048577 bytes without white space in between, at most 1048576"):
            model.tokenize("A" * (2**20 + 1))
        words = "word " * 220_000  # however long the whole is
        assert len(model.tokenize(words, add_special=False)) == len(words)


def test_llama_cpp_pythons_class_takes_it_too(tekken: Path) -> None:
    llm = Llama(str(tekken), n_ctx=64, n_threads=1, verbose=False)
    assert len(llm.tokenize(b"A" * 100_000, add_bos=False)) == 100_000
    assert llm.tokenizer().encode("A" * 100_000, add_bos=False, special=False) == [66] * 100_000
    llm.close()


def test_a_tokenizer_in_which_two_blanks_abort_is_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "whitespace.gguf", pre_tokenizer="whitespace")
    message = "'whitespace' goes with tokenizer.ggml.model 'whitespace', not 'gpt2'"
    with pytest.raises(RopebendError, match=message):
        Model(path)
    with pytest.raises(RopebendError, match=message):
        Llama(str(path), n_ctx=64, verbose=False)


def test_half_a_surrogate_pair_is_named(plain: Model) -> None:
    with pytest.raises(TextError, match="half a surrogate pair at character 2"):
        plain.tokenize("ab\ud800")


def test_each_thread_captures_its_own_log(tmp_path: Path) -> None:
    """llama.cpp has one log callback a process; what a thread captures is what it caused, and nothing is lost."""
    found: dict[str, list[str]] = {}

    def load(name: str) -> None:
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(b"GGUF" + b"\xff" * 40)
        for _ in range(50):
            with captured_log() as outer, pytest.raises(RopebendError, match=name):
                read_metadata(path)
            found.setdefault(name, []).extend(outer)

    threads = [threading.Thread(target=load, args=(f"file{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {f"file{i}": [] for i in range(4)}  # the innermost collector has them
    with captured_log() as log, captured_log((4,)) as inner:
        pass
    assert log == inner == []
