"""The heat map of lengths by depths, and RULER's suite."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_search import NEEDLE
from typer.testing import CliRunner, Result

from ropebend import Model, RopebendError, UsageError
from ropebend.cli import app
from ropebend.cli.grid import depths_of, picture
from ropebend.evaluate import RetrievalEvaluation

SMALL = ["--samples", "1", "-t", "1"]


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["eval", NEEDLE, *args, *SMALL])


def test_lengths_by_depths_unscaled_and_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.json").write_text("[2, 2, 2, 2, 2, 2]")
    args = ["--lengths", "300,600", "--depths", "3", "--factors", "two.json"]
    loads: list[object] = []
    real = Model.__init__

    def load(self: Model, *args: Any, **kwargs: Any) -> None:
        loads.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(Model, "__init__", load)
    done = run(*args)
    assert done.exit_code == 0, done.output
    assert len(loads) == 1
    for length in (300, 600):
        by_side = {}
        for side, which in (("unscaled", ".unscaled"), ("scaled", ".two")):
            report = json.loads((tmp_path / f"needle-Q8_0{which}.kv-{length}.json").read_text())
            assert report["task"]["length"] == length
            assert report["depths"] == [0, 0.5, 1]
            assert (report["scaling"] is None) == (side == "unscaled")
            by_side[side] = report["accuracy_by_depth"]
        shown = [f"{100 * v:.0f}" for v in by_side["unscaled"]]
        assert all(figure in done.output for figure in shown)
    assert "unscaled" in done.output
    assert "scaled" in done.output
    assert re.search(r"depth\s+300\s+600", done.output)
    assert (tmp_path / "needle-Q8_0.two.kv.lengths.png").read_bytes().startswith(b"\x89PNG")
    again = run(*args)  # from the files
    assert "1 items are in needle-Q8_0.two.kv-600.json already" in again.output


def test_the_suite_has_an_average_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("--task", "ruler:all", "--length", "1800", "--no-scaling")
    assert done.exit_code == 0, done.output
    rows = dict(re.findall(r"^(\w+) +(\d+\.\d)% \[", done.output, re.MULTILINE))
    assert [*rows] == ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"]
    average = re.search(r"^average +(\d+\.\d)%$", done.output, re.MULTILINE)
    assert average is not None
    assert float(average[1]) == pytest.approx(np.mean([float(v) for v in rows.values()]), abs=0.06)
    assert "over 6 of 13 tasks, so it is not RULER's" in done.output
    assert "qa_1: needs a folder with squad.json: --data FOLDER" in done.output


def test_a_length_that_one_task_of_the_suite_cannot_have_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("--task", "ruler:all", "--length", "500")
    assert isinstance(done.exception, RopebendError)
    assert "ruler:vt: the shortest prompt takes" in str(done.exception)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lengths", "300", "--length", "300"], "--lengths takes the place of --length"),
        (["--lengths", "300,x"], "length: expected tokens, at least 8, as 8192 or 8k, got 'x'"),
        (["--lengths", "1k", "--task", "ruler:vt"], "--lengths: ruler:vt has no depths to draw"),
        (["--task", "ruler:all", "--depths", "3"], "ruler:all is the published suite"),
        (["--task", "ruler:all", "-o", "x.json"], "--output has no effect on ruler:all"),
    ],
)
def test_what_does_not_go_together_is_said(args: list[str], message: str) -> None:
    done = run(*args)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_a_number_of_depths() -> None:
    assert depths_of("5") == "0,0.25,0.5,0.75,1"
    assert depths_of("0,1") == "0,1"
    assert depths_of("1") == "1"
    with pytest.raises(UsageError, match="at most 101"):
        depths_of("102")


def test_the_picture_has_both_sides() -> None:
    def result(value: float) -> RetrievalEvaluation:
        return RetrievalEvaluation((0.0, 1.0), np.full((1, 2), value), np.zeros((1, 2)))

    one = picture("t", {"unscaled": {"1k": result(0.0)}})
    two = picture("t", {"unscaled": {"1k": result(0.0)}, "scaled": {"1k": result(1.0)}})
    assert two.startswith(b"\x89PNG")
    assert int.from_bytes(two[16:20], "big") > int.from_bytes(one[16:20], "big")  # its width
