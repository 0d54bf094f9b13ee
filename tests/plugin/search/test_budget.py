"""What a search costs and when it ends: budgets in evaluations, tokens and time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from small_search import spec

from ropebend.choices import OpenName
from ropebend.cli.search_view import foreseen_in_words, plan_in_words
from ropebend.evaluate import Row
from ropebend.search import Listener, SearchSpec, run_search
from ropebend.search import run as search_run
from ropebend.search.cost import Cost, DoesNotFit, cost_of, fitted
from ropebend.search.outcome import Progress
from ropebend.search.worker import Computed, Done, Job, OnTokens

FOUR = ("uniform", "line", "free", "random")


def test_budgets_in_tokens_and_time_end_a_search() -> None:
    assert run_search(spec(budget="3ktok")).main.n_evaluated < 60
    seen: list[str] = []
    costs: list[Cost] = []

    class Stages(Listener):
        def started(self, spec: SearchSpec, cost: Cost) -> None:
            costs.append(cost)

        def stage(self, stage: str) -> None:
            seen.append(stage)

    outcome = run_search(spec(budget="0.000001s"), listener=Stages())
    assert len(outcome.main.history) == 1  # there is always something to choose from
    assert seen == ["uniform", "bezier ga", "finals: uniform", "finals: bezier ga", "test"]
    assert (costs[0].finals, costs[0].test) == (2 * 3 * 1 + 1, 3 * 2)  # of two searches and unscaled; of three sets


def test_a_budget_in_time_holds_all_of_a_run() -> None:
    """Whatever an item costs: judging, finals and at least a small search fit, or the run is refused with a budget."""
    standard = spec(budget="20m", controls=FOUR, screen=6, finals=((24, 24),), test=100, open=get_args(OpenName))
    before = 10**9
    for seconds in (0.01, 0.1, 0.3, 1.0, 3.0, 6.0, 7.5):
        sized = fitted(standard, seconds, spent=10.0)
        assert sized.open is None
        cost = cost_of(sized, 1000, seconds, 300, 10.0)
        late = 10 + (cost.finals + cost.test) * seconds
        assert late + 20 * sized.screen * sized.n_shares * seconds <= 1200
        assert sized.test >= 10
        assert sized.test + sized.n_search <= before  # dearer items, fewer of them
        before = sized.test + sized.n_search
    assert fitted(standard, 0.01, spent=10.0).model_copy(update={"open": standard.open}) == standard
    with pytest.raises(DoesNotFit, match="too short: an item takes 100 seconds here, so that 20m hold 11") as caught:
        fitted(standard, 100.0, spent=10.0)
    again = standard.model_copy(update={"budget": caught.value.budget})
    assert fitted(again, 100.0, spent=10.0).test == 11
    fixed = standard.model_copy(update={"open": ("controls",)})  # what was asked for by name is not changed
    with pytest.raises(DoesNotFit):
        fitted(fixed, 3.0, spent=10.0)


class Clockwork:
    """An executor that takes the time it is told to, on a clock of its own: the hands move while it measures."""

    n_workers = 1
    on_tokens: OnTokens | None = None

    def __init__(self, hands: list[float], takes: Callable[[int], float], first: int = 0):
        self.hands, self.takes, self.n = hands, takes, first
        self.judging = 1.0  # times as long where answers are decoded to their end
        self.texts: tuple[str, ...] = ()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done]]:
        for i, job in enumerate(jobs):
            seconds = self.takes(self.n) * (self.judging if job.full else 1.0)
            self.n += 1
            for k in range(8):  # an eighth is exact
                if self.on_tokens is not None:
                    self.on_tokens(Computed(10 * (k > 0), 10 * max(0, k - 1), 70, 70))
                self.hands[0] += seconds / 8
            scales = job.scaling.layer_scale if job.scaling is not None else (1.0,) * 6
            logprob = -sum((s - 1.5) ** 2 for s in scales)
            row = Row((float(logprob > -1),) * 2, (logprob,) * 2, texts=self.texts if job.full else ())
            yield i, Done(row, 100, seconds, 300)

    def close(self) -> None:
        pass


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clockwork]:
    hands = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: hands[0])

    def wind(takes: Callable[[int], float], first: int = 0) -> Clockwork:
        made = Clockwork(hands, takes, first)
        monkeypatch.setattr(search_run, "open_executor", lambda *_: made)
        return made

    return wind


OPEN = get_args(OpenName)
TWENTY = spec(budget="20m", controls=FOUR, screen=6, finals=((24, 24),), test=100, open=OPEN)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("slower", [1.0, 1.4])
def test_a_search_ends_within_its_time(clockwork: Callable[..., Clockwork], seconds: float, slower: float) -> None:
    """Also where measuring turns out slower than the first items were; and it uses what there is."""
    clock = clockwork(lambda n: seconds * (slower if n > 20 else 1.0))
    outcome = run_search(TWENTY)
    assert outcome.seconds == clock.hands[0] - 1000
    assert 840 < outcome.seconds <= 1200 + 12 * seconds * slower
    assert outcome.tests["unscaled"][0].n_items >= 10
    assert outcome.seen["unscaled"].n_items >= 2


@pytest.mark.parametrize("judging", [0.5, 3.0, 8.0])
def test_judging_has_the_time_that_it_takes(clockwork: Callable[..., Clockwork], judging: float) -> None:
    """Answers that are decoded to their end take longer than the search's own measurements."""
    clock = clockwork(lambda n: 1.0)
    clock.judging = judging
    told: list[tuple[float, float]] = []

    class Told(Listener):
        def progress(self, progress: Progress) -> None:
            told.append((clock.hands[0], progress.seconds))

    short = TWENTY.model_copy(update={"optimiser": "cma", "genome": "knots", "budget": "10m"})
    outcome = run_search(short, listener=Told())
    assert 400 < outcome.seconds <= 600 + 3 * judging  # the item in work
    assert outcome.tests["unscaled"][0].n_items >= 10
    for at, left in told[:-20:10]:
        assert left > 0, at


def test_long_items_are_foreseen_while_the_first_is_measured(clockwork: Callable[..., Clockwork]) -> None:
    clock = clockwork(lambda n: 100.0)
    heard: list[tuple[float, Cost]] = []

    class Told(Listener):
        def foreseen(self, spec: SearchSpec, cost: Cost) -> None:
            heard.append((clock.hands[0] - 1000, cost))

    run_search(spec(), listener=Told())
    ((at, cost),) = heard
    assert at <= 25
    assert cost.seconds == pytest.approx(87.5)  # the eighth that comes after the prompt is not foreseen
    words = foreseen_in_words(spec(), cost)
    assert words.startswith(
        "prompts of up to 70 tokens; 1 tokens/s, so that a set of scales on an item takes about 88 s; "
    )
    assert "in all" in words
    assert "20m hold about 14 of them" in foreseen_in_words(spec(budget="20m"), cost)
    clock = clockwork(lambda n: 1.0)
    run_search(spec(), listener=Told())
    assert len(heard) == 1  # short ones need no foresight


def test_a_model_that_recites_is_told_so(clockwork: Callable[..., Clockwork]) -> None:
    clock = clockwork(lambda n: 1.0)
    clock.texts = ("the very same words",) * 2
    notes: list[str] = []

    class Told(Listener):
        def note(self, text: str) -> None:
            notes.append(text)

    run_search(spec(optimiser="cma"), listener=Told())
    assert any("recites" in n and "take an easier task or --keys 3" in n for n in notes), notes
    notes.clear()
    clock.texts = ("one of the answers", "another of the answers")
    run_search(spec(optimiser="cma"), listener=Told())
    assert not any("recites" in n for n in notes)


@pytest.mark.parametrize("optimiser", ["ga", "cma"])
def test_a_budget_in_time_counts_over_all_resumes(
    clockwork: Callable[..., Clockwork], tmp_path: Path, optimiser: str
) -> None:
    """Killed after any item: the whole takes no longer, and ends in the same scales."""
    settled: list[SearchSpec] = []
    clockwork(lambda n: 1.0)
    twenty = TWENTY.model_copy(update={"optimiser": optimiser})
    whole = run_search(twenty, tmp_path / "log", settle=settled.append)
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    for n in (3, len(lines) // 3, len(lines) - 5):
        (tmp_path / "cut").write_text("".join(lines[:n]))
        clock = clockwork(lambda n: 1.0, first=n)
        began = clock.hands[0]
        again = run_search(settled[0], tmp_path / "cut")
        assert clock.hands[0] - began <= 1215 - n
        assert again.seconds <= 1215
        assert again.layers.layer_scale == whole.layers.layer_scale
        assert again.n_tokens == whole.n_tokens


def test_the_remaining_time_is_true_from_the_start(clockwork: Callable[..., Clockwork]) -> None:
    """Also with a budget in evaluations, where nothing holds it: within a fifth, at every tenth item."""
    clock = clockwork(lambda n: 2.0)
    told: list[tuple[float, float]] = []

    class Told(Listener):
        def progress(self, progress: Progress) -> None:
            told.append((clock.hands[0], progress.seconds))

    run_search(spec(budget="200", screen=4, finals=((8, 12),), test=30, population=16), listener=Told())
    end = clock.hands[0]
    for at, left in told[: len(told) // 2 : 10]:
        assert left == pytest.approx(end - at, rel=0.2), (at, end)


def test_the_plan_is_said_in_words() -> None:
    cost = cost_of(spec(budget="60s"), 1000, 0.5, 300, 2.0)
    text = "\n".join(plan_in_words(spec(budget="60s"), cost))
    assert "2,000 tokens/s, 0.5 s for a set of scales on an item" in text
    assert "at most 58 seconds, of which 6 seconds for finals and judgement" in text
    assert "chat template" not in text
    assert (
        "prompts of up to 300 tokens, in the model's chat template; "
        in plan_in_words(spec(), replace(cost, chat=True))[0]
    )
    text = "\n".join(plan_in_words(spec(budget="50ktok"), cost_of(spec(budget="50ktok"), 1000, 0.5, 300, 2.0)))
    assert "at most 32 seconds, of which 6 seconds" in text
    assert "0.063 M prompt tokens" in text
