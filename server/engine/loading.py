"""What to load and what came of it: options in, `Facts` about the model and its context out."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as lib

from ropebend import __version__
from ropebend.context import Context
from ropebend.errors import RopebendError
from ropebend.model import Model, scaling_for
from ropebend.model_info import ModelInfo
from ropebend.runtime import Runtime
from ropebend.scaling import LayerScaling
from ropebend.scaling.plan import Plan
from ropebend.scaling.source import ScaleSource
from ropebend.scaling.stretch import doubts
from ropebend.server.engine import context_size
from ropebend.server.engine.kv_pool import Keeps, KVPool
from ropebend.server.engine.memory import ContextMemory, keeps, restores, window_of
from ropebend.server.engine.requests import Pooling
from ropebend.server.engine.sampling import ends_of

log = logging.getLogger("ropebend.server")


@dataclass(frozen=True)
class EngineOptions:
    """What to load and how to run it; sizes in tokens.

    n_ctx         0: see `context_size.choose`
    n_cells       KV cells, shared by all requests and the cache of ended ones; 0: n_ctx
    n_slots       requests computed at once
    runtime       how llama.cpp runs; n_batch are the tokens of a step, after which a cancelled request stops
    scales        which layer scales are in effect
    pooling       of embeddings; None: what the file says, else "mean"
    queue_size    submissions that may wait beside n_slots running ones
    cache_ram     MiB that checkpoints may take
    """

    model: Path
    n_ctx: int = 0
    n_cells: int = 0
    n_slots: int = 16
    runtime: Runtime = field(default_factory=Runtime)
    scales: ScaleSource = field(default_factory=ScaleSource)
    pooling: Pooling | None = None
    queue_size: int = 64
    cache_ram: int = 2048


@dataclass(frozen=True)
class Facts:
    """What the loaded model and context are; tokens unless said otherwise.

    longest_piece  bytes of the token with the most text, 0 if the tokeniser makes one token of any text
    drops_blanks   whether the tokeniser leaves out blanks beside some tokens
    created     time of loading, seconds since 1970
    bos, eos    text of the special tokens, "" if there is none
    chat_template, tool_template  jinja: of every chat, and of chats with tools if the file has another one for those
    control_tokens  ids of the control tokens by their text
    user_defined_tokens  ids of those that are read in every text, by that
    end_tokens  those that end a text
    scaling     the scales in effect, or None
    plan_hash   digest of the plan of a request that may fill the context, or None
    n_cells     KV cells
    n_slots     requests computed at once
    n_seqs      sequences in the cache, running or ended
    n_embd      length of an embedding
    pooling     how it is made of the tokens' hidden states
    add_bos     whether the tokeniser puts BOS before a text
    keeps       what of a text another one can begin with
    window      tokens of the sliding window, 0: none
    """

    created: int
    path: str
    architecture: str
    n_params: int
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_cells: int
    n_slots: int
    n_seqs: int
    n_embd: int
    pooling: Pooling
    chat_template: str | None
    tool_template: str | None
    control_tokens: Mapping[str, int]
    user_defined_tokens: Mapping[str, int]
    end_tokens: tuple[int, ...]
    bos: str
    eos: str
    scaling: LayerScaling | None
    plan_hash: str | None
    add_bos: bool
    keeps: Keeps
    window: int
    longest_piece: int
    drops_blanks: bool
    build: str

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that `text` has at least, without tokenising it."""
        if not self.longest_piece:
            return 0
        counted = "".join(text.split()) if self.drops_blanks else text
        return -(-len(counted.encode()) // self.longest_piece)

    def plan(self, scaled: bool, length: int) -> Plan | None:
        """The plan of a request that may reach `length` tokens; None: unscaled."""
        return self.scaling.plan(length) if scaled and self.scaling is not None else None

    def room(self, scaled: bool, n_prompt: int) -> int:
        """Tokens for an answer to a request that names no `max_tokens`."""
        return self.scaling.room(n_prompt, self.n_ctx) if scaled and self.scaling else self.n_ctx - n_prompt


def load_model(o: EngineOptions) -> Model:
    """The model of these options.  RopebendError if it cannot be served."""
    model = Model(o.model, **o.runtime.model)
    if lib.llama_model_has_encoder(model.handle):
        name = f"{model.info.path}: {model.info.architecture}"
        model.close()
        raise RopebendError(f"{name} has an encoder; only decoder-only models are served")
    return model


def load_context(model: Model, o: EngineOptions) -> tuple[Context, Facts]:
    """A context for all slots, and the facts, which it logs."""
    info = model.info
    scaling = scaling_for(info, o.scales)
    n_ctx, why = context_size.choose(o.n_ctx, info.n_ctx_train, scaling)
    n_cells = o.n_cells or n_ctx
    if n_cells < n_ctx:
        raise RopebendError(f"--kv-size: expected at least the context of {n_ctx} tokens, got {n_cells}")
    n_batch = min(o.runtime.n_batch, n_ctx)
    # llama.cpp asserts that a batch has room for one output of each sequence
    n_seqs = min(llama_cpp.llama_max_parallel_sequences(), n_batch)
    n_slots = min(o.n_slots, n_seqs - 1)
    kept, window = keeps(model), window_of(model)
    if kept is Keeps.NOTHING:
        n_seqs = n_slots
    elif kept is Keeps.END:
        n_seqs = min(n_seqs, 2 * n_slots)  # each has a recurrent state, used or not
    if n_slots < 1:
        raise RopebendError(f"a context of {n_ctx} tokens and a batch of {n_batch} leave no room for a slot")
    context = Context(
        model,
        n_ctx=n_cells,
        n_seq_max=n_seqs,
        scaling=scaling,
        **{**o.runtime.context, "n_batch": n_batch},
    )
    if kept is Keeps.NOTHING:
        log.warning("each prompt is computed anew: the cache of %s keeps too little of a text", info.architecture)
    elif kept is not Keeps.ALL and not restores(context):
        log.warning("llama.cpp does not restore states of %s: each prompt is computed anew", info.architecture)
        kept = Keeps.NOTHING
    plan = context.scaling.plan(n_ctx) if context.scaling is not None else None
    facts = Facts(
        created=int(time.time()),
        path=info.path,
        architecture=info.architecture,
        n_params=int(lib.llama_model_n_params(model.handle)),
        n_vocab=model.n_vocab,
        n_ctx=n_ctx,
        n_ctx_train=info.n_ctx_train,
        n_cells=n_cells,
        n_slots=n_slots,
        n_seqs=n_seqs,
        n_embd=int(lib.llama_model_n_embd(model.handle)),
        pooling=o.pooling or own_pooling(model),
        chat_template=model.chat_template,
        tool_template=model.named_chat_template("tool_use"),
        control_tokens=model.control_tokens(),
        user_defined_tokens=model.user_defined_tokens(),
        end_tokens=tuple(ends_of(model.vocab)),
        bos=_special(model, model.bos_token),
        eos=_special(model, model.eos_token),
        scaling=context.scaling,
        plan_hash=plan.hash if plan is not None else None,
        add_bos=model.adds_bos,
        keeps=kept,
        window=window,
        longest_piece=longest_piece(model),
        drops_blanks=drops_blanks(model),
        build=f"ropebend {__version__}, llama-cpp-python {llama_cpp.__version__}",
    )
    size = f"{info.n_layer} layers, {facts.n_params:,} parameters"
    log.info("model %s: %s, %s", info.name, info.architecture, size)
    log.info("layer scales: %s", describe_scaling(scaling, o, info))
    log.info("context: %s", context_size.describe(n_ctx, why, info.n_ctx_train, facts.scaling))
    for warning in doubts(facts.scaling, info.n_ctx_train, n_ctx) if facts.scaling is not None else ():
        log.warning("%s", warning)
    log.info("slots: %d over %d shared KV cells", n_slots, n_cells)
    return context, facts


def make_pool(context: Context, facts: Facts, o: EngineOptions) -> KVPool:
    """The books of this context's cache."""
    return KVPool(
        ContextMemory(context),
        facts.n_cells,
        facts.n_seqs,
        keeps=facts.keeps,
        window=facts.window,
        checkpoint_bytes=o.cache_ram * 2**20,
    )


def longest_piece(model: Model) -> int:
    """Bytes of the token with the most text; 0 of T5's and BERT's tokenisers, which make one token of unknown words."""
    no_bound = (lib.LLAMA_VOCAB_TYPE_NONE, lib.LLAMA_VOCAB_TYPE_WPM, lib.LLAMA_VOCAB_TYPE_UGM)
    if lib.llama_vocab_type(model.vocab) in no_bound:
        return 0
    return max(len(lib.llama_vocab_get_text(model.vocab, token)) for token in range(model.n_vocab))


def drops_blanks(model: Model) -> bool:
    """Whether the vocabulary has tokens that take the blanks beside them along."""
    if lib.llama_vocab_type(model.vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
        return False
    strips = lib.LLAMA_TOKEN_ATTR_LSTRIP | lib.LLAMA_TOKEN_ATTR_RSTRIP
    return any(lib.llama_vocab_get_attr(model.vocab, token) & strips for token in range(model.n_vocab))


def own_pooling(model: Model) -> Pooling:
    """How the file says that embeddings are made; "mean" if it does not, or of a ranking model."""
    value = ctypes.create_string_buffer(16)
    key = f"{model.info.architecture}.pooling_type".encode()
    lib.llama_model_meta_val_str(model.handle, key, value, len(value))  # leaves it empty if the file has no such key
    kinds: dict[bytes, Pooling] = {
        b"%d" % lib.LLAMA_POOLING_TYPE_CLS: "cls",
        b"%d" % lib.LLAMA_POOLING_TYPE_LAST: "last",
    }
    return kinds.get(value.value, "mean")


def _special(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode(errors="replace") if token >= 0 else ""


def describe_scaling(scaling: LayerScaling | None, o: EngineOptions, info: ModelInfo) -> str:
    """One line for the log: which scales are in effect and where they come from."""
    if scaling is None:
        off = o.scales.no_scaling and info.scaling is not None
        return "off (--no-scaling), although the file carries some" if off else "none"
    return f"{scaling}, from {o.scales}"
