"""What is computed from LoRAs and kept for the next time: surveys, packed factors, latent vectors, predictions, maps.

A folder of files with an index in SQLite. An item is either arrays, written whole, or records of one size that are
added as they come (see `records`). Any number of processes may use a store at once. When it outgrows its limit, what
was unused the longest goes. It is a cache: what cannot be read or kept is computed anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lol_core.collections.cache import bytes_set, cache_folder
from lol_core.collections.durable import contiguous, sync_folder, write_file
from lol_core.errors import ZooError

GIGABYTES = 20.0
"""What a store may hold, unless LOL_STORE_GB says otherwise."""
STRAY_AFTER = 3600.0
"""Seconds after which a file that the index does not know counts as left behind by a process that was killed."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, key TEXT, places INTEGER,
    bytes INTEGER, used REAL, UNIQUE (kind, key));
CREATE TABLE IF NOT EXISTS record (item INTEGER REFERENCES item (id) ON DELETE CASCADE, key TEXT, place INTEGER,
    PRIMARY KEY (item, key)) WITHOUT ROWID;
"""


class Kept(StrEnum):
    """The kinds of what is kept."""

    SURVEYS = "surveys"
    FACTORS = "factors"
    LATENTS = "latents"
    ANSWERS = "answers"
    MAPS = "maps"


@dataclass(frozen=True)
class Item:
    """One thing in a store. places: of records in its file, None for arrays; used: when last, in seconds
    since 1970.
    """

    id: int
    kind: str
    key: str
    places: int | None
    bytes: int
    used: float


class Store:
    """A store in a folder, by default in the user's cache. limit: bytes."""

    def __init__(self, folder: Path | None = None, limit: float | None = None):
        self.folder = folder or cache_folder() / "store"
        self.limit = bytes_set("LOL_STORE_GB", GIGABYTES) if limit is None else limit

    def read(self, kind: Kept, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Arrays, mapped from their file, and the words kept with them; None when they are not here."""
        try:
            with safe_open(self._arrays(kind, key), "pt") as file:
                read = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118, a file
            with self.index() as index:
                index.execute("UPDATE item SET used = ? WHERE kind = ? AND key = ?", (time.time(), kind, key))
        except (OSError, SafetensorError, sqlite3.Error):
            return None
        return read

    def write(self, kind: Kept, key: str, arrays: Mapping[str, Tensor], words: Mapping[str, str]) -> None:
        """Keep arrays, whole or not at all. On a full disk, and where they alone exceed the limit, nothing is kept."""
        path = self._arrays(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.writing")
            try:
                write_file(new, lambda place: save_file(contiguous(arrays), place, metadata=dict(words)))
                with self.index() as index:
                    if self.make_room(index, size := new.stat().st_size):
                        new.replace(path)
                        index.execute(
                            "INSERT INTO item (kind, key, bytes, used) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
                            " SET bytes = excluded.bytes, used = excluded.used",
                            (kind, key, size, time.time()),
                        )
            finally:
                new.unlink(missing_ok=True)
            sync_folder(path.parent)
        except (OSError, SafetensorError, sqlite3.Error):
            return

    def show(self) -> list[Item]:
        """What is kept, the last used first. Raises ZooError when the store cannot be read."""
        with self._told("read"), self.index() as index:
            return self.items(index, "ORDER BY used DESC")

    def clear(self, kind: str | None = None) -> int:
        """Delete what is kept, of one kind or all, and what killed processes left behind; how many bytes that was.
        Raises ZooError when it cannot be deleted.
        """
        with self._told("cleared"), self.index() as index:
            items = self.items(index, "WHERE ? IS NULL OR kind = ?", kind, kind)
            for item in items:
                self.delete(index, item)
            return sum(item.bytes for item in items) + self._sweep(index)

    @contextmanager
    def index(self) -> Iterator[sqlite3.Connection]:
        """One transaction beside which no other process writes. Raises OSError and sqlite3.Error. A damaged index is
        begun anew, and with it the store.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            connection = self._connect()
        except sqlite3.OperationalError:  # locked or a full disk, which is no damage
            raise
        except sqlite3.DatabaseError:
            shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            connection = self._connect()
        with closing(connection):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / "index.sqlite", timeout=60, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.executescript(SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise ZooError(
                f"The store {self.folder} cannot be {done} ({error}). It is a cache: delete that folder."
            ) from error

    def items(self, index: sqlite3.Connection, which: str = "", *values: object) -> list[Item]:
        """Those that an SQL clause chooses."""
        rows = index.execute(f"SELECT id, kind, key, places, bytes, used FROM item {which}", values)
        return [Item(*row) for row in rows.fetchall()]

    def make_room(self, index: sqlite3.Connection, size: int, item: int = -1) -> bool:
        """Delete what was unused the longest until `size` bytes more fit, but not the item that grows by them; whether
        they fit then.
        """
        items = self.items(index, "ORDER BY used")
        total = size + sum(other.bytes for other in items)
        if size + sum(other.bytes for other in items if other.id == item) > self.limit:
            return False
        for other in items:
            if total <= self.limit:
                break
            if other.id != item:
                self.delete(index, other)
                total -= other.bytes
        return True

    def delete(self, index: sqlite3.Connection, item: Item) -> None:
        self.path(item).unlink(missing_ok=True)
        index.execute("DELETE FROM item WHERE id = ?", (item.id,))

    def path(self, item: Item) -> Path:
        """The file of an item. That of records carries its number: where they are begun anew, a process that still adds
        to the old ones does not meet the new file.
        """
        if item.places is None:
            return self._arrays(item.kind, item.key)
        return self.folder / item.kind / f"{item.id}.records"

    def _arrays(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _sweep(self, index: sqlite3.Connection) -> int:
        known, size = {self.path(item) for item in self.items(index)}, 0
        for path in self.folder.glob("*/*"):
            status = path.stat()
            if path not in known and status.st_mtime < time.time() - STRAY_AFTER:
                path.unlink(missing_ok=True)
                size += status.st_size
        return size
