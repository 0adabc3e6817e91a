"""Records of one size in one file of a store, each under the content it was computed from. They are added as they come,
and stay when the process that adds them is killed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import torch
from torch import Tensor

from lol_core.collections.store import Item, Kept, Store

DISK_SHARE = 0.5
"""Share of the free disk that records may take."""


@dataclass(frozen=True)
class Records:
    """The records of one item. size: bytes of each."""

    store: Store
    item: Item
    size: int

    @classmethod
    def open(cls, store: Store, kind: Kept, key: str, size: int, *, keys: Sequence[str]) -> Records | None:
        """The records under a key, where those of `keys` are to be kept. None where they cannot be: they alone exceed
        the limit, or their share of the disk, or the store cannot be used.
        """
        try:
            with store.index() as index:
                items = store.items(index, "WHERE kind = ? AND key = ?", kind, key)
                own = cls(store, items[0], size) if items else None
                if own is not None:
                    new = size * len(set(keys) - own._places(index).keys())
                    if own.item.bytes + new > store.limit or not own._whole:  # full of others', or damaged
                        store.delete(index, own.item)
                        own = None
                more = size * len(set(keys)) if own is None else new
                if more > min(store.limit, DISK_SHARE * shutil.disk_usage(store.folder).free):
                    return None
                index.execute(
                    "INSERT INTO item (kind, key, places, bytes, used) VALUES (?, ?, 0, 0, ?) ON CONFLICT DO UPDATE"
                    " SET used = excluded.used",
                    (kind, key, time.time()),
                )
                own = cls(store, store.items(index, "WHERE kind = ? AND key = ?", kind, key)[0], size)
                path = store.path(own.item)
                path.parent.mkdir(exist_ok=True)
                path.touch()
                return own
        except (OSError, sqlite3.Error):
            return None

    @classmethod
    def find(cls, store: Store, kind: Kept, key: str) -> Records | None:
        """Those that there are already, whatever their size. Raises OSError and sqlite3.Error."""
        with store.index() as index:
            items = store.items(index, "WHERE kind = ? AND key = ? AND places > 0", kind, key)
            index.execute("UPDATE item SET used = ? WHERE kind = ? AND key = ?", (time.time(), kind, key))
        found = [cls(store, item, item.bytes // (item.places or 1)) for item in items]
        return found[0] if found and found[0]._whole else None

    @property
    def _whole(self) -> bool:
        path = self.store.path(self.item)
        return path.is_file() and path.stat().st_size >= self.item.bytes

    def places(self) -> dict[str, int]:
        """Key → its place. Raises OSError and sqlite3.Error."""
        with self.store.index() as index:
            return self._places(index)

    def _places(self, index: sqlite3.Connection, keys: Sequence[str] | None = None) -> dict[str, int]:
        rows = "SELECT key, place FROM record WHERE item = ?"
        if keys is None:
            return dict(index.execute(rows, (self.item.id,)).fetchall())
        statement = f"{rows} AND key IN (SELECT value FROM json_each(?))"  # any number of them
        return dict(index.execute(statement, (self.item.id, orjson.dumps(list(keys)).decode())).fetchall())

    def add(self, keys: Sequence[str], records: Tensor) -> bool:
        """Add records, (len(keys), size) bytes, but none a second time; whether they are kept. They are on the disk
        before the index names them, and other processes wait meanwhile.
        """
        try:
            with self.store.index() as index:
                known = self._places(index, keys)
                new = {key: i for i, key in enumerate(keys) if key not in known}
                if not new:
                    return True
                if not self.store.make_room(index, self.size * len(new), self.item.id):
                    return False
                places = index.execute("SELECT places FROM item WHERE id = ?", (self.item.id,)).fetchone()
                if places is None:  # deleted meanwhile
                    return False
                with self.store.path(self.item).open("rb+", buffering=0) as file:
                    file.seek(places[0] * self.size)
                    left = memoryview(records[list(new.values())].numpy().tobytes())
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                index.executemany(
                    "INSERT INTO record VALUES (?, ?, ?)",
                    [(self.item.id, key, place) for place, key in enumerate(new, places[0])],
                )
                index.execute(
                    "UPDATE item SET places = places + ?, bytes = bytes + ? WHERE id = ?",
                    (len(new), self.size * len(new), self.item.id),
                )
        except (OSError, sqlite3.Error):
            return False
        return True

    def mapped(self) -> Tensor:
        """All places as bytes (places, size), mapped from the file and never to be written. Raises OSError."""
        path = self.store.path(self.item)
        count = path.stat().st_size // self.size
        if not count:
            return torch.zeros(0, self.size, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=(count, self.size)))
