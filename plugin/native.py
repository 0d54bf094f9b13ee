"""Joins the C core to the llama.cpp that llama-cpp-python loaded, and reads GGUF metadata through it."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._ggml
import llama_cpp._logger
import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend import _native
from ropebend.errors import RopebendError, TextError
from ropebend.scaling.plan import Plan


@functools.cache
def layout() -> dict[str, int]:
    """Find out llama.cpp's struct layout (once a process) and return it: byte offsets and op codes.

    Raises RopebendError if this llama.cpp is too different to be patched, or if the preload library patches it already.
    """
    if hasattr(ctypes.CDLL(None), "ropebend_preload_version"):
        raise RopebendError(
            "this process runs under libropebend_preload.so, which scales already: take ropebend out of LD_PRELOAD"
        )
    addresses = {}
    for name in _native.API:
        for library in (llama_cpp._ggml.libggml, lib._lib):
            try:
                addresses[name] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
                break
            except AttributeError:
                continue
    try:
        return _native.init(addresses)
    except RuntimeError as e:
        raise RopebendError(
            f"llama-cpp-python {llama_cpp.__version__}: {e}; this llama.cpp cannot be patched, "
            "install a version that pyproject.toml names"
        ) from None


class Hook:
    """The graph callback of one context, the plan it applies, and whether a K-shift is still to come.

    Must outlive the context.  rope_layers: the layers that rotate, known after `learn_layers`.
    """

    def __init__(self, n_layer: int):
        layout()
        self._hook = _native.Hook(n_layer)
        self.n_layer = n_layer
        self.active = False
        self.rope_layers: list[int] = []
        self._shift_pending = False

    def install(self, params: Any) -> None:
        """Set cb_eval and its user data in a ``llama_context_params``."""
        params.cb_eval = lib.ggml_backend_sched_eval_callback(self._hook.cb_eval)
        params.cb_eval_user_data = self._hook.user_data

    def patch(self, node: int) -> None:
        """Patch the node at this address now, as llama.cpp's scheduler would have it done (for observers)."""
        lib.ggml_backend_sched_eval_callback(self._hook.cb_eval)(node, True, self._hook.user_data)

    def set_plan(self, plan: Plan | None) -> None:
        """Apply `plan` from the next decode on; None: leave llama.cpp's own values."""
        self.active = plan is not None
        if plan is None:
            self._hook.clear_plan()
        else:
            n = self.n_layer
            self._hook.set_plan(
                _row(plan.stretch, n),
                _row(plan.base_stretch, n),
                _row(plan.attn_factor, n),
                plan.yarn_factor,
                plan.yarn_n_ctx_orig,
            )

    def reset_counts(self) -> None:
        """Forget the nodes seen so far."""
        self._hook.reset_counts()

    def qk_nodes(self) -> list[int]:
        """Rope nodes of Q and K seen per layer since `reset_counts`."""
        return self._hook.n_qk

    def shift_nodes(self) -> list[int]:
        """Rope nodes over the K cache (a pending shift) seen per layer since `reset_counts`."""
        return self._hook.n_shift

    def learn_layers(self) -> None:
        """Take the layers seen since `reset_counts` (a warm-up decode) for those that rotate."""
        self.rope_layers = [layer for layer, n in enumerate(self.qk_nodes()) if n > 0]

    # ---- around llama_decode and llama_memory_seq_add

    def before_shift(self, memory: Any, seq: int, p0: int, p1: int, delta: int) -> None:
        """To be called before ``llama_memory_seq_add`` with the same arguments: its keys turn at the next decode."""
        self._shift_pending = self._shift_pending or _turns_keys(memory, seq, p0, p1, delta)

    def forget_shift(self) -> None:
        """To be called when the cache is cleared or replaced: no shift is pending."""
        self._shift_pending = False

    def before_decode(self) -> None:
        """To be called before ``llama_decode``."""
        if self._shift_pending:
            self.reset_counts()

    def after_decode(self, *, decoded: bool) -> None:
        """To be called after ``llama_decode``; decoded: it succeeded.

        Raises RopebendError if a plan is set and a rope node could not be patched, or some layer saw no node of the
        pending K-shift; more than one is right where a layer has more than one K cache.
        """
        shifted, self._shift_pending = self._shift_pending, False
        if not self.active:
            return
        problem = self._hook.problem
        if problem is not None:
            raise RopebendError(f"{problem}; its scale cannot be applied, so this model is refused")
        if not shifted:
            return
        seen = self.shift_nodes()
        if not decoded and not any(seen):  # llama.cpp may refuse a batch before it shifts
            self._shift_pending = True
            return
        wrong = [layer for layer in self.rope_layers if seen[layer] == 0]
        if wrong:
            raise RopebendError(
                f"the K-shift was not patched in layer {wrong[0]}: no rope node seen; "
                "cached keys are wrong now, clear the cache"
            )


def _row(values: npt.NDArray[np.float32], n_layer: int) -> bytes:
    if values.dtype != np.float32 or values.shape != (n_layer,):
        raise ValueError(f"expected float32 [{n_layer}], got {values.dtype} {list(values.shape)}")
    return values.tobytes()


def _turns_keys(memory: Any, seq: int, p0: int, p1: int, delta: int) -> bool:
    """True if ``llama_memory_seq_add`` of these positions makes llama.cpp turn cached keys at the next decode."""
    first, last = lib.llama_memory_seq_pos_min(memory, seq), lib.llama_memory_seq_pos_max(memory, seq)
    end = p1 if p1 >= 0 else last + 1
    return delta != 0 and last >= 0 and max(p0, first) < min(end, last + 1)


def quiet_llama_log() -> None:
    """Keep llama.cpp's debug lines off stderr unless the user of llama-cpp-python chose a level."""
    if llama_cpp._logger.logger.level == logging.NOTSET:
        llama_cpp._logger.logger.setLevel(logging.ERROR)


class _Log(threading.local):
    """What collects llama.cpp's lines in this thread, innermost last, and the level of the last line."""

    def __init__(self) -> None:
        self.collectors: list[tuple[tuple[int, ...], list[str]]] = []
        self.level = 0


_log = _Log()


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, user_data: Any) -> None:
    if not _log.collectors:
        llama_cpp._logger.llama_log_callback(level, text, user_data)
        return
    _log.level = _log.level if level == 5 else level  # 5 continues the line
    levels, lines = _log.collectors[-1]
    if _log.level in levels:
        lines.append(text.decode(errors="replace").strip())


@functools.cache
def _install_log() -> None:
    """Once a process, and never taken back: another thread may be on its way through the callback."""
    lib.llama_log_set(_log_callback, None)


@contextmanager
def captured_log(levels: tuple[int, ...] = (3, 4)) -> Iterator[list[str]]:
    """Collect what llama.cpp logs in this thread at these levels (ggml.h: 1 debug, 3 warning, 4 error).

    Nothing that this thread logs is printed; other threads' lines go where they went before.
    """
    _install_log()
    lines: list[str] = []
    _log.collectors.append((levels, lines))
    try:
        yield lines
    finally:
        _log.collectors.pop()


def check_tokenizer(model: Any, path: str | Path) -> None:
    """Raise RopebendError for a tokenizer in which llama.cpp aborts the process on a text with two blanks.

    model: a ``llama_model *``.  ``find_bpe_rank`` asserts that there are no blanks, but only the tokenizer "whitespace"
    keeps them out where the pre-tokeniser of that name does not encode bytes.
    """

    def value(key: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        lib.llama_model_meta_val_str(model, key, buffer, len(buffer))
        return buffer.value

    kind = value(b"tokenizer.ggml.model")
    if value(b"tokenizer.ggml.pre") == b"whitespace" and kind != b"whitespace":
        raise RopebendError(
            f"{path}: tokenizer.ggml.pre: 'whitespace' goes with tokenizer.ggml.model 'whitespace', "
            f"not {kind.decode(errors='replace')!r}"
        )


@functools.cache
def _tokenize_address() -> int:
    return int(ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value or 0)


def tokenize(vocab: Any, text: str | bytes, add_special: bool, parse_special: bool) -> list[int]:
    """``llama_tokenize`` for any text; it alone overruns the stack on tens of thousands of letters without a blank.

    vocab: a ``llama_vocab *``.  Raises TextError for one that cannot be tokenised.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
        address = ctypes.cast(vocab, ctypes.c_void_p).value or 0
        tokens = _native.tokenize(_tokenize_address(), address, data, add_special, parse_special)
    except UnicodeEncodeError as e:
        raise TextError(f"the text is no Unicode: half a surrogate pair at character {e.start}") from None
    except (ValueError, MemoryError) as e:
        raise TextError(str(e)) from None
    return np.frombuffer(tokens, np.int32).tolist()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """All metadata of a GGUF file except arrays of strings; tensors are not read.

    Raises RopebendError if the file is missing, not readable or not a GGUF that llama.cpp accepts.
    """
    layout()
    try:
        with open(path, "rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise RopebendError(f"{path}: {e.strerror}") from None
    if magic != b"GGUF":
        raise RopebendError(f"{path}: not a GGUF file: expected magic b'GGUF', got {magic!r}")
    with captured_log() as log:
        fields: dict[str, Any] | None = _native.read_metadata(str(path))
    if fields is None:
        raise RopebendError(f"{path}: llama.cpp refuses this file: {log[0] if log else 'no reason given'}")
    return fields
