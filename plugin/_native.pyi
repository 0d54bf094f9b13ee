from typing import Any

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]

API: tuple[str, ...]
ARCHITECTURES_WITHOUT_ROPE: tuple[str, ...]
ARCHITECTURES_WITH_SHARED_KEYS: tuple[str, ...]

def init(addresses: dict[str, Any]) -> dict[str, int]: ...
def node_layer(address: int) -> tuple[int, bool]: ...
def read_metadata(path: str) -> dict[str, Any] | None: ...

class Hook:
    cb_eval: int
    user_data: int
    problem: str | None
    n_qk: list[int]
    n_shift: list[int]
    def __init__(self, n_layer: int) -> None: ...
    def set_plan(self, stretch: Row, base_stretch: Row, yarn_factor: float, yarn_n_ctx_orig: int) -> None: ...
    def clear_plan(self) -> None: ...
    def reset_counts(self) -> None: ...
