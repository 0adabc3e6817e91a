"""Training one model in several processes, each on a device of its own: every batch is shared out among them.

All processes hold the same weights and take the same steps. A process computes the outputs of its rows; the loss is
that of the whole batch in each of them, so that it may be any function of the outputs; its gradients are the parts that
come from its own rows, and their sum over the processes is the gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lol_core.errors import ModelError
from lol_core.learning.devices import find_device

T = TypeVar("T")
BUCKET = 2**22
"""Numbers of gradients that are sent at a time."""
PATIENCE = timedelta(days=1)
"""For the other processes: while the first one packs a large collection, they wait."""


class Parallel(Protocol):
    """The processes that train together. first: whether this one is the first, which writes files and reports."""

    device: torch.device
    first: bool
    rank: int

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of a batch that this process computes; one of them where they do not suffice for all."""
        ...

    def join(self, outputs: Tensor, count: int) -> Tensor:
        """The outputs of a batch of `count`, (count, k), of this process's share of them. Gradients flow to these."""
        ...

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Make every gradient its sum over the processes."""
        ...

    def any(self, here: bool) -> bool:
        """Whether it is true in any process. All must ask."""
        ...

    def wait(self) -> None:
        """Until all processes are here."""
        ...


class Alone:
    """One process."""

    first, rank = True, 0

    def __init__(self, device: torch.device):
        self.device = device

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items

    def join(self, outputs: Tensor, count: int) -> Tensor:
        return outputs

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        return

    def any(self, here: bool) -> bool:
        return here

    def wait(self) -> None:
        return


class Accelerated:
    """The processes that `accelerate launch` started. Raises ModelError where accelerate is not installed."""

    def __init__(self, device: str):
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise ModelError("Training in several processes needs accelerate: pip install accelerate.") from error
        self.accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.first, self.processes = self.accelerator.is_main_process, self.accelerator.num_processes

    def _rows(self, count: int, rank: int) -> slice:
        return slice(count * rank // self.processes, count * (rank + 1) // self.processes)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self._rows(len(items), self.rank)] or items[:1]

    def join(self, outputs: Tensor, count: int) -> Tensor:
        rows = [self._rows(count, rank) for rank in range(self.processes)]
        own = outputs[: rows[self.rank].stop - rows[self.rank].start]
        longest = max(part.stop - part.start for part in rows)
        padded = torch.nn.functional.pad(own.detach(), (0, 0, 0, longest - len(own)))
        parts = [*self.accelerator.gather(padded).split(longest)]
        parts = [part[: place.stop - place.start] for part, place in zip(parts, rows, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        for some in _together(parameters):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
            sums = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
            for parameter, part in zip(some, sums.split([p.numel() for p in some]), strict=True):
                parameter.grad = part.view_as(parameter)

    def any(self, here: bool) -> bool:
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.device), "sum") > 0)

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def _together(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one type whose gradients are sent as one, in their order: of at most `BUCKET` numbers, or one."""
    some: list[Tensor] = []
    for parameter in parameters:
        size = sum(p.numel() for p in some) + parameter.numel()
        if some and (size > BUCKET or parameter.dtype != some[0].dtype):
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


def first_here(together: Parallel, work: Callable[[], T]) -> T:
    """What the work makes, which the first process does before the others begin, so that they find what it has kept.
    Raises ModelError in the others where the first one failed.
    """
    if not together.first and together.any(False):
        raise ModelError("The first process could not go on; what it printed says why.")
    failed = True
    try:
        made = work()
        failed = False
    finally:
        if together.first:
            together.any(failed)
    return made


def parallel(device: str) -> Parallel:
    """The processes that this one was launched with, or it alone. Raises ModelError when the device is not there."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Accelerated(device)
    return Alone(find_device(device))
