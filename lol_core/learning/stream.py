"""LoRAs in batches one after the other, each read while the last one is computed with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from lol_core.collections.source import Source
from lol_core.core.batch import Batch
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError

T = TypeVar("T")
AT_ONCE_BYTES = 2**28
"""Of files whose weights are in memory for one batch of predictions; as many are read ahead."""


class _Fetched(Dataset[Batch]):
    """The LoRAs of a collection, fetched a batch at a time."""

    def __init__(self, fetch: Callable[[Sequence[str]], Batch]):
        self.fetch = fetch

    def __getitems__(self, ids: Sequence[str]) -> Batch:
        return self.fetch(ids)


def _whole(fetched: Any) -> Any:
    return fetched


def stream(
    fetch: Callable[[Sequence[str]], Batch],
    batches: Sequence[Sequence[str]],
    device: torch.device | str = "cpu",
    *,
    read_ahead: bool = True,
) -> Iterator[Batch]:
    """The batches of ids, fetched in this order, on a device. read_ahead: by a thread, which costs more than it saves
    where batches are small. No random number is drawn from the global generator.
    """
    loader = DataLoader(
        _Fetched(fetch), batch_sampler=map(list, batches), collate_fn=_whole, generator=torch.Generator()
    )
    moved = (batch.to(device) for batch in loader)
    return ahead(moved) if read_ahead else moved


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by a thread while the one before is used. What making one raises is raised in its place."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(_next, items)
        while made := following.result():
            following = reader.submit(_next, items)
            yield made.pop()


def _next(items: Iterator[T]) -> list[T]:
    """The next item, or none."""
    return list(islice(items, 1))


def parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in their order, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def at_once(zoo: Source, ids: Sequence[str], most: int = 64) -> int:
    """How many of these LoRAs may be in memory together."""
    largest = max((zoo.by_id[id].size for id in ids), default=1)
    return max(1, min(most, AT_ONCE_BYTES // max(1, largest)))


def readable(readers: Iterable[tuple[str, Callable[[], LoRA]]]) -> tuple[dict[str, LoRA], dict[str, str]]:
    """The LoRAs that can be read, with their weights, and why the others cannot."""
    loras, refused = dict[str, LoRA](), dict[str, str]()
    for id, reader in readers:
        try:
            loras[id] = reader()
        except LoLError as error:
            refused[id] = str(error)
    return loras, refused
