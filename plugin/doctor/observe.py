"""Watches llama.cpp compute rope nodes: what went into each, by which parameters, and what came out."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp._ggml
import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ropebend import _native
from ropebend.context import Context
from ropebend.doctor.reference import RopeParams
from ropebend.errors import RopebendError
from ropebend.native import layout


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


class Tensor:
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

    def src(self, i: int) -> Tensor | None:
        address = ctypes.c_void_p.from_address(
            self.address + layout()["src"] + i * ctypes.sizeof(ctypes.c_void_p)
        ).value
        return Tensor(address) if address else None

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


class Observed(Context):
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
            node = Tensor(address)
            if node.op in (layout()["op_rope"], layout()["op_rope_back"]):
                if ask:
                    self.nodes.append(self._before(node))
                elif self.nodes[-1].x is not None:
                    self.nodes[-1].out = node.read()[0]
        except Exception as e:  # ctypes would print and drop it
            self.failure = self.failure or e
        return True

    def _before(self, node: Tensor) -> RopeNode:
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
