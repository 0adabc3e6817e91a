"""Rows of numbers, one for each LoRA of a collection, that a store keeps by content."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lol_core.collections.records import Records
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store


class KeptRows:
    """What a store has under a key for the LoRAs of a collection, and what is computed beside it.

    dtype: of the numbers; rows: id → (width,).
    """

    def __init__(self, zoo: Source, store: Store | None, kind: Kept, key: str, *, dtype: torch.dtype):
        self.zoo, self.store, self.kind, self.key, self.dtype = zoo, store, kind, key, dtype
        self.rows: dict[str, np.ndarray] = {}
        self._records: Records | None = None

    def find(self, ids: Sequence[str]) -> list[str]:
        """Take what the store has; which it has not."""
        try:
            kept = self.store and Records.find(self.store, self.kind, self.key)
            if kept:
                known, numbers = kept.places(), kept.mapped().view(self.dtype)
                keys = {id: self._content(id) for id in ids}
                self.rows |= {id: numbers[known[key]].numpy() for id, key in keys.items() if key in known}
        except (OSError, sqlite3.Error):
            pass  # computed anew
        return [id for id in ids if id not in self.rows]

    def add(self, names: Sequence[str], rows: Tensor, *, ids: Sequence[str]) -> None:
        """Keep some rows, (len(names), width); ids: all that will be added, for which the store must have room."""
        numbers = rows.to(self.dtype).contiguous()
        self.rows |= dict(zip(names, numbers.numpy(), strict=True))
        records = numbers.view(torch.uint8)
        if self.store and self._records is None:
            keys = [self._content(id) for id in ids]
            self._records = Records.open(self.store, self.kind, self.key, records.shape[1], keys=keys)
        if self._records is None or not self._records.add([self._content(id) for id in names], records):
            self._records, self.store = None, None  # not asked again for every block

    def _content(self, id: str) -> str:
        return self.zoo.by_id[id].content
