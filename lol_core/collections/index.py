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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lol_core.collections.cache import cache_folder
from lol_core.collections.describe import UNSETTLED, describe
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

T = TypeVar("T")
R = TypeVar("R")
Describe = Callable[[Candidate], Entry]
Described = tuple[Sequence[Candidate], Sequence[Entry]]


class Runner(Protocol):
    """What reads headers elsewhere: the `Executor` of a cluster, which has the files in the same place. In the place of
    a result may stand something with a `reason`: all that took the item died over it.
    """

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Any], None, None]: ...


Readers = int | Runner | None
"""What reads headers: so many threads, or machines elsewhere; None for as many threads as suit the place."""


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
        describe: Describe,
        reporter: Reporter = SILENT,
        readers: Readers = None,
    ) -> Entries:
        """Describe what is new or changed of `present()` (in READERS threads when None, or in one where that is
        faster), and return the entries of all, in its order.

        Raises Stopped when the reporter says so; what was read is kept, and the next refresh goes on from there. Raises
        ZooError when the database cannot be written.
        """
        with self.connection() as connection:
            rows = Rows(self.path, connection)
            with uncollected():
                there, known = present(), rows.entries()
                ids, kept, changed, vanished = _compared(there, {row[0]: row for row in known.rows})
            _report(reporter, len(ids) - len(changed), len(ids))
            done = len(ids) - len(changed)
            blocks = [changed[start : start + BLOCK] for start in range(0, len(changed), BLOCK)]
            if readers is None or isinstance(readers, int):
                described = _here(describe, blocks, readers, reporter)
            else:
                described = _elsewhere(describe, blocks, readers)
            with closing(described):
                for block, entries in described:
                    rows.write(zip(block, entries, strict=True))
                    done += len(block)
                    _report(reporter, done, len(ids))
            if vanished:
                rows.delete(vanished)
            if changed:
                known = rows.entries()
                row_of = {row[0]: row for row in known.rows}
                kept = [row_of[id] for id in ids if id in row_of]
            return known.of(kept)

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

    def update(self, reporter: Reporter = SILENT, readers: Readers = None) -> Entries:
        """Bring the index up to date, and return all entries, those of each folder by name, then its subfolders.

        Raises Stopped when the reporter says so; what was read is kept, and the next update goes on from there. Raises
        ZooError when the folder is gone or the index cannot be written.
        """
        if not self.folder.is_dir():
            raise ZooError(f"{self.folder}: not a folder, or it has gone. Check the path, or plug the drive in again.")
        return self.refresh(
            partial(candidates, self.folder, reporter), partial(describe, self.folder), reporter, readers
        )


def _here(
    describe: Describe, blocks: Sequence[Sequence[Candidate]], threads: int | None, reporter: Reporter
) -> Generator[Described, None, None]:
    """In threads of this process; a number of them is taken as it is."""
    pace = {True: 0.0} if threads else {True: 0.0, False: 0.0}  # seconds a file: together, one by one
    with ThreadPoolExecutor(threads or READERS, initializer=begin_thread, initargs=(reporter.stop,)) as pool:
        for block in blocks:
            together, began = min(pace, key=pace.__getitem__), time.perf_counter()
            described = pool.map(describe, block) if together else pool.submit(_each, describe, block).result()
            entries = list(described)
            pace[together] = (time.perf_counter() - began) / len(block)
            yield block, entries


def _elsewhere(
    describe: Describe, blocks: Sequence[Sequence[Candidate]], runner: Runner
) -> Generator[Described, None, None]:
    """On other machines. What a worker died over goes again file by file, so that only the one that kills is lost."""
    again: list[Sequence[Candidate]] = []
    with closing(runner.map(partial(_each, describe), blocks)) as results:
        for block, described in results:
            if isinstance(described, list):
                yield block, described
            elif len(block) > 1:
                again += ([candidate] for candidate in block)
            else:
                [lost] = block
                place = None if lost.place == lost.id else lost.place
                yield block, [Entry(lost.id, lost.size, UNSETTLED, "", place=place, reason=described.reason)]
    if again:
        yield from _elsewhere(describe, again, runner)


def _each(describe: Describe, block: Sequence[Candidate]) -> list[Entry]:
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
