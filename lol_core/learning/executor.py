"""Where wide work runs: here, or in several processes. The same function and the same results either way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Applies a function to items that do not depend on each other."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R], None, None]:
        """(item, result) as results come, in any order. Closing the iterator abandons what has not begun. What the
        function raises is raised here.
        """
        ...


class Serial:
    """One after the other, in this process."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R], None, None]:
        for item in items:
            yield item, function(item)


@dataclass(frozen=True)
class Processes:
    """In `workers` processes with one thread each. Functions, items and results are pickled on the way."""

    workers: int
    ahead: int = 4
    """Items handed out before their turn, for each worker: enough to keep it busy, few enough to stop soon."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R], None, None]:
        waiting = iter(items)
        pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=_one_thread)
        running: dict[Future[R], T] = {}
        try:
            while True:
                for item in islice(waiting, self.workers * self.ahead - len(running)):
                    running[pool.submit(function, item)] = item
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def executor(workers: int = 1) -> Executor:
    """The executor for a number of workers."""
    return Serial() if workers <= 1 else Processes(workers)
