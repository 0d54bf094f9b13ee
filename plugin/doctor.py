"""Proves on a given model that the hook is active: `ropebend doctor`.

Every rope node is observed while it is computed.  Its output must be what a numpy rope makes of its input and the
layer's scale; and where llama.cpp's own flag ``rope_freq_scale`` reaches, its parameters must be those of the flag.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import llama_cpp._ggml
import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend import _native
from ropebend.context import Context
from ropebend.errors import RopebendError
from ropebend.model import Model, check_supported
from ropebend.native import layout
from ropebend.reference import RopeParams, largest_angle, rope, scaled
from ropebend.scaling import LayerScaling

# of the output's root mean square; llama.cpp computes angles in float32, so large ones are less exact
TOLERANCE = 1e-3
ROUNDING = 2e-6  # per radian
TOLERANCE_F16 = 1e-2  # a K cache is f16


@dataclass
class RopeNode:
    """A rope node as it was computed.  x, out: [n_tokens, n_heads, head_dim]; positions: [n_tokens], M-RoPE: four."""

    name: str
    layer: int  # -1: unknown
    shift: bool  # a K-shift
    params: RopeParams
    x: npt.NDArray[np.float32] | npt.NDArray[np.float16] | None
    positions: npt.NDArray[np.int32]
    factors: npt.NDArray[np.float32] | None
    out: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Check:
    """One finding: ok, what was checked, and what came of it."""

    ok: bool
    title: str
    detail: str = ""


class _Tensor:
    """Reads a ``ggml_tensor`` at an address, by the offsets that the layout probe found."""

    def __init__(self, address: int):
        at = layout()
        self.address = address
        self.op = ctypes.c_int32.from_address(address + at["op"]).value
        self.name = ctypes.string_at(address + at["name"]).decode(errors="replace")
        self.type = ctypes.c_int32.from_address(address).value
        # nb stands right behind ne; checked against ggml's own count of bytes
        self.ne = list((ctypes.c_int64 * 4).from_address(address + at["ne"]))
        self.nb = list((ctypes.c_size_t * 4).from_address(address + at["ne"] + 32))

    @property
    def op_params(self) -> npt.NDArray[np.int32]:
        return np.array((ctypes.c_int32 * 16).from_address(self.address + layout()["op_params"]))

    def src(self, i: int) -> _Tensor | None:
        address = ctypes.c_void_p.from_address(
            self.address + layout()["src"] + i * ctypes.sizeof(ctypes.c_void_p)
        ).value
        return _Tensor(address) if address else None

    def read(self) -> npt.NDArray[Any]:
        """A copy of the data, shape reversed(ne), whatever device it is on."""
        kinds: dict[int, Any] = {0: np.float32, 1: np.float16, 26: np.int32}
        if self.type not in kinds:
            raise RopebendError(f"{self.name}: cannot read tensors of type {self.type}")
        kind = np.dtype(kinds[self.type])
        n_bytes = sum((n - 1) * b for n, b in zip(self.ne, self.nb, strict=True)) + kind.itemsize
        size = llama_cpp._ggml.libggml.ggml_nbytes
        size.argtypes, size.restype = [ctypes.c_void_p], ctypes.c_size_t
        if size(self.address) != n_bytes:
            raise RopebendError("the layout of ggml_tensor has moved: nb does not stand behind ne")
        raw = np.empty(n_bytes, np.uint8)
        get = llama_cpp._ggml.libggml.ggml_backend_tensor_get
        get.argtypes, get.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None
        get(self.address, raw.ctypes.data, 0, n_bytes)
        return np.lib.stride_tricks.as_strided(raw.view(kind), self.ne[::-1], self.nb[::-1]).copy()


class _Observed(Context):
    """A context that records every rope node; with it each node is computed alone, which is slow."""

    def _install_hook(self, params: Any) -> None:
        self.nodes: list[RopeNode] = []
        self.failure: Exception | None = None
        self._callback = lib.ggml_backend_sched_eval_callback(self._observe)
        params.cb_eval = self._callback
        params.cb_eval_user_data = None

    def _observe(self, address: int, ask: bool, _user_data: Any) -> bool:
        try:
            assert self.hook is not None
            if ask:
                self.hook.patch(address)
            node = _Tensor(address)
            if node.op in (layout()["op_rope"], layout()["op_rope_back"]):
                if ask:
                    self.nodes.append(self._before(node))
                elif self.nodes[-1].x is not None:
                    self.nodes[-1].out = node.read()[0]
        except Exception as e:  # ctypes would print and drop it
            self.failure = self.failure or e
        return True

    def _before(self, node: _Tensor) -> RopeNode:
        x, positions, factors = node.src(0), node.src(1), node.src(2)
        assert x is not None
        assert positions is not None
        readable = x.type in (0, 1) and x.ne[3] == 1
        layer, shift = _native.node_layer(node.address)
        return RopeNode(
            name=node.name,
            layer=layer,
            shift=shift,
            params=RopeParams.of(node.op_params, node.op == layout()["op_rope_back"]),
            x=x.read()[0] if readable else None,
            positions=positions.read().reshape(-1),
            factors=factors.read().reshape(-1) if factors is not None else None,
        )

    def record(self, tokens: list[int], shift: bool) -> list[RopeNode]:
        """The rope nodes of one decode of `tokens` from position 0, and of a K-shift if `shift`."""
        self.clear()
        self.nodes.clear()
        self.decode(tokens, 0, all_logits=True)
        if shift:
            drop_and_decode_on(self, tokens)
        if self.failure is not None:
            raise self.failure
        return list(self.nodes)


def drop_and_decode_on(context: Context, tokens: list[int]) -> None:
    """Drop positions 4 to 8 of decoded tokens, close the gap (a K-shift) and decode three more."""
    context.seq_rm(0, 4, 8)
    context.seq_add(0, 8, -1, -4)
    context.decode(tokens[:3], len(tokens) - 4, all_logits=True)


def examine(
    model: Model, *, n_threads: int = 0, flash_attn: bool = False, type_k: str = "f16", shift: bool = True
) -> Iterator[Check]:
    """Run every check on this model and yield the findings as they come.  shift: K-shifts too, where possible."""
    info = model.info
    common: dict[str, Any] = {
        "n_ctx": 256, "n_batch": 64, "n_ubatch": 64, "n_threads": n_threads, "flash_attn": flash_attn, "type_k": type_k,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = [int(t) for t in rng.integers(0, model.n_vocab, 24)]
    distinct = LayerScaling(tuple(1.25 + 0.25 * (i % 7) for i in range(info.n_layer)))
    twice = LayerScaling.uniform(2.0, info.n_layer)
    try:
        check_supported(info, twice)
    except RopebendError as e:
        yield Check(False, "the architecture can be scaled", str(e))
        return
    shift = shift and shift_obstacle(model, type_k) is None

    at = layout()
    yield Check(True, "struct layout of the loaded llama.cpp", ", ".join(f"{k} {v}" for k, v in at.items()))

    with _Observed(model, scaling=None, **common) as context:
        own = context.record(tokens, shift)
        layers = context.rope_layers
        without = sorted(set(range(info.n_layer)) - set(layers))
        n_decode = next((i for i, node in enumerate(own) if node.shift), len(own))
        detail = f"{n_decode} rope nodes in layers {ranges(layers)}" + (
            f"; no rope in {ranges(without)}" if without else ""
        )
        yield Check(
            bool(layers), "every rope node belongs to a layer", detail if layers else "no rope node in the graph"
        )
        if not layers:
            return
        context.set_scaling(distinct)
        yield _compare_with_numpy(own, context.record(tokens, shift), distinct)
        context.set_scaling(twice)
        stretched = context.record(tokens, shift)

    flag = lib.llama_model_rope_freq_scale_train(model.handle) / 2
    with _Observed(model, scaling=None, rope_freq_scale=flag, **common) as context:
        by_flag = context.record(tokens, shift)
    reached = [f for f, o in zip(by_flag, own, strict=True) if f.params != o.params]
    # in a K-shift llama.cpp multiplies cached keys by the magnitude of LongRoPE again, the hook does not
    shift_comparable = all(node.params.attn_factor == 1 for node in own if node.shift)
    title = "scale 2 is rope_freq_scale / 2, node by node"
    if any(node.params.ext_factor != 0 for node in own):
        yield Check(True, title, "not compared: the flag would also change the magnitude of this model's YaRN")
        reached = []
    else:
        pairs = zip(by_flag, stretched, own, strict=True)
        wrong = [f.name for f, s, o in pairs if not _same_turn(f, s) and f.params != o.params]
        detail = f"equal in {len(reached)} of {len(own)} rope nodes; the flag reaches no others"
        yield Check(not wrong, title, f"differs in {wrong[0]}" if wrong else detail)

    def logits(scaling: LayerScaling | None, shifted: bool, **more: Any) -> npt.NDArray[np.float32]:
        with Context(model, scaling=scaling, **common, **more) as context:
            context.decode(tokens, 0, all_logits=True)
            if shifted:
                drop_and_decode_on(context, tokens)
            return context.all_logits(3 if shifted else len(tokens)).copy()

    same = np.array_equal(logits(None, False, hooked=False), logits(LayerScaling.uniform(1.0, info.n_layer), False))
    yield Check(
        same, "scale 1 everywhere gives the logits of an unhooked context", "bit for bit" if same else "they differ"
    )
    with Context(model, scaling=None, **common) as plain:
        yield _each_layer_matters(plain, tokens, layers)
    if len(reached) == len(own):
        yield from _compare_logits(logits, info.n_layer, flag, shift and shift_comparable)


def _same_turn(a: RopeNode, b: RopeNode) -> bool:
    """The same parameters; in a K-shift the magnitude may differ."""
    return a.params == (replace(b.params, attn_factor=a.params.attn_factor) if b.shift else b.params)


def _each_layer_matters(context: Context, tokens: list[int], layers: list[int]) -> Check:
    def logits(scaled_layer: int | None) -> npt.NDArray[np.float32]:
        n_layer = context.model.info.n_layer
        context.set_scaling(LayerScaling(tuple(2.0 if i == scaled_layer else 1.0 for i in range(n_layer))))
        context.decode(tokens, 0, all_logits=True)
        return context.all_logits(len(tokens)).copy()

    unscaled = logits(None)
    dead = [layer for layer in layers if np.array_equal(logits(layer), unscaled)]
    title = "each layer's scale alone changes the logits"
    return Check(not dead, title, f"not in {ranges(dead)}" if dead else f"in {ranges(layers)}")


def _compare_logits(
    logits: Callable[..., npt.NDArray[np.float32]], n_layer: int, flag: float, shift: bool
) -> Iterator[Check]:
    # a flag of 1/2 and scales of 1/2 cancel in every rope node: what is left is what else the flag changes
    neutral = logits(LayerScaling.uniform(0.5, n_layer), False, rope_freq_scale=flag)
    cases = [(False, "scale 2 gives the logits of rope_freq_scale / 2")]
    if not np.array_equal(neutral, logits(None, False, hooked=False)):
        yield Check(True, cases[0][1], "not compared: in this architecture the flag changes more than rope")
        return
    if shift:
        cases.append((True, "and after a K-shift (context shift), too"))
    for shifted, title in cases:
        ours = logits(LayerScaling.uniform(2.0, n_layer), shifted)
        difference = float(np.abs(ours - logits(None, shifted, hooked=False, rope_freq_scale=flag)).max())
        yield Check(
            difference == 0, title, "bit for bit" if difference == 0 else f"they differ by up to {difference:.3g}"
        )


def _compare_with_numpy(
    own: list[RopeNode], patched: list[RopeNode], scaling: LayerScaling, length: int | None = None
) -> Check:
    worst, where, n_checked = 0.0, "", 0
    for before, node in zip(own, patched, strict=True):
        if node.layer < 0 or node.x is None or node.out is None:
            continue
        try:
            params = scaled(before.params, scaling, node.layer, length, shift=node.shift)
            expected = rope(node.x, node.positions, params, node.factors)
        except ValueError:
            continue  # a rope mode that numpy does not know
        error = float(np.abs(expected - node.out).max() / np.sqrt((expected**2).mean()))
        tolerance = TOLERANCE if node.x.dtype == np.float32 else TOLERANCE_F16
        allowed = max(tolerance, ROUNDING * largest_angle(node.positions, node.factors))
        n_checked += 1
        if error / allowed > worst:
            worst, where = error / allowed, f"{node.name} ({error:.1e} of the RMS)"
    title = "with a scale of its own for each layer, every output is numpy's"
    if n_checked == 0:
        return Check(False, title, "no rope node could be compared (unknown rope mode)")
    return Check(worst < 1, title, f"{n_checked} of {len(own)} rope nodes compared, largest error in {where}")


def shift_obstacle(model: Model, type_k: str) -> str | None:
    """Why a cache of this model with keys of this type cannot be shifted; None if it can."""
    with Context(model, n_ctx=64, n_batch=32, type_k=type_k, scaling=None) as context:
        return context.shift_obstacle()


def ranges(layers: list[int]) -> str:
    """[0, 1, 2, 5] as "0–2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
