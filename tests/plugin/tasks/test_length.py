"""Lengths in tokens: as they are written, and as prompts keep them."""

import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropebend import RopebendError, UsageError
from ropebend.tasks import make_task, read_length
from ropebend.tasks.length import FilledTask, fill


@pytest.mark.parametrize(("text", "tokens"), [("8192", 8192), ("8k", 8192), ("1.5K", 1536), ("1M", 1 << 20), (64, 64)])
def test_lengths_are_read(text: str | int, tokens: int) -> None:
    assert read_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "8kb", "-5", "1.5", "7", "8 k 2", "1e3"])
def test_what_is_no_length_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="length: expected tokens, at least 8, as 8192 or 8k, got"):
        read_length(text)


@given(
    st.integers(1, 50), st.lists(st.integers(0, 9), min_size=2, max_size=80), st.integers(0, 400), st.integers(0, 99)
)
def test_the_most_that_fits_is_found(head: int, units: list[int], limit: int, guess: int) -> None:
    calls = 0

    def count(n: int) -> int:
        nonlocal calls
        calls += 1
        return head + sum(units[k % len(units)] + 1 for k in range(n))

    n = fill(count, limit, 1, guess)
    assert n == 0 or count(n) <= limit
    assert count(n + 1) > limit
    assert calls < 40


def tokens(prompt: str, prefix: str = "") -> list[int]:
    """As tokenisers go: words, blanks and digits by themselves."""
    text = prompt + prefix
    return [0] * (len(text.split()) + sum(c.isdigit() for c in text) + text.count("-"))


TASKS: list[tuple[str, dict[str, Any]]] = [
    ("kv", {}), ("kv", {"protocol": "published"}), ("passkey", {}), ("longeval", {}),
    ("longeval", {"protocol": "published"}), ("ruler:niah_single_1", {}), ("ruler:niah_multikey_2", {}),
    ("ruler:niah_multikey_3", {}), ("ruler:niah_multikey_2", {"protocol": "published"}), ("ruler:vt", {}),
    ("ruler:cwe", {}), ("ruler:fwe", {}),
]  # fmt: skip


@pytest.mark.parametrize("length", [1200, 4096])
@pytest.mark.parametrize(("name", "options"), TASKS)
def test_prompts_fill_their_length_and_never_exceed_it(name: str, options: dict[str, Any], length: int) -> None:
    task = make_task(name, {"length": length, **options})
    assert isinstance(task, FilledTask)
    task.prepare(tokens)
    counts = [len(tokens(q.prompt, q.prefix)) + task.reserved for i in range(6) for q in task.item(i).questions]
    assert max(counts) <= length
    assert min(counts) >= 0.9 * length
    assert task.max_prompt_tokens == length - task.reserved


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_items_are_the_same_at_every_call_and_in_every_process(name: str, options: dict[str, Any]) -> None:
    task = make_task(name, {"length": 1200, **options})
    assert isinstance(task, FilledTask)
    task.prepare(tokens)
    first = [task.item(i) for i in range(3)]
    elsewhere = pickle.loads(pickle.dumps(task))
    elsewhere.prepare(tokens)
    random.seed(3)
    assert [elsewhere.item(i) for i in (2, 1, 0)] == first[::-1]
    assert len({item.questions[0].prompt for item in first}) == 3
    assert make_task(name, {"length": 1200, **options}).config() == task.config()


@pytest.mark.parametrize("name", ["kv", "passkey", "longeval", "ruler:niah_multikey_2", "ruler:vt", "ruler:cwe"])
def test_a_length_too_short_for_any_prompt_is_said(name: str) -> None:
    task = make_task(name, {"length": 20})
    with pytest.raises(RopebendError, match=rf"{name}: the shortest prompt takes \d+ tokens.*; the length is 20"):
        task.prepare(tokens)
