"""Proves on a given model that the hook is active: `ropebend doctor`.

Every rope node is observed while it is computed.  Its output must be what a numpy rope makes of its input and the
layer's numbers; and where llama.cpp's own flag ``rope_freq_scale`` reaches, its parameters must be those of the flag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend.context import Context
from ropebend.doctor.observe import Observed, RopeNode, drop_and_decode_on
from ropebend.doctor.reference import rope, rounding, scaled
from ropebend.errors import RopebendError
from ropebend.model import Model, check_supported
from ropebend.native import layout
from ropebend.runtime import FlashAttn
from ropebend.scaling import LayerScaling
from ropebend.scaling.plan import Plan, stretched
from ropebend.scaling.rope_method import NO_METHOD, RopeMethod

F32 = npt.NDArray[np.float32]

N_TOKENS = 24  # that are decoded; angles reach this many radians
METHODS = (
    RopeMethod("linear", 2.0),
    RopeMethod("ntk", 3.0),
    RopeMethod("dynamic-ntk", 2.0, 64),
    RopeMethod("yarn", 4.0, 64),
)


@dataclass(frozen=True)
class Check:
    """One finding.

    name     short and stable
    finding  a sentence for people: what is so, or what is wrong
    detail   figures for developers
    """

    name: str
    ok: bool
    finding: str
    detail: str = ""


def examine(
    model: Model,
    *,
    n_threads: int = 0,
    flash_attn: FlashAttn = False,
    type_k: str = "f16",
    shift: bool = True,
    full: bool = False,
) -> Iterator[Check]:
    """Check this model and yield the findings as they come.

    shift: K-shifts too, where possible.  full: also against llama.cpp's own flag, and every extension method on top.
    """
    examiner = _Examiner(model, {"n_threads": n_threads, "flash_attn": flash_attn, "type_k": type_k}, shift)
    refusal = examiner.refusal()
    if refusal is not None:
        yield Check("architecture", False, f"this model cannot be scaled: {refusal}", refusal)
        return
    at = ", ".join(f"{k} {v}" for k, v in layout().items())
    yield Check("layout", True, "the loaded llama.cpp is laid out as expected", at)
    nodes = examiner.look()
    yield nodes
    if not nodes.ok:
        return
    numpy = examiner.numpy()
    yield numpy
    yield examiner.ones()
    yield from examiner.alone(numpy.ok)
    if full:
        yield from examiner.flag()
        for method in METHODS:
            yield examiner.method(method)


class _Examiner:
    """The checks, in their order; `look` first."""

    def __init__(self, model: Model, options: dict[str, Any], shift: bool):
        self.model = model
        self.n_layer = model.info.n_layer
        self.options = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 64, "scaling": None, **options}
        rng = np.random.default_rng(0)
        self.tokens = [int(t) for t in rng.integers(0, model.n_vocab, N_TOKENS)]
        self.shift = shift and shift_obstacle(model, options["type_k"]) is None
        self.layers: list[int] = []
        self.own: list[RopeNode] = []  # of a decode, and of a K-shift, without any scales

    def refusal(self) -> str | None:
        """Why this architecture cannot be scaled, or None."""
        try:
            check_supported(self.model.info, LayerScaling.uniform(2.0, self.n_layer))
        except RopebendError as e:
            return str(e)
        return None

    def distinct(self, method: RopeMethod = NO_METHOD) -> LayerScaling:
        """Scales that differ from one layer to the next."""
        return LayerScaling(tuple(1.25 + 0.25 * (i % 7) for i in range(self.n_layer)), rope=method)

    def attn_factors(self) -> F32:
        """And so do these, with another period."""
        return np.array([1.3 - 0.15 * (i % 5) for i in range(self.n_layer)], np.float32)

    def plan(self, scaling: LayerScaling, attn_factor: F32 | None = None) -> Plan:
        """The plan of the context that the checks make."""
        scaling = scaling.with_original_context(self.model.info.n_ctx_train)
        factors = None if attn_factor is None else [float(a) for a in attn_factor]
        return stretched(scaling.layer_scale, scaling.rope, self.options["n_ctx"], factors)

    def record(self, plan: Plan | None, **more: Any) -> list[RopeNode]:
        """The rope nodes of one decode, and of a K-shift."""
        with Observed(self.model, **{**self.options, **more}) as context:
            context.switch_plan(plan)
            return context.record(self.tokens, self.shift)

    def look(self) -> Check:
        with Observed(self.model, **self.options) as context:
            self.own = context.record(self.tokens, self.shift)
            self.layers = context.rope_layers
        without = sorted(set(range(self.n_layer)) - set(self.layers))
        n_decode = next((i for i, node in enumerate(self.own) if node.shift), len(self.own))
        if not self.layers:
            return Check(
                "nodes", False, "nothing rotates in this model, so scales would have no effect", "no rope node"
            )
        finding = f"{len(self.layers)} of {self.n_layer} layers rotate, and each of their rope nodes was found"
        detail = f"{n_decode} rope nodes in layers {ranges(self.layers)}"
        return Check("nodes", True, finding, detail + (f"; no rope in {ranges(without)}" if without else ""))

    def numpy(self) -> Check:
        scaling, factors = self.distinct(), self.attn_factors()
        nodes = self.record(self.plan(scaling, factors))
        return compare_with_numpy("numpy", self.own, nodes, scaling, self.options["n_ctx"], factors)

    def method(self, method: RopeMethod) -> Check:
        name, scaling = f"method {method.method}", self.distinct(method)
        try:
            check_supported(self.model.info, scaling)
        except RopebendError as e:
            return Check(name, True, f"method {method.method} does not go with this model, and is refused", str(e))
        try:
            nodes = self.record(self.plan(scaling))
        except RopebendError as e:
            if "does not fit" not in str(e):
                raise
            return Check(name, True, f"method {method.method} does not go with this model, and is refused", str(e))
        return compare_with_numpy(name, self.own, nodes, scaling, self.options["n_ctx"])

    def logits(self, plan: Plan | None, *, shifted: bool = False, **more: Any) -> F32:
        """Of all tokens, or of three behind a K-shift; more: options of the context."""
        with Context(self.model, **{**self.options, **more}) as context:
            if context.hook is not None:
                context.switch_plan(plan)
            context.decode(self.tokens, 0, all_logits=True)
            if shifted:
                drop_and_decode_on(context, self.tokens)
            return context.all_logits(3 if shifted else len(self.tokens)).copy()

    def ones(self) -> Check:
        one = self.plan(LayerScaling.uniform(1.0, self.n_layer))
        same = np.array_equal(self.logits(None, hooked=False), self.logits(one))
        finding = (
            "scale and attention factor 1 change nothing" if same else "scale and attention factor 1 change something"
        )
        return Check("ones", same, finding, "bit for bit" if same else "the logits differ from an unhooked context's")

    def alone(self, applied: bool) -> Iterator[Check]:
        """Each layer's numbers alone must change what comes out.  applied: every rope node is known to be right."""
        with Context(self.model, **self.options) as context:
            for name, field, value in (("scale", "stretch", 2.0), ("attention factor", "attn_factor", 1.25)):
                dead = self._without_effect(context, field, value, self.layers, self.tokens[:4])  # enough as a rule
                dead = self._without_effect(context, field, value, dead, self.tokens)
                at = f"not in {ranges(dead)}" if dead else f"in {ranges(self.layers)}"
                if not dead:
                    yield Check(f"alone {name}", True, f"each layer's {name} alone changes what the model says", at)
                elif applied and field == "attn_factor":
                    finding = "a norm behind rope takes the attention factor out again in some layers"
                    yield Check(f"alone {name}", True, finding, at)
                else:
                    yield Check(f"alone {name}", False, f"the {name} of some layers changes nothing", at)

    def _without_effect(
        self, context: Context, field: str, value: float, layers: list[int], tokens: list[int]
    ) -> list[int]:
        one = self.plan(LayerScaling.uniform(1.0, self.n_layer))

        def logits(plan: Plan) -> F32:
            context.switch_plan(plan)
            context.clear()
            context.decode(tokens, 0, all_logits=True)
            return context.all_logits(len(tokens)).copy()

        if not layers:
            return []
        unscaled = logits(one)
        dead = []
        for layer in layers:
            row = getattr(one, field).copy()
            row[layer] = value
            if np.array_equal(logits(dataclasses.replace(one, **{field: row})), unscaled):
                dead.append(layer)
        return dead

    # ---- against llama.cpp's own flag

    def flag(self) -> Iterator[Check]:
        flag = lib.llama_model_rope_freq_scale_train(self.model.handle) / 2
        by_flag = self.record(None, rope_freq_scale=flag)
        stretched = self.record(self.plan(LayerScaling.uniform(2.0, self.n_layer)))
        reached = [f for f, o in zip(by_flag, self.own, strict=True) if f.params != o.params]
        finding = "scale 2 sets what llama.cpp's own --rope-freq-scale 0.5 sets"
        if any(node.params.ext_factor != 0 for node in self.own):
            detail = "not compared: the flag would also change the magnitude of this model's YaRN"
            yield Check("flag", True, "llama.cpp's own flag is no measure for this model, which has YaRN", detail)
            return
        pairs = zip(by_flag, stretched, self.own, strict=True)
        wrong = [f.name for f, s, o in pairs if not _same_turn(f, s) and f.params != o.params]
        if wrong:
            yield Check("flag", False, finding.replace("sets what", "does not set what"), f"differs in {wrong[0]}")
        else:
            detail = f"equal in {len(reached)} of {len(self.own)} rope nodes; the flag reaches no others"
            yield Check("flag", True, finding, detail)
        if len(reached) == len(self.own):
            yield from self._flag_logits(flag)

    def _flag_logits(self, flag: float) -> Iterator[Check]:
        # a flag of 1/2 and scales of 1/2 cancel in every rope node: what is left is what else the flag changes
        half, twice = (self.plan(LayerScaling.uniform(s, self.n_layer)) for s in (0.5, 2.0))
        neutral = self.logits(half, rope_freq_scale=flag)
        finding = "scale 2 and llama.cpp's own --rope-freq-scale 0.5 give the same answers"
        if not np.array_equal(neutral, self.logits(None, hooked=False)):
            detail = "not compared: in this architecture the flag changes more than rope"
            yield Check("flag logits", True, "llama.cpp's own flag is no measure for the answers of this model", detail)
            return
        # in a K-shift llama.cpp multiplies cached keys by the magnitude of LongRoPE again, the hook does not
        comparable = all(node.params.attn_factor == 1 for node in self.own if node.shift)
        for shifted in (False, True) if self.shift and comparable else (False,):
            ours = self.logits(twice, shifted=shifted)
            theirs = self.logits(None, shifted=shifted, hooked=False, rope_freq_scale=flag)
            difference = float(np.abs(ours - theirs).max())
            name = "flag logits shifted" if shifted else "flag logits"
            after = ", after a context shift too" if shifted else ""
            detail = "bit for bit" if difference == 0 else f"they differ by up to {difference:.3g}"
            yield Check(
                name, difference == 0, finding + after if difference == 0 else f"not so: {finding}{after}", detail
            )


def _same_turn(a: RopeNode, b: RopeNode) -> bool:
    """The same parameters; in a K-shift the magnitude may differ."""
    return a.params == (replace(b.params, attn_factor=a.params.attn_factor) if b.shift else b.params)


def compare_with_numpy(
    name: str,
    own: list[RopeNode],
    patched: list[RopeNode],
    scaling: LayerScaling,
    length: int | None = None,
    attn_factors: F32 | None = None,
) -> Check:
    """Whether every node's output is what numpy makes of its input, to what the formats round.

    own: the nodes without scales, patched: the same with them; length: tokens a sequence may reach.
    """
    worst, where, n_checked = 0.0, "", 0
    for before, node in zip(own, patched, strict=True):
        if node.layer < 0 or node.x is None or node.out is None:
            continue
        factor = 1.0 if attn_factors is None else float(attn_factors[node.layer])
        try:
            params = scaled(before.params, scaling, node.layer, length, attn_factor=factor, shift=node.shift)
            expected = rope(node.x, node.positions, params, node.factors)
            allowed = rounding(node.x, node.positions, params, node.factors)
        except ValueError:
            continue  # a rope mode that numpy does not know
        n_checked += 1
        error = float((np.abs(expected - node.out) / allowed).max())
        if not error <= worst:
            worst, where = error, node.name
    what = "both numbers of each layer" if attn_factors is not None else f"method {scaling.rope.method}"
    if n_checked == 0:
        return Check(name, False, f"{what}: not checked", "no rope node could be compared (unknown rope mode)")
    detail = f"{n_checked} of {len(own)} rope nodes, largest error {worst:.2g} of what rounding allows, in {where}"
    if worst <= 1:
        return Check(name, True, f"{what}: every layer rotates as computed independently", detail)
    return Check(name, False, f"{what}: some layer does not rotate as it should", detail)


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
