"""Where measurements are made: in this process, or in worker processes that share the mmapped weights."""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import cloudpickle

from ropebend.errors import RopebendError, UsageError
from ropebend.runtime import available_threads
from ropebend.search.worker import Bench, Done, Executor, Job, OnTokens, Worker


class LocalExecutor:
    """One worker in this process."""

    n_workers = 1

    def __init__(self, bench: Bench):
        self._worker = Worker(bench)
        self.on_tokens: OnTokens | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done]]:
        """In order."""
        self._worker.on_tokens = self.on_tokens
        for i, job in enumerate(jobs):
            yield i, self._worker.run(job)

    def close(self) -> None:
        """Free the model."""
        self._worker.close()


class ProcessExecutor:
    """Worker processes on this machine; threads are shared out among them."""

    on_tokens: OnTokens | None = None

    def __init__(self, bench: Bench, n_workers: int):
        self.n_workers = n_workers
        threads = bench.runtime.n_threads or available_threads()
        bench = replace(bench, runtime=replace(bench.runtime, n_threads=max(1, threads // n_workers)))
        self._pool = ProcessPoolExecutor(
            n_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start,
            initargs=(cloudpickle.dumps(bench),),  # a task of the user's own has classes that no worker could import
        )  # fmt: skip

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done]]:
        """As they are done.  Raises RopebendError if a worker dies (nothing that was done is lost)."""
        futures: dict[Future[Done], int] = {}
        try:
            futures = {self._pool.submit(_run, job): i for i, job in enumerate(jobs)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise RopebendError("a worker process died (out of memory?); fewer --workers need less of it") from None
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Let the running jobs end and stop the processes."""
        self._pool.shutdown(cancel_futures=True)


_worker: Worker | RopebendError | None = None


def _start(bench: bytes) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then tells us to stop
    try:
        _worker = Worker(pickle.loads(bench))
    except RopebendError as e:
        _worker = e  # an initializer that raises would only say that the pool is broken


def _run(job: Job) -> Done:
    if isinstance(_worker, RopebendError):
        raise _worker
    assert _worker is not None
    return _worker.run(job)


def open_executor(
    bench: Bench, executor: str, n_workers: int | None, ray_address: str | None, note: Callable[[str], None]
) -> Executor:
    """The executor "local" (1 worker, or n_workers processes) or "ray" (see `ray_executor.RayExecutor`)."""
    if executor == "ray":
        require_ray()
        from ropebend.search.ray_executor import RayExecutor

        return RayExecutor(bench, n_workers, ray_address, note)
    return LocalExecutor(bench) if n_workers in (None, 1) else ProcessExecutor(bench, n_workers)


def require_ray() -> None:
    """Raise UsageError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError('executor ray: Ray is not installed; pip install "ropebend[ray]"')
