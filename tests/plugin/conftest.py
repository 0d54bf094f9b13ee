"""Small random models that several tests of the hook share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from random_models import write_llama

from ropebend import Model


@pytest.fixture(scope="session")
def plain_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "plain.gguf")


@pytest.fixture(scope="session")
def plain(plain_path: Path) -> Iterator[Model]:
    with Model(plain_path) as model:
        yield model


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """head_dim 64: with a quantised K cache llama.cpp rotates keys by a Hadamard matrix."""
    path = tmp_path_factory.mktemp("models") / "wide.gguf"
    with Model(write_llama(path, n_layer=3, n_embd=128, n_head=2, n_head_kv=2, head_dim=64)) as model:
        yield model
