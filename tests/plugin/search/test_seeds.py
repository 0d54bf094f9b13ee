"""Run folders, one or several seeds of a search: what they hold, and that only ours are ever cleaned."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_search import NEEDLE, spec
from typer.testing import CliRunner

from ropebend.cli import app
from ropebend.errors import UsageError
from ropebend.evaluate import Evaluation, Row
from ropebend.search import run_search, seeds
from ropebend.tasks.kv import KVRetrieval


def test_repeated_under_several_seeds_and_resumed(tmp_path: Path) -> None:
    """Each seed is a search of its own, with its own items; the summary goes over all of them."""
    folder = tmp_path / "runs"
    flags = ["--keys", "6", "--depths", "0,1", "--controls", "uniform", "--budget", "16", "--screen", "1", "-t", "1"]
    flags += ["--finals", "3x2", "--test", "6", "--population", "6", "--repeat", "2", "--seed", "4"]
    command = [sys.executable, "-m", "ropebend.cli", "search"]

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *args], capture_output=True, text=True, check=False)

    first = run(NEEDLE, *flags, "-o", str(folder))
    assert first.returncode == 0, first.stderr
    assert "By seed: " in first.stdout
    parts = [folder / "seed-4", folder / "seed-5"]
    assert seeds.folders_in(folder) == parts
    configs = [json.loads((p / "config.json").read_text())["search"] for p in parts]
    assert [c["tasks"][0]["options"]["seed"] for c in configs] == ["search-4", "search-5"]
    html = (folder / "report.html").read_text()
    assert "2 seeds" in html
    assert "seed 5" in html

    factors = [(p / "factors.json").read_bytes() for p in parts]
    (parts[1] / "factors.json").unlink()
    log = parts[1] / "evaluations.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))  # as if killed in the second search
    again = run("--resume", str(folder))
    assert again.returncode == 0, again.stderr
    assert [(p / "factors.json").read_bytes() for p in parts] == factors
    assert again.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]

    refused = run(NEEDLE, *flags, "-o", str(folder))
    assert refused.returncode == 2
    assert "holds searches already" in refused.stderr


def test_force_leaves_nothing_of_the_seeds_before(tmp_path: Path) -> None:
    seeds.start(tmp_path, [spec(seed=s) for s in (1, 2, 3)])
    with pytest.raises(UsageError, match="holds searches already"):
        seeds.start(tmp_path, [spec()])
    assert [f for f, _ in seeds.start(tmp_path, [spec(seed=s) for s in (1, 2)], force=True)] == [
        tmp_path / "seed-1", tmp_path / "seed-2",
    ]  # fmt: skip
    assert seeds.folders_in(tmp_path) == [tmp_path / "seed-1", tmp_path / "seed-2"]
    assert seeds.start(tmp_path, [spec()], force=True)[0][0] == tmp_path
    assert seeds.folders_in(tmp_path) == []
    with pytest.raises(UsageError, match="holds a search already"):
        seeds.start(tmp_path, [spec(seed=s) for s in (1, 2)])


@pytest.mark.parametrize("name", ["config.json", "factors.json", "evaluations.jsonl", "report.html"])
def test_only_folders_of_ours_are_cleaned(tmp_path: Path, name: str) -> None:
    """Hugging Face's model folders hold a config.json, too."""
    (tmp_path / name).write_text('{"model_type": "llama"}')
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "thesis.txt").write_text("years of work")
    (tmp_path / "seed-2").write_text("a file")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for specs in ([spec()], [spec(seed=s) for s in (1, 3)]):
        with pytest.raises(UsageError, match=f"holds {name}, which is not of a search of ours"):
            seeds.start(tmp_path, specs, force=True)
    for command in (["demo"], ["search", NEEDLE, "--force"], ["search", NEEDLE, "--force", "--repeat", "2"]):
        result = CliRunner().invoke(app, [*command, "-o", str(tmp_path)])
        assert isinstance(result.exception, UsageError)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_seeds_keep_clear_of_what_is_not_theirs(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "thesis.txt").write_text("years of work")
    seeds.start(tmp_path, [spec(seed=s) for s in (1, 2)])  # beside it
    seeds.start(tmp_path, [spec(seed=3)], force=True)
    assert [p.name for p in (tmp_path / "seed-1").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "seed-2").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "seed-2").write_text("a file")
    with pytest.raises(UsageError, match="seed-2: is a file, expected a folder"):
        seeds.start(other, [spec(seed=s) for s in (1, 2)], force=True)
    assert [p.name for p in other.iterdir()] == ["seed-2"]
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        seeds.start(other / "seed-2", [spec()], force=True)


def test_any_number_of_seeds_has_its_colours(tmp_path: Path) -> None:
    outcome = run_search(spec(budget="8", controls=()))
    many = [replace(outcome, spec=outcome.spec.model_copy(update={"seed": s})) for s in range(9)]
    seeds.write_summary(tmp_path, many)
    assert "9 seeds" in (tmp_path / "report.html").read_text()


def test_seeds_are_pooled_by_item() -> None:
    """Of three items each: 1 of 3 and 2 of 3 make 3 of 6."""

    def of(values: Sequence[float]) -> Evaluation:
        rows = [Row((v,), (-1.0,)) for v in values]
        return Evaluation.of(KVRetrieval(keys=4, depths=[0.5]), rows)

    class Stub:
        def __init__(self, *values: float):
            self.tests = {"unscaled": [of([0.0, 0.0, 0.0])], "bezier ga": [of(values)]}

    both = seeds.pooled([Stub(1, 0, 0), Stub(1, 1, 0)])  # type: ignore[list-item]
    assert both["bezier ga"].value[:, 0].tolist() == [1, 0, 0, 1, 1, 0]
    assert both["bezier ga"].against(both["unscaled"]).mean == 0.5
