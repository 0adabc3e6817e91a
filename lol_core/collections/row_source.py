"""Collections whose LoRAs are rows of a table or a matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import pandas as pd

from lol_core.collections.entry import Entry
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError


@dataclass(frozen=True)
class Rows:
    """Rows that are LoRAs of one structure. template: the entry of one of them; ids: of each; identity: of the file
    that they stand in; read: LoRA from the number of its row, and can be sent to another process.
    """

    template: Entry
    ids: Sequence[str]
    identity: str
    read: Callable[[int], LoRA]


class RowEntries(Sequence[Entry]):
    """Entries that are made when they are looked at."""

    def __init__(self, parts: Sequence[Rows]):
        self._places = [(rows, number) for rows in parts for number in range(len(rows.ids))]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...
    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        if isinstance(place, slice):
            return [self._entry(*place) for place in self._places[place]]
        return self._entry(*self._places[place])

    def __iter__(self) -> Iterator[Entry]:
        return (self._entry(*place) for place in self._places)

    @staticmethod
    def _entry(rows: Rows, number: int) -> Entry:
        digest = hashlib.sha256(f"{rows.identity}\0{number}".encode()).hexdigest()
        return replace(rows.template, path=rows.ids[number], digest=digest)


@dataclass(frozen=True, eq=False)
class RowSource(Source):
    """Rows as a source. where: its address."""

    where: str
    name: str
    parts: Sequence[Rows]
    labels: pd.DataFrame
    refused: Sequence[Entry] = ()
    remarks: Sequence[str] = ()

    @property
    def address(self) -> str:
        return self.where

    @cached_property
    def entries(self) -> Sequence[Entry]:  # type: ignore[override]  # read-only: it follows from the parts
        return RowEntries(self.parts)

    @cached_property
    def ids(self) -> list[str]:
        return [id for rows in self.parts for id in rows.ids]

    @cached_property
    def _places(self) -> dict[str, tuple[Rows, int]]:
        return {id: (rows, number) for rows in self.parts for number, id in enumerate(rows.ids)}

    def load(self, id: str) -> LoRA:
        return self.reader(id)()

    def reader(self, id: str) -> Callable[[], LoRA]:
        rows, number = self._places[id]
        return _Reader(rows.read, number, id)


@dataclass(frozen=True)
class _Reader:
    read: Callable[[int], LoRA]
    number: int
    id: str

    def __call__(self) -> LoRA:
        try:
            lora = self.read(self.number)
            lora.check_finite()
        except LoRAFormatError as error:
            raise type(error)(f"{self.id}: {error}") from error
        return lora
