"""The processes and devices that a zoo is made on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from lol_core.errors import LoLError
from lol_core.learning.cluster import Ray
from lol_core.learning.executor import Executor, Lost, Processes, device, executor

GOES_ON = "Finished LoRAs are kept; the same command goes on."


@dataclass(frozen=True)
class Machine:
    """Where a zoo is made: how many processes (or what else `executor` takes), on which devices (one each in turn), how
    many threads each, how many LoRAs in one stack.
    """

    workers: int | str = 1
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
    stack: int = 1
    mixed_precision: str = "no"


def runner(machine: Machine) -> Executor:
    """Processes even for one worker, so that a base model is not in the process that asks; or a Ray cluster, where
    each gets a GPU when the machine has any.
    """
    if str(machine.workers).isdecimal():
        return Processes(int(machine.workers), machine.devices, machine.threads)
    chosen = executor(machine.workers)
    if isinstance(chosen, Ray):
        return replace(chosen, threads=machine.threads, gpus=float(machine.devices[0].startswith("cuda")))
    return chosen


_begun: set[str] = set()


@dataclass(frozen=True)
class _Work:
    """What each process begins once, and then does with every item."""

    key: str
    start: Callable[..., None]
    started: tuple[Any, ...]
    work: Callable[..., Any]

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        if self.key not in _begun:
            self.start(*self.started, device=device())
            _begun.add(self.key)
        return self.work(*arguments)


def spread(
    machine: Machine,
    start: Callable[..., None],
    started: tuple[Any, ...],
    work: Callable[..., Any],
    *,
    todo: Sequence[tuple[Any, ...]],
) -> Iterator[Any]:
    """Results of work(*arguments) as they come, from processes that each began with start(*started, device=…).

    Raises LoLError, when everything else is done, for what every worker died over.
    """
    lost: list[str] = []
    with closing(runner(machine).map(_Work(uuid4().hex, start, started, work), todo)) as results:
        for _, result in results:
            if isinstance(result, Lost):
                lost.append(result.reason)
            else:
                yield result
    if lost:
        raise LoLError(f"{len(lost)} of {len(todo)} pieces of work are not done. {lost[0]} The same command goes on.")
