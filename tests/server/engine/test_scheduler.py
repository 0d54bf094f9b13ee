"""The scheduler and the pool without a model: a memory that only remembers which tokens lie where."""

from __future__ import annotations

import pickle
from array import array
from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropebend.server.engine import checkpoints
from ropebend.server.engine.checkpoints import Checkpoints, Shelf, State
from ropebend.server.engine.kv_pool import Keeps, KVPool, common_prefix
from ropebend.server.engine.outputs import Outputs
from ropebend.server.engine.scheduler import Entry, Scheduler, Step


class FakeMemory:
    """Token lists by sequence id, as llama.cpp would hold them."""

    def __init__(self) -> None:
        self.held: dict[int, list[tuple[str, int]]] = {}
        self.copied = 0

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        assert not self.held.get(dst)
        self.held[dst] = self.held[src][max(p0, 0) : p1]
        self.copied += p1

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        self.held.pop(seq, None)

    def first_position(self, seq: int) -> int:
        raise AssertionError("all positions are there")

    def save(self, seq: int) -> State:
        raise AssertionError("nothing is lost that should be saved")

    def load(self, seq: int, state: State) -> bool:
        raise AssertionError("nothing was saved")

    def compute(self, step: Step) -> None:
        assert len({c.entry.alone for c in step.chunks}) == 1
        for c in step.chunks:
            assert c.entry.key == step.key
            assert c.entry.seq is not None
            held = self.held.setdefault(c.entry.seq.id, [])
            assert len(held) == c.start
            held += [(step.key, t) for t in c.entry.tokens[c.start : c.start + c.n]]


def _pack(what: object) -> State:
    return np.frombuffer(pickle.dumps(what), np.uint8)


class Recurrent(FakeMemory):
    """As a hybrid model's: beside the cells each sequence has one state, of all its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[int, list[tuple[str, int]]] = {}

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        super().seq_cp(src, dst, p0, p1)
        self.state[dst] = self.state[src][:]

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        super().seq_rm(seq, p0, p1)
        self.state.pop(seq, None)

    def save(self, seq: int) -> State:
        assert self.state[seq] == self.held[seq]
        return _pack(self.state[seq])

    def load(self, seq: int, state: State) -> bool:
        self.state[seq] = pickle.loads(state.tobytes())
        assert self.state[seq] == self.held[seq]
        return True

    def compute(self, step: Step) -> None:
        super().compute(step)
        for c in step.chunks:
            assert c.entry.seq is not None
            state = self.state.setdefault(c.entry.seq.id, [])
            state += [(step.key, t) for t in c.entry.tokens[c.start : c.start + c.n]]
            assert state == self.held[c.entry.seq.id], "it went on from another state"


class Windowed(FakeMemory):
    """A second cache, of as many cells, in which a cell of one sequence that left its window is given away at once."""

    def __init__(self, n_cells: int, window: int) -> None:
        super().__init__()
        self.n_cells = n_cells
        self.window = window
        self.cells: dict[int, dict[int, object]] = {}  # of each sequence, by position

    def _give_away(self) -> None:
        owners = Counter(id(cell) for cells in self.cells.values() for cell in cells.values())
        for cells in self.cells.values():
            left = [p for p, cell in cells.items() if p <= max(cells) + 1 - self.window and owners[id(cell)] == 1]
            for p in [p for p in cells if left and p <= max(left)]:  # what is kept has no holes
                owners[id(cells.pop(p))] -= 1
        assert len({id(cell) for cells in self.cells.values() for cell in cells.values()}) <= self.n_cells

    def seq_cp(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        super().seq_cp(src, dst, p0, p1)
        self.cells[dst] = {p: cell for p, cell in self.cells[src].items() if p < p1}

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> None:
        super().seq_rm(seq, p0, p1)
        self.cells.pop(seq, None)

    def first_position(self, seq: int) -> int:
        return min(self.cells[seq])

    def save(self, seq: int) -> State:
        first = max(0, len(self.held[seq]) - self.window + 1)
        assert min(self.cells[seq]) <= first
        return _pack(self.held[seq][first:])

    def load(self, seq: int, state: State) -> bool:
        n, window = len(self.held[seq]), pickle.loads(state.tobytes())
        assert window == self.held[seq][n - len(window) :]
        self.cells[seq] = {p: object() for p in range(n - len(window), n)}
        self._give_away()
        return True

    def compute(self, step: Step) -> None:
        super().compute(step)
        for c in step.chunks:
            assert c.entry.seq is not None
            cells = self.cells.setdefault(c.entry.seq.id, {})
            if c.start:
                assert min(cells) <= max(0, c.start - self.window + 1), "what it looks at is gone"
                assert max(cells) == c.start - 1
            cells.update((p, object()) for p in range(c.start, c.start + c.n))
        self._give_away()


WINDOW = 12


class Nobody:
    """Whose sequences are computed for nobody."""

    n_generated = 0
    sample_seconds = 0.0

    def deliver(self, outputs: Outputs) -> bool:
        raise AssertionError("there are none")


class Machine:
    """A scheduler whose entries all generate token 1 until they are full."""

    def __init__(
        self,
        n_cells: int = 100,
        n_seqs: int = 9,
        n_slots: int = 4,
        n_batch: int = 16,
        n_rows: int = 4,
        keeps: Keeps = Keeps.ALL,
        checkpoint_bytes: int = 2**20,
    ):
        window = WINDOW if keeps is Keeps.WINDOW else 0
        self.memory = {Keeps.WINDOW: Windowed(n_cells, window), Keeps.END: Recurrent()}.get(keeps, FakeMemory())
        self.pool = KVPool(self.memory, n_cells, n_seqs, keeps=keeps, window=window, checkpoint_bytes=checkpoint_bytes)
        self.scheduler = Scheduler(self.pool, n_slots, n_batch, n_rows)
        self.computed = 0

    @property
    def entries(self) -> list[Entry]:
        """Those that have not ended."""
        return [*self.scheduler.running, *chain(*self.scheduler._waiting.values())]

    def add(self, prompt: list[int], n_new: int, key: str = "", group: object = None, all_rows: bool = False) -> Entry:
        tokens = array("i", prompt)
        entry = Entry(group or object(), key, tokens, len(prompt) + n_new, Nobody(), all_rows, alone=all_rows)
        self.scheduler.add(entry)
        return entry

    def step(self) -> Step | None:
        step = self.scheduler.next_step()
        if step is None:
            return None
        n = sum(c.n for c in step.chunks)
        assert 0 < n <= self.scheduler.n_batch
        self.computed += n
        self.memory.compute(step)
        for c in step.chunks:
            if c.is_last:
                if len(c.entry.tokens) == c.entry.n_max:
                    self.scheduler.finish(c.entry)
                else:
                    c.entry.tokens.append(1)
        self.check()
        return step

    def run(self) -> int:
        """Steps until nothing is left."""
        n = 0
        while self.scheduler.busy:
            assert self.step() is not None, "it hangs"
            n += 1
        return n

    def check(self) -> None:
        """The books agree with the memory, and no cell is lost or counted twice."""
        sequences = [*self.pool.running, *self.pool.cached.values()]
        used = {c for s in sequences for c in (*s.cells, *s.window)}
        assert self.pool.n_free == self.pool.n_cells - len(used)
        for s in sequences:
            assert self.memory.held.get(s.id, []) == [(s.key, t) for t in s.tokens[: s.n_computed]]
        assert len({s.id for s in sequences}) == len(sequences)
        assert set(self.memory.held) <= {s.id for s in sequences}


DOCUMENT = list(range(100, 140))


def test_a_document_being_computed_is_shared() -> None:
    m = Machine(n_cells=200)
    entries = [m.add([*DOCUMENT, 50 + i], 3) for i in range(4)]
    m.run()
    assert m.computed == len(DOCUMENT) + 4 + 4 * 3  # the document once
    assert [t.n_cached for t in entries] == [0, 40, 40, 40]


def test_an_ended_text_is_taken_up_again() -> None:
    m = Machine()
    m.add(DOCUMENT, 5)
    m.run()
    again = m.add([*DOCUMENT, 1, 1, 1, 7], 1)
    m.run()
    assert again.n_cached == 43
    assert len(m.pool.cached) == 2
    longer = m.add([*DOCUMENT, 1, 1, 1, 7, 1, 9], 1)
    m.run()
    assert longer.n_cached == 45
    assert len(m.pool.cached) == 2  # what it begins with was dropped


def test_plans_are_never_mixed_and_share_nothing() -> None:
    m = Machine(n_cells=200)
    entries = [m.add(DOCUMENT, 3, key) for key in ("", "a", "", "a")]
    m.run()  # `compute` asserts that a step has one plan
    assert [t.n_cached for t in entries] == [0, 0, 39, 39]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    m = Machine(n_cells=500)
    m.add(list(range(100, 400)), 1)
    m.step()
    short = m.add([5, 6, 7], 1)
    step = m.step()
    assert step is not None
    assert [(c.entry is short, c.n) for c in step.chunks] == [(True, 3), (False, 13)]


def test_texts_being_written_go_on_while_a_long_prompt_is_computed() -> None:
    m = Machine(n_cells=500)
    writer = m.add([5], 50)
    m.step()
    m.add(list(range(100, 400)), 1)
    for _ in range(10):
        before = len(writer.tokens)
        m.step()
        assert len(writer.tokens) == before + 1


def test_a_request_of_many_texts_leaves_slots_to_others() -> None:
    m = Machine(n_cells=500)
    group = object()
    for i in range(20):
        m.add([i + 2, 3], 4, group=group)
    m.step()
    other = m.add([99, 98], 1)
    steps = 0
    while other.n_cached < 0 or other in m.scheduler.running:
        m.step()
        steps += 1
    assert steps < 10


def test_a_request_of_many_texts_is_admitted_without_looking_at_all_of_them_each_time() -> None:
    looks = 0

    class Counted(Entry):
        def __getattribute__(self, name: str) -> Any:
            nonlocal looks
            looks += name == "arrival"
            return super().__getattribute__(name)

    m, group, n = Machine(), object(), 200
    for i in range(n):
        m.scheduler.add(Counted(group, "", array("i", [i + 2]), 1, Nobody()))
    assert m.scheduler.n_waiting == n
    m.run()
    assert m.scheduler.n_waiting == 0
    assert looks < 10 * n


def test_every_output_of_an_echo_is_computed_in_small_parts() -> None:
    m = Machine()
    m.add(DOCUMENT, 1)
    m.run()
    echo = m.add(DOCUMENT, 0, all_rows=True)
    while m.scheduler.busy:
        step = m.step()
        assert step is not None
        assert all(c.n <= 4 for c in step.chunks)
    assert echo.n_cached == 0


def test_the_longest_unused_goes_first() -> None:
    m = Machine(n_cells=110, n_seqs=20)
    for first in (200, 300):
        m.add(list(range(first, first + 40)), 0)
        m.run()
    touched = m.add([*range(200, 240), 9], 0)
    m.run()
    assert touched.n_cached == 40
    m.add(list(range(400, 440)), 0)
    m.run()
    firsts = {s.tokens[0] for s in m.pool.cached.values()}
    assert firsts == {200, 400}


def test_short_texts_do_not_fill_the_cache_that_long_ones_share() -> None:
    m = Machine(n_cells=8192, n_seqs=200, n_batch=512)
    m.add(list(range(1000, 2000)), 0)
    for i in range(100):
        m.add([i, *range(3000, 3049)], 0)  # 50 tokens
    m.run()
    lengths = [s.n_computed for s in m.pool.cached.values()]
    assert sorted(lengths, reverse=True) == [1000, *[50] * 5]  # 256 cells for short ones
    assert {s.tokens[0] for s in m.pool.cached.values()} == {1000, *range(95, 100)}


def test_many_running_texts_do_not_pay_for_short_ended_ones_but_share_them_first() -> None:
    m = Machine(n_cells=8192, n_seqs=200, n_slots=16, n_batch=512)
    long, short = list(range(1000, 2000)), list(range(3000, 3050))
    m.add(long, 0)
    m.add(short, 0)
    m.run()
    entries = [m.add([*short, i], 8) for i in range(8)]
    m.step()
    assert [t.n_cached for t in entries] == [50] * 8
    assert [s.n_computed for s in m.pool.cached.values()] == [1000]
    m.run()
    assert {s.n_computed for s in m.pool.cached.values()} == {1000, 59}  # the last ones to end had little company


@pytest.mark.parametrize(("n_running", "kept"), [(4, [50]), (5, [])])
def test_short_ended_texts_stay_beside_four_running_ones_but_no_more(n_running: int, kept: list[int]) -> None:
    m = Machine(n_cells=8192, n_seqs=200, n_slots=16, n_batch=512)
    m.add(list(range(3000, 3050)), 0)
    m.run()
    for i in range(n_running):
        m.add([i, 500], 8)
    m.step()
    assert [s.n_computed for s in m.pool.cached.values()] == kept


def test_of_many_short_texts_of_one_token_the_common_beginning_is_computed_once() -> None:
    m = Machine(n_cells=8192, n_seqs=200, n_slots=16, n_batch=512)
    entries = [m.add([*range(3000, 3200), i], 0) for i in range(40)]  # the first ends in the step that computes it
    assert m.run() == 4
    assert m.computed == 200 + 40
    assert [t.n_cached for t in entries] == [0, *[200] * 39]


def test_too_many_texts_for_the_cells_are_pushed_out_and_end_all_the_same() -> None:
    m = Machine(n_cells=100, n_slots=4)
    entries = [m.add([10 * i + 2, 3], 80) for i in range(4)]
    m.run()
    assert m.scheduler.n_preempted > 0
    assert all(len(t.tokens) == t.n_max for t in entries)


def test_when_the_one_that_computes_ends_the_next_takes_over() -> None:
    m = Machine(n_cells=200)
    first, *others = [m.add([*DOCUMENT, 50 + i], 2) for i in range(4)]
    m.step()
    m.scheduler.finish(first)  # cancelled with 16 of the 40 tokens
    m.run()
    assert m.computed == len(DOCUMENT) + 3 + 3 * 2
    assert [t.n_cached for t in others] == [16, 40, 40]


@pytest.mark.parametrize("keep", [True, False])
def test_nothing_is_lost(keep: bool) -> None:
    m = Machine()
    for i in range(6):
        m.add([*DOCUMENT[: 7 * i], i], 5)
    for _ in range(4):
        m.step()
    for entry in m.entries:
        (m.scheduler.finish if keep else m.scheduler.discard)(entry)
    m.check()
    m.pool.clear_cached()
    assert m.pool.n_free == m.pool.n_cells
    assert not m.memory.held
    assert not m.scheduler.busy
    assert m.scheduler.n_waiting == 0


PARTLY = pytest.mark.parametrize("keeps", [Keeps.WINDOW, Keeps.END])


@pytest.fixture
def save_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of these tests are short."""
    monkeypatch.setattr("ropebend.server.engine.kv_pool.FEWEST_TOKENS", 4)
    monkeypatch.setattr("ropebend.server.engine.scheduler.FEWEST_TOKENS", 4)


@PARTLY
def test_a_text_that_goes_on_computes_only_what_is_new(keeps: Keeps) -> None:
    m = Machine(n_cells=400, keeps=keeps, checkpoint_bytes=0)
    tokens, before = DOCUMENT[:], 0
    for turn in range(10):
        tokens += [50 + turn, 51, 52]
        entry = m.add(tokens, 6)
        m.run()
        assert entry.n_cached == (len(tokens) - 3 if turn else 0)
        assert m.computed - before == len(tokens) - entry.n_cached + 6
        tokens, before = list(entry.tokens), m.computed
    assert len(m.pool.cached) == 1


@PARTLY
def test_questions_about_a_document_being_computed_wait_for_its_end(keeps: Keeps) -> None:
    m = Machine(n_cells=300, keeps=keeps, checkpoint_bytes=0)
    entries = [m.add([*DOCUMENT, 50 + i, 60 + i], 3) for i in range(4)]
    m.run()
    assert m.computed == len(DOCUMENT) + 4 * 2 + 4 * 3
    assert [t.n_cached for t in entries] == [0, 40, 40, 40]


@PARTLY
@pytest.mark.usefixtures("save_early")
def test_an_answer_that_is_written_another_way_goes_on_from_before_it(keeps: Keeps) -> None:
    m = Machine(keeps=keeps)
    m.add(DOCUMENT, 12)
    m.run()
    again = m.add([*DOCUMENT, 2, 2, 2, 7], 1)  # it was 1, 1, ...
    m.run()
    assert again.n_cached == len(DOCUMENT) - checkpoints.BEFORE_THE_END
    third = m.add([*DOCUMENT, 2, 2, 2, 7, 1, 9], 1)
    m.run()
    assert third.n_cached == len(DOCUMENT) + 5
    assert m.pool.checkpoints.n_restored == 1


@PARTLY
@pytest.mark.usefixtures("save_early")
def test_where_texts_differed_the_next_one_begins(keeps: Keeps) -> None:
    m = Machine(n_cells=300, n_seqs=20, keeps=keeps)
    entries = []
    for i in range(3):
        entries.append(m.add([*DOCUMENT, *range(10 * i, 10 * i + 9)], 3))
        m.run()
    # of the first one nothing was known, the second one found out
    assert [t.n_cached for t in entries] == [0, 0, 40]


@PARTLY
@pytest.mark.usefixtures("save_early")
def test_no_state_is_taken_from_another_plan(keeps: Keeps) -> None:
    m = Machine(n_cells=300, keeps=keeps)
    entries = []
    for key in ("", "a", "", "a"):
        entries.append(m.add([*DOCUMENT, len(entries), 3, 3, 3, 3], 3, key))
        m.run()  # the memory knows of which plan a state is
    assert [t.n_cached for t in entries] == [0, 0, 0, 0]
    entries = [m.add([*DOCUMENT, 30 + i, 3, 3, 3, 3], 3, key) for i, key in enumerate(("", "a"))]
    m.run()
    assert [t.n_cached for t in entries] == [40, 40]


@pytest.mark.usefixtures("save_early")
def test_a_restored_text_may_fill_all_cells() -> None:
    m = Machine(n_cells=60, keeps=Keeps.WINDOW)
    m.add(DOCUMENT, 12)
    m.run()
    again = m.add([*DOCUMENT, 2], 19)
    m.run()
    assert again.n_cached == 36
    assert len(again.tokens) == 60
    assert m.scheduler.n_preempted == 0


@pytest.mark.usefixtures("save_early", "wide_window")
def test_restored_texts_have_room_for_their_windows() -> None:
    m = Machine(n_cells=70, keeps=Keeps.WINDOW)
    m.add(DOCUMENT, 8)
    m.run()
    # of each only a few tokens are new, but the windows are copies; the memory refuses to hold too many
    entries = [m.add([*DOCUMENT[: n + 1], n], 3) for n in (32, 24, 16)]
    m.run()
    assert [t.n_cached for t in entries] == [32, 24, 16]


@pytest.fixture
def wide_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.WINDOW", 24)
    monkeypatch.setattr("ropebend.server.engine.checkpoints.STEP", 8)


@pytest.mark.usefixtures("save_early")
def test_nothing_is_cached_of_a_model_that_keeps_nothing() -> None:
    m = Machine(keeps=Keeps.NOTHING)
    for _ in range(2):
        entry = m.add(DOCUMENT, 2)
        m.run()
        assert entry.n_cached == 0
    assert not m.pool.cached
    assert m.pool.checkpoints.n_saved == 0


def test_checkpoints_stay_within_their_bytes_and_go_with_their_texts() -> None:
    all_of_them = Checkpoints(100)
    first, second = Shelf(all_of_them), Shelf(all_of_them)
    for n in (10, 20):
        made = all_of_them.add(n, np.zeros(40, np.uint8))
        assert made is not None
        first.add(made)
    second.take_over(first, 15)
    assert (10 in second, 20 in second) == (True, False)
    first.clear()
    assert (len(all_of_them), all_of_them.n_bytes) == (1, 40)  # the second has it still
    old = second.best(100)
    assert old is not None
    assert all_of_them.add(30, np.zeros(101, np.uint8)) is None
    for n in (30, 40):
        assert all_of_them.add(n, np.zeros(40, np.uint8)) is not None
    assert old.state is None
    assert second.best(100) is None
    assert all_of_them.n_bytes == 80
    second.clear()
    assert all_of_them.n_bytes == 80


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12))
def test_common_prefix(a: list[int], b: list[int], limit: int) -> None:
    n = 0
    while n < min(len(a), len(b), limit) and a[n] == b[n]:
        n += 1
    assert common_prefix(array("i", a), array("i", b), limit) == n


job = st.tuples(
    st.builds(  # many common beginnings
        lambda n, tail: [*([2, 3, 4] * 8)[:n], *tail],
        st.sampled_from([0, 12, 18, 24]) | st.integers(0, 24),
        st.lists(st.integers(1, 4), min_size=1, max_size=6),  # 1 is what they all generate
    ),
    st.integers(0, 26),
    st.sampled_from(["", "a"]),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(job, min_size=1, max_size=14),
    st.integers(2, 6),
    st.integers(56, 90),
    st.randoms(use_true_random=False),
    st.sampled_from([Keeps.ALL, Keeps.WINDOW, Keeps.END]),
    st.sampled_from([0, 1500, 2**20]),
)
def test_any_load_is_worked_off(
    jobs: list[tuple[list[int], int, str, bool]], n_slots: int, n_cells: int, random, keeps: Keeps, n_bytes: int
) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ropebend.server.engine.kv_pool.FEWEST_TOKENS", 2)
        patch.setattr("ropebend.server.engine.scheduler.FEWEST_TOKENS", 2)
        patch.setattr("ropebend.server.engine.checkpoints.STEP", 7)
        _work_off(jobs, n_slots, n_cells, random, keeps, n_bytes)


def _work_off(
    jobs: list[tuple[list[int], int, str, bool]], n_slots: int, n_cells: int, random: Any, keeps: Keeps, n_bytes: int
) -> None:
    m = Machine(n_cells, n_slots + 3, n_slots, n_batch=8, n_rows=3, keeps=keeps, checkpoint_bytes=n_bytes)
    left = list(jobs)
    dropped = []
    for _ in range(2000):
        if left and random.random() < 0.3:
            prompt, n_new, key, all_rows = left.pop()
            m.add(prompt, n_new, key, all_rows=all_rows)
        everyone = m.entries
        if everyone and random.random() < 0.05:
            dropped.append(random.choice(everyone))
            random.choice([m.scheduler.finish, m.scheduler.discard])(dropped[-1])
            m.check()
        if m.scheduler.busy:
            assert m.step() is not None, "it hangs"
        elif not left:
            break
    assert not m.scheduler.busy
    m.pool.clear_cached()
    assert m.pool.n_free == n_cells
    assert np.all(m.pool._owners == 0)
    assert m.pool.checkpoints.n_bytes == len(m.pool.checkpoints) == 0
