"""The processes and devices that a zoo is made on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

Progress = Callable[[int, int], None]
"""Hears how many are done, of how many."""


@dataclass(frozen=True)
class Machine:
    """Where a zoo is made: how many processes, on which devices (one each in turn), how many threads each, how many
    LoRAs in one stack.
    """

    workers: int = 1
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
    stack: int = 1
    mixed_precision: str = "no"


def spread(
    machine: Machine,
    start: Callable[..., None],
    started: tuple[Any, ...],
    work: Callable[..., Any],
    todo: Sequence[tuple[Any, ...]],
) -> Iterator[Any]:
    """Results of work(*arguments) as they come, from processes that each began with start(*started, places); `places`
    is a queue with their devices.
    """
    if not todo:
        return
    context = get_context("spawn")
    places = context.Queue()
    for i in range(machine.workers):
        places.put(machine.devices[i % len(machine.devices)])
    pool = ProcessPoolExecutor(min(machine.workers, len(todo)), context, start, (*started, places))
    try:
        running: list[Future[Any]] = [pool.submit(work, *arguments) for arguments in todo]
        for future in as_completed(running):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
