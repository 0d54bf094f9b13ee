"""The benchmarks of the search, run small: their figures mean nothing here, what they count must be right."""

import json
import re
import subprocess
import sys
from pathlib import Path

from llama_cpp.llama_cpp import llama_supports_gpu_offload
from small_search import NEEDLE

BENCH = Path(__file__).parents[2] / "bench"


def bench(script: str, *args: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), *map(str, args)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run


def test_a_search_at_longropes_budget_counts_and_goes_on(tmp_path: Path) -> None:
    small = ("longrope", "--evaluations", 16, "--screen", 1, "--finalists", 3, "--items", 2, "--test", 2,
             "--population", 6, "--keys", 4, "--workers", 1, "--threads", 1)  # fmt: skip
    first = bench("search.py", *small, cwd=tmp_path).stdout
    assert "16 sets of scales measured in the search itself" in first
    assert "each on 1 JSON objects or more, 3 on 2 or more, the winners on 2 unseen ones" in first
    log = (tmp_path / "bench-longrope" / "evaluations.jsonl").read_text().splitlines()
    tokens = [json.loads(line)["tokens"] for line in log]
    everything = re.findall(r"^all +(\d+) +([\d.]+)$", first, re.MULTILINE)
    assert everything == [(str(len(tokens)), f"{sum(tokens) / 1e6:.2f}")]
    again = bench("search.py", *small, cwd=tmp_path).stdout
    assert "going on with bench-longrope" in again
    assert re.findall(r"^all +(\d+) +([\d.]+)$", again, re.MULTILINE) == everything
    other = bench("search.py", *small, "--seed", 2, cwd=tmp_path, code=2)
    assert "begun with other options" in other.stderr


def test_optimisers_are_compared_at_equal_tokens_and_go_on(tmp_path: Path) -> None:
    args = ("run", "--rivals", "cma;sensitivity", "--seeds", 1, "--budgets", "4,9", "--test", 10, "--keys", 4)
    bench("optimisers.py", *args, cwd=tmp_path)
    results = (tmp_path / "bench-optimisers" / "results.jsonl").read_text().splitlines()
    made = [(r["rival"], r["seed"], r["budget"]) for r in map(json.loads, results)]
    assert made == [("cma", 1, 4), ("cma", 1, 9), ("sensitivity", 1, 4), ("sensitivity", 1, 9)]
    assert bench("optimisers.py", *args, cwd=tmp_path).stdout == ""  # all of it is there
    table = bench("optimisers.py", "table", "--picture", "x.png", cwd=tmp_path).stdout.splitlines()
    assert table[0] == "| | 4 ktok | 9 ktok |"
    assert sorted(line.split(" | ")[0] for line in table[2:]) == ["| cma", "| sensitivity"]
    assert all(line.count(", 1 seeds)") == 2 for line in table[2:])
    assert (tmp_path / "x.png").read_bytes()[1:4] == b"PNG"
    assert (
        "--rivals: expected some of cma;" in bench("optimisers.py", "run", "--rivals", "x", cwd=tmp_path, code=2).stderr
    )
    assert "got 1-x" in bench("optimisers.py", "run", "--seeds", "1-x", cwd=tmp_path, code=2).stderr


def test_layouts_of_workers_measure_the_same(tmp_path: Path) -> None:
    args = ("workers", "--layouts", "2x1,1x1", "--genomes", 2, "--items", 1, "--rounds", 1, "--keys", 4)
    run = bench("search.py", *args, cwd=tmp_path)
    assert "2x1 / 1x1: " in run.stdout
    assert "all 2 items are the same to the bit" in run.stdout
    assert "--layouts" in bench("search.py", "workers", "--layouts", "2", cwd=tmp_path, code=2).stderr


def test_racing_where_all_reach_the_final_is_full_evaluation(tmp_path: Path) -> None:
    args = ("racing", "--genomes", 6, "--items", 4, "--final", 2, "--screens", "1,2", "--finalists", "1,6",
            "--orders", 20, "--keys", 4, "--workers", 1, "--threads", 1)  # fmt: skip
    table = bench("search.py", *args, cwd=tmp_path).stdout
    rows = {line[:18].strip(): line[18:].split() for line in table.splitlines() if ", best " in line}
    assert list(rows) == ["1, best 1 on 2", "1, best 6 on 2", "2, best 1 on 2", "2, best 6 on 2"]
    for rule in ("1, best 6 on 2", "2, best 1 on 2", "2, best 6 on 2"):
        share, same, *_, mean, low, _, high = rows[rule]
        assert (share, same, mean, low, high) == ("1.00", "100%", "+0.0", "[+0.0", "+0.0]")
    assert rows["1, best 1 on 2"][0] == "0.58"
    ranks = {line[:24].strip(): line[24:].split() for line in table[table.index("rank the sets") :].splitlines()}
    assert len(ranks["accuracy"]) == len(ranks["the search's score"]) == 4  # rho and points, of 1 and of 2 items
    assert all(-1 <= float(ranks[name][i]) <= 1 for name in ("probability", "log-probability") for i in (0, 2))
    missing = bench("search.py", "racing", "--from", "missing", cwd=tmp_path, code=1)
    assert "is missing the folder of a search?" in missing.stderr


def test_the_check_for_a_gpu_passes_on_the_cpu(tmp_path: Path) -> None:
    args = ("--size", "tiny", "--evaluations", 2, "--rounds", 1, "--tokens", 8, "--keys", 1, "--threads", 1)
    run = bench("cuda.py", *args, "--gpu-layers", 0, cwd=tmp_path)
    found = re.findall(r"^ok   (\w+)", run.stdout, re.MULTILINE)
    assert found == ["cpu"] * 5 + ["swapped", "alternate"] + ["uniform"] * 3
    assert "FAIL" not in run.stdout
    assert "hooked / unhooked: " in run.stdout
    if not llama_supports_gpu_offload():
        assert "no GPU backend" in bench("cuda.py", cwd=tmp_path, code=1).stderr


def test_every_ubatch_is_measured_beside_the_default(tmp_path: Path) -> None:
    args = (NEEDLE, "--tokens", 128, "--sizes", "32,64", "--rounds", 1, "--threads", 1)
    lines = bench("ubatch.py", *args, cwd=tmp_path).stdout.splitlines()
    names = [line[:28].strip() for line in lines]
    assert names == ["ubatch 32", "ubatch 64", "ubatch 32, flash attention", "ubatch 64, flash attention", "ubatch 256"]
    assert lines[-1].endswith("1.00")
