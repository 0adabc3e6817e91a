"""LoRAs made in Python, as a collection."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch

from lol_core.collections.entry import Entry
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, ZooError


@dataclass(frozen=True, eq=False)
class MemorySource(Source):
    """A source of LoRAs that are in memory. labels: indexed by id; a LoRA without a row has none, and columns are
    called by text.

    Raises ZooError when there are labels of no LoRA, or two rows of one.
    """

    loras: Mapping[str, LoRA]
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)
    name: str = "memory"
    entries: tuple[Entry, ...] = field(init=False)

    def __post_init__(self) -> None:
        index = self.labels.index
        if unknown := [id for id in index if id not in self.loras]:
            raise ZooError(
                f"{len(unknown)} rows of the labels belong to no LoRA, first {unknown[0]!r}. Index the table by the ids"
                f" of the LoRAs, such as {next(iter(self.loras), 'a')!r}."
            )
        if not index.is_unique:
            raise ZooError(f"The labels have more than one row of {index[index.duplicated()][0]!r}. Keep one row each.")
        entries = tuple(
            Entry.of(lora, path=id, size=_bytes(lora), digest=content_hash(lora)) for id, lora in self.loras.items()
        )
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "labels", self.labels.reindex(list(self.loras)).rename(columns=str))

    def load(self, id: str) -> LoRA:
        try:
            self.loras[id].check_finite()
        except LoRAFormatError as error:
            raise type(error)(f"{id}: {error}") from error
        return self.loras[id]


def _bytes(lora: LoRA) -> int:
    slots = (slot for layer in lora.layers for slot in layer.parametrisation.slots.values())
    return sum(slot.numel() * slot.element_size() for slot in slots)


def content_hash(lora: LoRA) -> str:
    """Identity of a LoRA's numbers: modules, scales and every slot, bit for bit."""
    digest = hashlib.sha256()
    for layer in lora.layers:
        digest.update(repr((layer.header, layer.scale)).encode())
        for name, slot in layer.parametrisation.slots.items():
            digest.update(f"{name} {slot.dtype} {tuple(slot.shape)}".encode())
            digest.update(slot.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
