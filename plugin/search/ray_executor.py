"""Evaluations on a Ray cluster.  Ray places one actor per worker and restarts it; here jobs are handed out, and again
where a worker died with one."""

from __future__ import annotations

import logging
import os
import platform
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray._private.worker
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from ropebend.errors import RopebendError
from ropebend.search.digest import model_sample, versions
from ropebend.search.worker import Bench, Done, Job, OnTokens, Worker

DIED = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError, ObjectLostError)
MAX_DEATHS = 3  # workers that one job may take with it before it is called a crash
PATIENCE = 10.0  # seconds without any result before the cluster is asked whether there can be one


class RayWorker:
    """The actor.  It opens the model with its first job, so that a crash in loading is a crash of that job."""

    def __init__(self, bench: Bench, sample: dict[str, tuple[int, str]], needed: dict[str, str]):
        self._bench, self._sample, self._needed = bench, sample, needed
        self._checked = False
        self._worker: Worker | None = None

    def hello(self) -> str:
        """Where this is.  Raises RopebendError at the first time if this node would not measure what the others do."""
        node = platform.node()
        here = f"{node} (process {os.getpid()})"
        if self._checked:
            return here
        try:
            found = model_sample(self._bench.model)
        except RopebendError as e:
            raise RopebendError(f"Ray node {node}: {e}; every node needs the model at this path") from None
        for path, (size, digest) in self._sample.items():
            if found[path] != (size, digest):
                raise RopebendError(
                    f"Ray node {node}: {path}: expected the file that is here ({size:,} bytes), there is another "
                    f"({found[path][0]:,} bytes)"
                )
        if (there := versions()) != self._needed:
            raise RopebendError(f"Ray node {node}: expected the versions that are here, {self._needed}, found {there}")
        self._checked = True
        return here

    def run(self, job: Job) -> Done:
        if self._worker is None:
            self.hello()
            self._worker = Worker(self._bench)
        return self._worker.run(job)


@dataclass(eq=False)
class _Actor:
    """An actor and where it was when it last said so; "" before the first time."""

    handle: Any
    where: str = ""


class RayExecutor:
    """Workers on a Ray cluster, the one at `address` or what `ray.init` finds; where there is none it starts one here.

    n_workers  None: as many as there is room for
    note       is told in words what happens to the workers

    Each has a GPU to itself (n_gpu_layers not 0) and n_threads cores; 0 shares out the cores among the workers: one a
    GPU or one a node where their number is open.  Raises RopebendError if the cluster is out of reach or too small.
    """

    on_tokens: OnTokens | None = None

    def __init__(self, bench: Bench, n_workers: int | None, address: str | None, note: Callable[[str], None]):
        self._note = note
        self._actors: list[_Actor] = []
        self._idle: deque[_Actor] = deque()
        self._calls: dict[Any, tuple[_Actor, int | None]] = {}  # what runs: the number of a job, or None for a hello
        self._told_to_wait = False
        self._connected = not ray.is_initialized()
        if self._connected:
            _connect(address)
        try:
            self._gpu = bench.runtime.n_gpu_layers != 0
            self.n_workers, self._threads = _share(_nodes(), n_workers, bench.runtime.n_threads, gpu=self._gpu)
            bench = replace(
                bench, model=os.path.abspath(bench.model), runtime=replace(bench.runtime, n_threads=self._threads)
            )
            note(f"Ray: {_counted(self.n_workers, 'worker')}, each with {_resources(self._threads, gpu=self._gpu)}")
            actor_class = ray.remote(RayWorker).options(
                num_cpus=self._threads, num_gpus=int(self._gpu), max_restarts=-1, scheduling_strategy="SPREAD"
            )
            sample = model_sample(bench.model)
            for _ in range(self.n_workers):
                self._actors.append(_Actor(actor_class.remote(bench, sample, versions())))
                self._greet(self._actors[-1])
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done]]:
        """As they are done; a job whose worker died is handed out again.

        Raises RopebendError if one job killed 3 workers, if none is left and none can come, or what a worker raises.
        """
        waiting = deque(range(len(jobs)))
        deaths: Counter[int] = Counter()
        n_left = len(jobs)
        self._greet_idle()
        try:
            while n_left:
                ready, _ = ray.wait([*self._calls], timeout=PATIENCE)
                if not ready:
                    self._wait_on()
                    continue
                actor, call = self._calls.pop(ready[0])
                if call is None:
                    if not self._greeted(actor, ready[0]):
                        continue
                    if waiting:
                        number = waiting.popleft()
                        self._calls[actor.handle.run.remote(jobs[number])] = actor, number
                    else:
                        self._idle.append(actor)
                    continue
                try:
                    done: Done = _get(ready[0])
                except DIED as e:
                    deaths[call] += 1
                    self._died(actor, jobs[call], deaths[call], e)
                    waiting.appendleft(call)
                    self._greet(actor)
                    self._greet_idle()  # one of them may take the job
                else:
                    self._greet(actor)
                    n_left -= 1
                    yield call, done
        finally:
            for ref, (actor, call) in [*self._calls.items()]:
                if call is not None:  # nobody waits for it any more; its actor is free once it has said hello after it
                    del self._calls[ref]
                    self._greet(actor)

    def close(self) -> None:
        """End the workers; a cluster that was there before goes on."""
        self._calls.clear()
        self._idle.clear()
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()
        if self._connected:
            ray.shutdown()
            ray._private.worker._worker_logs_enabled = True

    def _greet(self, actor: _Actor) -> None:
        """Ask for a hello, which comes once the actor runs (again).

        It is asked before each job: Ray keeps a job for an actor that waits for a new place, and that may never come.
        """
        self._calls[actor.handle.hello.options(max_task_retries=-1).remote()] = actor, None

    def _greet_idle(self) -> None:
        while self._idle:
            self._greet(self._idle.popleft())

    def _greeted(self, actor: _Actor, ref: Any) -> bool:
        """Take a hello; False if the actor cannot be used."""
        try:
            where: str = _get(ref)
        except (RopebendError, *DIED) as e:
            reason = e if isinstance(e, RopebendError) else RopebendError(f"a Ray worker cannot start: {e}")
            if not actor.where or len(self._actors) == 1:
                raise reason from None
            self._note(f"{reason}; going on without this worker")  # it was restarted on a node that cannot do it
            self._actors.remove(actor)
            ray.kill(actor.handle)
            return False
        if where != actor.where:
            self._note(f"worker ready on {where}")
        actor.where = where
        return True

    def _died(self, actor: _Actor, job: Job, times: int, error: Exception) -> None:
        reason = ", out of memory" if isinstance(error, OutOfMemoryError) else ""
        if times == MAX_DEATHS:
            raise RopebendError(
                f"item {job.item} of task {job.task + 1} ended {times} workers, the last one on "
                f"{actor.where}{reason}: a crash, or too little memory; Ray's logs on that node may tell"
            ) from None
        self._note(f"the worker on {actor.where} died{reason}; what it did is handed out again")

    def _wait_on(self) -> None:
        """Nothing came for a while: raise RopebendError if nothing can."""
        if any(call is not None for _, call in self._calls.values()):
            return
        if not _room(_nodes(), self._threads, gpu=self._gpu):
            raise RopebendError(
                f"no node of the Ray cluster is left that has {_resources(self._threads, gpu=self._gpu)} for a worker"
            )
        if not self._told_to_wait:
            self._note(
                "waiting for a worker to start: other work may hold the cluster's resources (`ray status` tells)"
            )
            self._told_to_wait = True


def _connect(address: str | None) -> None:
    if (address or os.environ.get("RAY_ADDRESS", "local")) != "local":
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # or a wrong address takes a quarter of an hour
    # the view is the search's: deaths are told as notes, and the workers' own output is in Ray's logs
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        raise RopebendError(f"Ray: {e}") from None


def _get(ref: Any) -> Any:
    """What a call returned.  A RopebendError of the worker's is raised as it was there."""
    try:
        return ray.get(ref)
    except RayTaskError as e:
        if isinstance(e.cause, RopebendError):
            raise e.cause from None
        raise


def _nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def _room(nodes: Sequence[dict[str, float]], threads: int, *, gpu: bool) -> int:
    """How many workers of so many threads the nodes can hold."""
    by_cores = (int(n.get("CPU", 0)) // threads for n in nodes)
    return sum(min(k, int(n.get("GPU", 0))) if gpu else k for k, n in zip(by_cores, nodes, strict=True))


def _share(nodes: Sequence[dict[str, float]], n_workers: int | None, threads: int, *, gpu: bool) -> tuple[int, int]:
    """Number of workers and threads of each, where None and 0 leave them open: see `RayExecutor`."""
    if not threads:
        wanted = n_workers or sum(int(n.get("GPU", 0)) if gpu else n.get("CPU", 0) >= 1 for n in nodes)
        most = int(max((n.get("CPU", 0) for n in nodes), default=1))
        threads = next((t for t in range(most, 0, -1) if _room(nodes, t, gpu=gpu) >= wanted), 1)
    room = _room(nodes, threads, gpu=gpu)
    if room < (n_workers or 1):
        raise RopebendError(
            f"the Ray cluster has room for {_counted(room, 'worker')} with {_resources(threads, gpu=gpu)}, expected "
            f"{n_workers or 'at least 1'}: ask for fewer workers or threads, or start more nodes"
        )
    return n_workers or room, threads


def _resources(threads: int, *, gpu: bool) -> str:
    return _counted(threads, "CPU") + " and a GPU" * gpu


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
