"""Where wide work runs: here, in several processes, or on a Ray cluster. The same function and the same results
wherever it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from threading import Thread
from typing import Generic, Protocol, TypeVar

from lol_core.errors import LoLError

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
"""Workers that an item may take with it before it is given up."""
AHEAD = 4
"""Items handed out before their turn, for each worker: enough to keep it busy, few enough to stop soon."""


@dataclass(frozen=True)
class Lost:
    """In the place of a result: every worker that took the item died over it, or a later run may have more luck with
    it. reason: a sentence.
    """

    reason: str

    @classmethod
    def after(cls, attempts: int) -> Lost:
        return cls(f"{attempts} workers that took this died over it, most likely for want of memory.")


class Executor(Protocol):
    """Applies a function to items that do not depend on each other."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        """(item, result) once for each item as results come, in any order. Closing the iterator abandons what has not
        begun. What the function raises is raised here. An item may be begun again on another worker when its own
        dies, so that what the function writes must be written whole.
        """
        ...


class Serial:
    """One after the other, in this process."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        for item in items:
            yield item, function(item)


def map_some(
    runner: Executor,
    function: Callable[[Sequence[tuple[str, T]]], Mapping[str, R]],
    items: Sequence[tuple[str, T]],
    size: int,
) -> Iterator[dict[str, R | Lost]]:
    """id → result, for up to `size` items (id, item) at a time. Those that a worker died over go again one by one, so
    that only the one that kills is lost.
    """
    some = [items[start : start + size] for start in range(0, len(items), size)]
    again: list[tuple[str, T]] = []
    with closing(runner.map(function, some)) as results:
        for asked, result in results:
            if not isinstance(result, Lost):
                yield {**result}
            elif len(asked) > 1:
                again += asked
            else:
                yield {asked[0][0]: result}
    if again:
        yield from map_some(runner, function, again, 1)


@dataclass(frozen=True)
class _Try(Generic[T]):
    item: T
    deaths: int = 0
    """Workers that died over it while they had nothing else."""


@dataclass(frozen=True)
class Processes:
    """In `workers` processes with one thread each. Functions, items and results are pickled on the way.

    devices: one for each process in turn, which `device()` tells there.

    When a process dies, all that its pool had in hand are suspects. Each is tried again alone, so that only the one
    that kills is given up. Raises BrokenProcessPool when workers cannot even start.
    """

    workers: int
    devices: Sequence[str] = ("cpu",)
    threads: int = 1

    def _pool(self) -> ProcessPoolExecutor:
        context = _context()
        places = context.Queue()
        for i in range(self.workers):
            places.put(self.devices[i % len(self.devices)])
        return ProcessPoolExecutor(self.workers, context, _begin, (places, self.threads, dict(os.environ)))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        waiting, suspects = iter(items), deque[_Try[T]]()
        running: dict[Future[R], _Try[T]] = {}
        pool = self._pool()
        try:
            while True:
                if suspects and not running:
                    tried = suspects.popleft()
                    running[_submit(pool, function, tried.item)] = tried
                elif not suspects:
                    for item in islice(waiting, self.workers * AHEAD - len(running)):
                        running[_submit(pool, function, item)] = _Try(item)
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                if any(map(_died, done)):
                    done, _ = wait(running)  # with one process the whole pool ends
                    pool.shutdown()
                    pool = self._pool()
                    pool.submit(device).result()
                alone = len(running) == 1
                for future in done:
                    tried = running.pop(future)
                    if not _died(future):
                        yield tried.item, future.result()
                    elif alone and tried.deaths + 1 == ATTEMPTS:
                        yield tried.item, Lost.after(ATTEMPTS)
                    else:
                        suspects.append(_Try(tried.item, tried.deaths + alone))
        except KeyboardInterrupt:
            _kill(pool)
            raise
        finally:
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:  # who asks again does not want to wait for what is running
                _kill(pool)
                raise


def _context() -> BaseContext:
    """How processes start: forked from a server that has imported PyTorch where this process has, which each would
    else do for seconds. It has only imported it, in one thread, so that it may be forked; Windows has no such server.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch"] if "torch" in sys.modules else [])
    return context


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], item: T) -> Future[R]:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:  # it ended while nobody waited for it
        failed = Future[R]()
        failed.set_exception(error)
        return failed


def _died(future: Future[R]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


_device = "cpu"


def _begin(places: Queue[str], threads: int, environment: Mapping[str, str]) -> None:
    """In the environment of the process that asks, which may have changed since its server of forks began. Threads are
    set for a PyTorch that is there, and for one that is not yet: some work needs none, and it takes seconds.
    """
    os.environ.clear()
    os.environ |= {**environment, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
    if (torch := sys.modules.get("torch")) is not None:
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(threads)
        threadpool_limits(threads)  # NumPy came with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches them too; the process that asked for them stops them
    Thread(target=_end_with_parent, daemon=True).start()
    set_device(places.get())


def _end_with_parent() -> None:
    """Wait for the process that asked to be gone, and be gone: where it was killed, nobody else ends its workers."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def device() -> str:
    """The device that this process computes on, as its executor gave it out."""
    return _device


def set_device(name: str) -> None:
    global _device
    _device = name


def executor(workers: int | str = 1) -> Executor:
    """The executor for what stands after `--workers`: "serial", a number of processes, "ray" for the Ray cluster that
    this machine belongs to (or one that is started here), "ray://HOST:10001" for one elsewhere.

    Raises LoLError for anything else, and where Ray is not installed.
    """
    words = str(workers)
    if words == "ray" or words.startswith("ray://"):
        from lol_core.learning.cluster import Ray

        return Ray(None if words == "ray" else words)
    if words == "serial" or (words.isdecimal() and int(words) <= 1):
        return Serial()
    if not words.isdecimal():
        raise LoLError(f"--workers {words}: give a number of processes, serial, ray, or ray://HOST:10001.")
    return Processes(int(words))
