"""Searches on a real Ray cluster of two nodes whose workers, and whole nodes, are killed on the way."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from small_search import NEEDLE, spec

from ropebend import RopebendError
from ropebend.cli.search_flags import with_place
from ropebend.errors import UsageError
from ropebend.evaluate import Row
from ropebend.runtime import Runtime
from ropebend.search import Listener, SearchSpec, TaskSpec, ray_executor, run_search
from ropebend.search import folder as run_folder
from ropebend.search.outcome import Progress
from ropebend.search.worker import Bench, Executor, Job
from ropebend.search.workers import open_executor
from ropebend.tasks.kv import KVRetrieval

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def rows(executor: Executor, jobs: list[Job]) -> dict[int, Row]:
    return {number: done.row for number, done in executor.run(jobs)}


class Watch(Listener):
    """Keeps the notes, and does something once, when so many results are there and so many workers were ready."""

    def __init__(self, after: int = 0, n_workers: int = 0, do: Callable[["Watch"], None] = lambda _: None):
        self.notes: list[str] = []
        self.after, self.n_workers, self.do = after, n_workers, do
        self.n_results = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, progress: Progress) -> None:
        self.n_results += 1
        if self.n_results >= self.after and len(set(self.processes)) >= self.n_workers:
            do, self.do = self.do, lambda _: None
            do(self)

    def said(self, words: str) -> list[str]:
        return [note for note in self.notes if words in note]

    @property
    def processes(self) -> list[int]:
        """Of the workers, in the order in which they got ready."""
        return [int(m[1]) for note in self.notes if (m := re.match(r"worker ready on .* \(process (\d+)\)$", note))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    impatient = {"core_worker_internal_heartbeat_ms": 100, "timeout_ms_task_wait_for_death_info": 100}
    with (
        pytest.MonkeyPatch.context() as patch,
        # names of sockets end at 107 characters
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", short)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**NODE, "include_dashboard": False, "_system_config": impatient},
        )
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def on_ray(cluster: Cluster) -> Callable[..., SearchSpec]:
    return lambda **changes: spec(executor="ray", ray_address=cluster.address, **changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search by one worker in this process."""
    return search_in(tmp_path_factory.mktemp("local"), spec(budget="30"))


def search_in(folder: Path, what: SearchSpec, listener: Listener | None = None) -> Path:
    run_folder.run_in(folder, run_folder.start(folder, what), listener)
    return folder


def same(a: Path, b: Path) -> bool:
    """Factors to the byte, and the same measurements, each once; when and in which order they came is chance."""
    logs = (
        sorted(re.sub(r', "seconds": .*', "", line) for line in (p / "evaluations.jsonl").read_text().splitlines())
        for p in (a, b)
    )
    return (a / "factors.json").read_bytes() == (b / "factors.json").read_bytes() and next(logs) == next(logs)


def test_killed_workers_lose_nothing(
    on_ray: Callable[..., SearchSpec], undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both workers are killed at once, whatever they are doing, and then the first one that comes back."""

    def kill_both(watch: Watch) -> None:
        for process in watch.processes:
            os.kill(process, signal.SIGKILL)
        watch.after, watch.n_workers, watch.do = 12, 3, kill_third

    def kill_third(watch: Watch) -> None:
        os.kill(watch.processes[2], signal.SIGKILL)
        watch.after = 0

    watch = Watch(8, 2, kill_both)
    assert same(search_in(tmp_path, on_ray(budget="30"), watch), undisturbed)
    assert watch.notes[0] == "Ray: 2 workers, each with 1 CPU"
    assert watch.after == 0
    assert capfd.readouterr() == ("", "")  # Ray itself stays silent


def test_a_restarted_worker_that_finds_another_model_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    model = Path(shutil.copy(NEEDLE, tmp_path / "m.gguf"))
    bench = Bench(str(model), ((KVRetrieval(keys=4), 4),), spec().runtime)
    jobs = [Job(None, 0, i, True) for i in range(4)]
    watch = Watch()
    local, on_ray = (open_executor(bench, name, None, cluster.address, watch.note) for name in ("local", "ray"))
    expected = rows(local, jobs)
    while len(watch.processes) < 2:
        assert rows(on_ray, jobs) == expected
    (tmp_path / "new").write_bytes(model.read_bytes() + b"\0")
    os.replace(tmp_path / "new", model)  # who has it open keeps the old one
    os.kill(watch.processes[0], signal.SIGKILL)
    while not (notes := watch.said("going on without this worker")):
        assert rows(on_ray, jobs) == expected
    assert rows(on_ray, jobs) == expected
    assert re.search(rf"Ray node \S+: {model}: expected the file that is here \([\d,]+ bytes\), there is", notes[0])
    on_ray.close()
    local.close()


def test_a_node_without_the_model_is_named(
    on_ray: Callable[..., SearchSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copy(NEEDLE, tmp_path / "m.gguf"))
    original = ray_executor.model_sample

    def sample_and_remove(path: str) -> Any:
        try:
            return original(path)
        finally:
            model.unlink()

    monkeypatch.setattr(ray_executor, "model_sample", sample_and_remove)
    with pytest.raises(RopebendError, match=r"^Ray node \S+: .*/m\.gguf: No such file or directory; every node needs"):
        run_search(on_ray(model=str(model)))


BAD_TASK = """
import os, signal
from pathlib import Path
from ropebend.errors import RopebendError
from ropebend.tasks.kv import KVRetrieval

class Bad(KVRetrieval):
    def item(self, i):
        if self.how == "raise":
            raise RopebendError("this task does not work")
        if not Path(self.how).exists():
            if self.how != "always":
                Path(self.how).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().item(i)

def task(how):
    out = Bad(keys=4, depths=[1.0])
    out.how = how
    return out
"""


def test_a_job_that_dies_with_its_worker_is_done_by_the_next(on_ray: Callable[..., SearchSpec], tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD_TASK)
    tasks = (TaskSpec(name=str(tmp_path / "bad.py"), options={"how": str(tmp_path / "crashed")}),)
    watch = Watch()
    search_in(tmp_path / "ray", on_ray(tasks=tasks), watch)
    assert len(watch.said("died; what it did is handed out again")) == 1
    assert same(tmp_path / "ray", search_in(tmp_path / "local", spec(tasks=tasks)))


def test_a_job_that_kills_every_worker_ends_the_search(on_ray: Callable[..., SearchSpec], tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD_TASK)
    tasks = (TaskSpec(name=str(tmp_path / "bad.py"), options={"how": "always"}),)
    watch = Watch()
    with pytest.raises(RopebendError, match=r"^item \d+ of task 1 ended 3 workers, the last one on .*: a crash"):
        run_search(on_ray(tasks=tasks), listener=watch)
    assert len(watch.said("died")) == 2


def test_errors_of_a_worker_and_too_small_clusters_are_said_plainly(
    on_ray: Callable[..., SearchSpec], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD_TASK)
    tasks = (TaskSpec(name=str(tmp_path / "bad.py"), options={"how": "raise"}),)
    with pytest.raises(RopebendError, match=r"^this task does not work$"):
        run_search(on_ray(tasks=tasks))
    with pytest.raises(RopebendError, match=r"has room for 2 workers with 1 CPU, expected 3: ask for fewer"):
        run_search(on_ray(workers=3))
    with pytest.raises(RopebendError, match=r"has room for 0 workers with 1 CPU and a GPU, expected at least 1"):
        run_search(on_ray(runtime=Runtime(n_threads=1, n_gpu_layers=-1)))
    with pytest.raises(RopebendError, match=r"^Ray: Invalid address format"):
        run_search(on_ray().model_copy(update={"ray_address": "nonsense"}))


def test_a_lost_node_loses_nothing_and_the_last_one_ends_the_search(
    cluster: Cluster, on_ray: Callable[..., SearchSpec], undisturbed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def remove_node(watch: Watch) -> None:
        (node,) = cluster.worker_nodes
        cluster.remove_node(node, allow_graceful=watch.n_workers == 1)  # or Ray takes 15 seconds to believe it is gone

    watch = Watch(8, 2, remove_node)
    assert same(search_in(tmp_path / "a", on_ray(budget="30"), watch), undisturbed)
    monkeypatch.setattr(ray_executor, "PATIENCE", 0.1)
    cluster.add_node(**NODE, num_gpus=1)  # the only one with a GPU
    watch = Watch(8, 1, remove_node)
    with pytest.raises(RopebendError, match="no node of the Ray cluster is left that has 1 CPU and a GPU for a worker"):
        search_in(tmp_path / "b", on_ray(runtime=Runtime(n_threads=1, n_gpu_layers=-1)), watch)
    assert watch.notes[0] == "Ray: 1 worker, each with 1 CPU and a GPU"
    assert (tmp_path / "b" / "evaluations.jsonl").read_text().count("\n") >= 8


def test_ctrl_c_saves_and_leaves_no_process(tmp_path: Path) -> None:
    """With a cluster of its own, and Ctrl-C as a terminal sends it: to all processes."""
    args = ["search", NEEDLE, "--keys", 6, "--depths", "0,1", "--controls", "none", "--screen", 1, "--executor", "ray"]
    command = [sys.executable, "-m", "ropebend.cli", *map(str, args), "-o", str(tmp_path), "--budget", "100000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"},
    ) as run:  # fmt: skip
        assert run.stderr is not None
        assert next(line for line in run.stderr if "generation 2" in line)
        os.killpg(run.pid, signal.SIGINT)
        out, err = run.communicate()
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert "go on:" in out
    assert (tmp_path / "factors.json").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


# ---- without a cluster


def nodes(*cpus_and_gpus: tuple[int, int]) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in (("CPU", c), ("GPU", g)) if v} for c, g in cpus_and_gpus]


@pytest.mark.parametrize(
    ("there", "n_workers", "threads", "gpu", "expected"),
    [
        ([(32, 0), (32, 0)], None, 0, False, (2, 32)),  # one a node
        ([(32, 0), (8, 0), (0, 0)], None, 0, False, (2, 16)),  # the large node takes two
        ([(32, 0), (32, 0)], 8, 0, False, (8, 8)),  # cores are shared out
        ([(32, 0), (32, 0)], None, 12, False, (4, 12)),  # as many as fit
        ([(32, 0), (32, 0)], 3, 12, False, (3, 12)),
        ([(32, 4), (64, 0), (8, 2)], None, 0, True, (6, 4)),  # one a GPU
        ([(2, 8)], None, 0, True, (2, 1)),  # fewer cores than GPUs
    ],
)
def test_cores_and_gpus_are_shared_out(
    there: list[tuple[int, int]], n_workers: int | None, threads: int, gpu: bool, expected: tuple[int, int]
) -> None:
    assert ray_executor._share(nodes(*there), n_workers, threads, gpu=gpu) == expected


def test_a_node_checks_each_file_of_a_model_and_the_versions(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(os.urandom(10 << 20))
    bench = Bench(str(parts[0]), (), spec().runtime)
    sample, versions = ray_executor.model_sample(parts[0]), ray_executor.versions()
    assert list(sample) == [str(p) for p in parts]
    ray_executor.RayWorker(bench, sample, versions).hello()
    with pytest.raises(RopebendError, match="expected the versions that are here"):
        ray_executor.RayWorker(bench, sample, {**versions, "numpy": "1"}).hello()
    with open(parts[1], "r+b") as f:  # half a download: all there in size
        f.seek(7 << 20)
        f.write(bytes(3 << 20))
    with pytest.raises(RopebendError, match=r"m-00002-of-00002\.gguf: expected the file that is here"):
        ray_executor.RayWorker(bench, sample, versions).hello()


def test_a_resumed_search_may_go_on_somewhere_else() -> None:
    begun = spec(executor="ray", ray_address="a:1", workers=8)

    def place(*given: Any) -> tuple[str, int | None, str | None]:
        what = with_place(begun, *given)
        return what.executor, what.workers, what.ray_address

    assert place(None, None, None) == ("ray", 8, "a:1")
    assert place(None, 2, "b:1") == ("ray", 2, "b:1")
    assert place("local", None, None) == ("local", None, None)
    assert place("ray", 3, None) == ("ray", 3, None)


def test_without_ray_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "ropebend\[ray\]"'):
        open_executor(Bench(NEEDLE, (), spec().runtime), "ray", None, None, print)
