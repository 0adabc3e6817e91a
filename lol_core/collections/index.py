"""The index of a collection: what every file's header says, kept in SQLite in the user's cache.

It is brought up to date by path, size and times; only new and changed files are opened. What files of one structure
share (names and shapes of their modules) is kept once. Any number of processes may use it at once, and one that is
killed leaves what it has read.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from lol_core.collections.cache import cache_folder
from lol_core.collections.describe import describe
from lol_core.collections.entry import Entry
from lol_core.collections.rows import COLUMNS, SCHEMA, Row, Rows, make_tables
from lol_core.collections.walk import Candidate, candidates
from lol_core.errors import ZooError

BLOCK = 256
"""Files between two commits: what a kill costs."""
READERS = 4
_MARK = COLUMNS.index("mark")


class Index:
    """The SQLite file of one collection. Each use opens a connection of its own, so threads may share an Index."""

    def __init__(self, folder: Path, cache: Path | None = None):
        self.folder = folder.resolve()
        name = f"{self.folder.name}-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}.sqlite"
        self.path = (cache or cache_folder()) / "index" / name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ZooError(
                f"The cache folder {self.path.parent} cannot be made ({error.strerror}). Set LOL_CACHE_DIR to a folder"
                " you may write to."
            ) from error

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The database, made when it is not there. Raises ZooError when it cannot be used."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
                    make_tables(connection)
                yield connection
        except sqlite3.DatabaseError as error:
            raise ZooError(
                f"The index {self.path} cannot be used ({error}). Free some disk space, or delete that file: it is"
                " rebuilt by itself."
            ) from error

    def update(self, progress: Callable[[int, int], None] | None = None) -> list[Entry]:
        """Bring the index up to date and return all entries, those of each folder by name, then its subfolders.

        `progress(done, total)`; when it raises, what was read is kept and the next update goes on from there. Raises
        ZooError when the folder is gone or the index cannot be written.
        """
        if not self.folder.is_dir():
            raise ZooError(f"{self.folder}: not a folder, or it has gone. Check the path, or plug the drive in again.")
        present = candidates(self.folder)
        with self.connection() as connection:
            rows = Rows(self.path, connection)
            known = {row[0]: row for row in rows.fetch()}
            changed = [c for c in present if not _unchanged(c, known.get(c.id))]
            fresh: dict[str, Entry] = {}
            if progress:
                progress(len(present) - len(changed), len(present))
            with ThreadPoolExecutor(READERS) as readers:
                for start in range(0, len(changed), BLOCK):
                    block = changed[start : start + BLOCK]
                    entries = list(readers.map(partial(describe, self.folder), block))
                    rows.write(zip(block, entries, strict=True))
                    fresh |= {entry.path: entry for entry in entries}
                    if progress:
                        progress(len(present) - len(changed) + start + len(block), len(present))
            if vanished := known.keys() - {candidate.id for candidate in present}:
                rows.delete(vanished)
            return [fresh.get(c.id) or rows.entry(known[c.id]) for c in present]


def _unchanged(candidate: Candidate, row: Row | None) -> bool:
    return row is not None and (row[1], row[2], row[_MARK]) == (candidate.size, candidate.mtime, candidate.mark)
