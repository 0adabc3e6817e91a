"""The index of a collection: what every file's header says, kept in SQLite in the user's cache.

It is brought up to date by path, size and times; only new and changed files are opened. What files of one structure
share (names and shapes of their modules) is kept once. Any number of processes may use it at once, and one that is
killed leaves what it has read.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from lol_core.collections.cache import cache_folder
from lol_core.collections.describe import describe
from lol_core.collections.entries import Entries
from lol_core.collections.entry import Entry
from lol_core.collections.page import Counted, Filters, Order, Page, matching, select, value_counts
from lol_core.collections.rows import Rows
from lol_core.collections.schema import COLUMNS, SCHEMA, Row, make_tables
from lol_core.collections.waiting import begin_thread
from lol_core.collections.walk import UNKNOWN, Candidate, candidates
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError

BLOCK = 256
"""Files between two commits: what a kill costs."""
READERS = 4
"""Threads that read headers: a disk answers several sooner. What is in memory already one reads sooner than four, which
wait for each other at every read.
"""
_MARK = COLUMNS.index("mark")


class Database:
    """The SQLite file of one collection. Each use opens a connection of its own, so threads may share one.

    Raises ZooError when its folder cannot be made.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ZooError(
                f"The cache folder {path.parent} cannot be made ({error.strerror}). Set LOL_CACHE_DIR to a folder"
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
                f"The index {self.path} cannot be used ({error}). Free some disk space, or delete that file, and"
                f" {self.path.name}-wal where it is: the index is rebuilt by itself."
            ) from error

    def refresh(
        self,
        present: Callable[[], Sequence[Candidate]],
        describe: Callable[[Candidate], Entry],
        reporter: Reporter = SILENT,
        readers: int | None = None,
    ) -> Entries:
        """Describe what is new or changed of `present()`, in that many threads (when None in READERS, or in one where
        that is faster), and return the entries of all, in its order.

        Raises Stopped when the reporter says so; what was read is kept, and the next refresh goes on from there. Raises
        ZooError when the database cannot be written.
        """
        with self.connection() as connection:
            rows = Rows(self.path, connection)
            with uncollected():
                ids, kept, changed, vanished = _compared(present(), {row[0]: row for row in rows.fetch()})
            _report(reporter, len(ids) - len(changed), len(ids))
            with ThreadPoolExecutor(readers or READERS, initializer=begin_thread, initargs=(reporter.stop,)) as pool:
                pace = {True: 0.0} if readers else {True: 0.0, False: 0.0}  # seconds a file: together, one by one
                for start in range(0, len(changed), BLOCK):
                    block = changed[start : start + BLOCK]
                    together, began = min(pace, key=pace.__getitem__), time.perf_counter()
                    described = pool.map(describe, block) if together else pool.submit(_each, describe, block).result()
                    rows.write(zip(block, described, strict=True))
                    pace[together] = (time.perf_counter() - began) / len(block)
                    _report(reporter, len(ids) - len(changed) + start + len(block), len(ids))
            if vanished:
                rows.delete(vanished)
            if changed:
                known = {row[0]: row for row in rows.fetch()}
                kept = [known[id] for id in ids if id in known]
            return rows.entries(kept)

    def page(
        self,
        query: str = "",
        filters: Filters | None = None,
        *,
        order: Order = Order.PATH,
        descending: bool = False,
        limit: int = 100,
        offset: int = 0,
    ) -> Page:
        """Some of the entries as they were at the last update, or are so far during the first. query: words that must
        all occur in the path, the names in the header, or the sidecar, in any case.
        """
        with self.connection() as connection:
            return select(
                Rows(self.path, connection),
                query,
                filters or Filters(),
                order=order,
                descending=descending,
                limit=limit,
                offset=offset,
            )

    def matching(self, query: str = "", filters: Filters | None = None) -> set[str]:
        """The ids of all entries that `page` would list."""
        with self.connection() as connection:
            return matching(connection, query, filters or Filters())

    def counts(self, what: Counted) -> dict[object, int]:
        """How many readable files have each dialect, base, rank or tag, the most frequent first."""
        with self.connection() as connection:
            return value_counts(connection, what)


class Index(Database):
    """The database of a folder."""

    def __init__(self, folder: Path, cache: Path | None = None):
        self.folder = folder.resolve()
        name = f"{self.folder.name}-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}.sqlite"
        super().__init__((cache or cache_folder()) / "index" / name)

    def update(self, reporter: Reporter = SILENT, readers: int | None = None) -> Entries:
        """Bring the index up to date, in that many threads, and return all entries, those of each folder by name, then
        its subfolders.

        Raises Stopped when the reporter says so; what was read is kept, and the next update goes on from there. Raises
        ZooError when the folder is gone or the index cannot be written.
        """
        if not self.folder.is_dir():
            raise ZooError(f"{self.folder}: not a folder, or it has gone. Check the path, or plug the drive in again.")
        return self.refresh(partial(candidates, self.folder), partial(describe, self.folder), reporter, readers)


def _each(describe: Callable[[Candidate], Entry], block: Sequence[Candidate]) -> list[Entry]:
    return [describe(candidate) for candidate in block]


def _report(reporter: Reporter, done: int, total: int) -> None:
    reporter.count("Reading headers: file", done, total)
    reporter.check("The headers read so far are kept.")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: it would look again and again at hundreds of thousands of tuples that all stay, which
    takes a quarter of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _compared(
    present: Sequence[Candidate], known: Mapping[str, Row]
) -> tuple[list[str], list[Row], list[Candidate], set[str]]:
    """The ids of what is there, the rows of what is unchanged of it, what is new or changed, and the ids of what has
    vanished.
    """
    ids, kept, changed = list[str](), list[Row](), list[Candidate]()
    for candidate in present:
        id, _, size, mtime, _, mark, _ = candidate
        ids.append(id)
        row = known.get(id)
        if row is None or row[2] != mtime or row[_MARK] != mark or size not in (row[1], UNKNOWN):
            changed.append(candidate)
        else:
            kept.append(row)
    return ids, kept, changed, known.keys() - set(ids) if len(known) > len(kept) else set()
