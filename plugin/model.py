"""A GGUF's weights and vocabulary on llama.cpp's C API, and which layer scales go with them."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
from typing_extensions import Self

from ropebend.errors import RopebendError
from ropebend.factors import resolve
from ropebend.model_info import ModelInfo
from ropebend.native import captured_log, check_tokenizer, quiet_llama_log, tokenize
from ropebend.placement import model_params
from ropebend.scaling import LayerScaling
from ropebend.scaling.source import ScaleSource


@functools.cache
def _backend_init() -> None:
    lib.llama_backend_init()


class Closing:
    """Lets `with` call close() at its end."""

    def close(self) -> None:
        """Free what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Model(Closing):
    """Weights and vocabulary of a GGUF.  Several contexts may share one.

    placement  where the weights go, see `placement.model_params`
    info       what the file's header says
    n_vocab    tokens in the vocabulary

    Raises RopebendError naming the file if it is missing, is no model, or llama.cpp cannot load it; ScalesError if it
    carries scales that do not fit it; UsageError for a placement that cannot be followed.
    """

    def __init__(self, path: str | Path, **placement: Any):
        self.info = ModelInfo.read(path)
        quiet_llama_log()
        _backend_init()
        params, self._kept = model_params(**placement)
        with captured_log() as log:
            self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise RopebendError(f"{path}: llama.cpp cannot load this model: {log[-1] if log else 'no reason given'}")
        try:
            check_tokenizer(self._model, path)
        except RopebendError:
            self.close()
            raise
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        """Free the weights.  Every context must be closed before."""
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    @property
    def handle(self) -> Any:
        """The ``llama_model *``."""
        return self._model

    @property
    def vocab(self) -> Any:
        """The ``llama_vocab *``."""
        return self._vocab

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own chat template (jinja), or None."""
        return self.named_chat_template(None)

    def named_chat_template(self, name: str | None) -> str | None:
        """The chat template of this name, as "tool_use" (``tokenizer.chat_template.tool_use``), or None."""
        raw = lib.llama_model_chat_template(self._model, None if name is None else name.encode())
        return raw.decode(errors="replace") if raw else None

    def control_tokens(self) -> dict[str, int]:
        """The ids of the control tokens by their text, which the tokeniser reads as such if it is asked to."""
        return self._tokens_with(lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN)

    def user_defined_tokens(self) -> dict[str, int]:
        """The ids of the tokens by their text that the tokeniser reads in every text, asked or not."""
        return self._tokens_with(lib.LLAMA_TOKEN_ATTR_USER_DEFINED)

    def _tokens_with(self, mask: int) -> dict[str, int]:
        if lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
            return {}  # llama.cpp aborts when asked for one of its tokens
        tokens = (t for t, attributes in enumerate(self._attributes) if attributes & mask)
        return {self.piece(t, special=True).decode(errors="replace"): t for t in tokens}

    @functools.cached_property
    def _attributes(self) -> list[int]:
        return [lib.llama_vocab_get_attr(self._vocab, t) for t in range(self.n_vocab)]

    @property
    def bos_token(self) -> int:
        """Token id, -1 if the vocabulary has none."""
        return int(lib.llama_vocab_bos(self._vocab))

    @property
    def eos_token(self) -> int:
        """Token id, -1 if the vocabulary has none."""
        return int(lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """True if a prompt of this model starts with BOS."""
        return bool(lib.llama_vocab_get_add_bos(self._vocab))

    def is_eog(self, token: int) -> bool:
        """True if this token ends the generation."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of `text` (``llama_tokenize``).

        add_special: BOS/EOS as the model wants; parse_special: control tokens in the text.
        Raises TextError for a text that holds half a surrogate pair, or more than 1 MiB without white space.
        """
        return tokenize(self._vocab, text, add_special, parse_special)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for (``llama_token_to_piece``); control tokens are empty unless `special`.

        Raises RopebendError for a token without any.
        """
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        n = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(n)
            got = lib.llama_token_to_piece(self._vocab, token, buffer, n, 0, special)
            if got >= 0:
                piece = buffer.raw[:got]
                self._pieces[token, special] = piece
                return piece
            n = -got
        raise RopebendError(f"token {token} has no piece")

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of `tokens`; bytes that are not UTF-8 become U+FFFD.  Raises RopebendError as `piece` does."""
        return b"".join(self.piece(t, special=special) for t in tokens).decode(errors="replace")


def has_mrope(model: Model) -> bool:
    """True if positions have several parts (Qwen-VL and the like)."""
    return lib.llama_model_rope_type(model.handle) in (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE)


def check_supported(info: ModelInfo, scaling: LayerScaling) -> None:
    """Raise ScalesError unless `scaling` can be applied to this model as its file describes it."""
    scaling.check_model(info.n_layer, info.architecture, info.rope_scaling[0])


def chosen_scaling(scaling: LayerScaling | str | None, info: ModelInfo) -> LayerScaling | None:
    """Resolve the `scaling` argument of `Context` and `Llama`: "file" is what the GGUF carries.

    Raises RopebendError for anything but "file", None or a LayerScaling.
    """
    if scaling == "file":
        return info.scaling
    if scaling is not None and not isinstance(scaling, LayerScaling):
        raise RopebendError(
            f'scaling: expected "file", None or a LayerScaling, got {scaling!r}; '
            "LayerScaling.load(path) reads a factors file"
        )
    return scaling


def scaling_for(info: ModelInfo, source: ScaleSource) -> LayerScaling | None:
    """The scales to use, or None: the model runs unscaled.  RopebendError if they do not fit it."""
    if source.no_scaling:
        return None
    if source.factors is not None:
        scaling = LayerScaling.load(resolve(source.factors, info.path))
    else:
        plain = source.plain(info.n_layer, info.architecture)
        if plain is None:
            return info.scaling
        scaling = plain
    try:
        check_supported(info, scaling)
    except RopebendError as e:
        raise RopebendError(f"{source}: {e}") from None
    return replace(scaling, architecture=info.architecture)
