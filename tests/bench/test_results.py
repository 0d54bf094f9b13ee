"""The tables of docs/results are what the logs beside them say."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QWEN = "docs/results/qwen2.5-coder-0.5b"


def run(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "bench" / "results.py", *args], capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script and the results, to be changed."""
    for folder in ("bench", "docs/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_the_committed_tables_are_the_logs() -> None:
    result = run(ROOT, "--check")
    assert result.returncode == 0, result.stderr


def test_a_table_that_was_written_by_hand_is_found_and_put_right(copy: Path) -> None:
    page = copy / "docs/results/README.md"
    true = page.read_text()
    page.write_text(true.replace("| 90.0% [85–93] |", "| 99.0% [97–99] |"))
    assert page.read_text() != true
    result = run(copy, "--check")
    assert result.returncode == 1
    assert "README.md: is not what the logs say: run `make results`" in result.stderr
    assert run(copy).returncode == 0
    assert page.read_text() == true


def test_a_log_that_was_changed_contradicts_the_factors(copy: Path) -> None:
    log = copy / QWEN / "evaluations.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(log.read_bytes()).splitlines()]
    judged = [line for line in lines if line["full"] and line["scales"] is None]
    judged[-1]["value"] = [1.0 - v for v in judged[-1]["value"]]
    log.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    result = run(copy)
    assert result.returncode == 1
    assert "unscaled: the log says" in result.stderr
    assert "factors.json 0.74" in result.stderr
