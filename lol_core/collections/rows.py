"""The tables of an index, and entries as rows of them."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from lol_core.collections.entry import Entry, shared
from lol_core.collections.sidecar import NONE, Sidecar
from lol_core.collections.walk import Candidate
from lol_core.core.header import ModuleHeader

SCHEMA = 3
TABLES = """
CREATE TABLE structure (hash TEXT PRIMARY KEY, headers TEXT) WITHOUT ROWID;
CREATE TABLE file (path TEXT PRIMARY KEY, place BLOB, size INTEGER, mtime REAL, mark TEXT, digest TEXT, reason TEXT,
    dialect TEXT, base_model TEXT, suggested_base TEXT, modules INTEGER, ranks TEXT, parameters INTEGER, dtypes TEXT,
    structure TEXT, alphas TEXT, scales TEXT, extras TEXT, notes TEXT);
CREATE TABLE details (path TEXT PRIMARY KEY, metadata TEXT, sidecar TEXT, text TEXT);
"""
"""details.text: what a search looks through, in lower case."""
COLUMNS = tuple(
    "path size mtime digest reason dialect base_model suggested_base modules ranks parameters dtypes structure alphas"
    " scales extras notes place mark".split()
)
"""Of the table `file`, in the order of an Entry's fields as far as it has them."""
LONGEST_VALUE = 300
"""Characters of a metadata value that a search still looks into: names and prompts, no dumps."""

Row = tuple[Any, ...]


def make_tables(connection: sqlite3.Connection) -> None:
    """Replace the tables of another version. Of two processes that come at once, one does it."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
        for table in ("files", "file", "structure", "details"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in filter(str.strip, TABLES.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.commit()


class StoredDetails:
    """The details of one file, read from the index when they are wanted; empty when they are no longer there."""

    __slots__ = ("_found", "_index", "_path")

    def __init__(self, index: Path, path: str):
        self._index, self._path = index, path
        self._found: tuple[Mapping[str, Any], Sidecar] | None = None

    def _read(self) -> tuple[Mapping[str, Any], Sidecar]:
        if self._found is None:
            row = None
            if self._index.is_file():
                with closing(sqlite3.connect(self._index, timeout=60)) as connection:
                    statement = "SELECT metadata, sidecar FROM details WHERE path = ?"
                    row = connection.execute(statement, (self._path,)).fetchone()
            self._found = (orjson.loads(row[0]), Sidecar.from_json(row[1])) if row else ({}, NONE)
        return self._found

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._read()[0]

    @property
    def sidecar(self) -> Sidecar:
        return self._read()[1]


class Rows:
    """Entries to rows and back, over one connection. What many rows share becomes one object."""

    def __init__(self, index: Path, connection: sqlite3.Connection):
        self.index, self.connection = index, connection
        self._tuples: dict[object, tuple[Any, ...]] = {}
        self._headers: dict[str | None, tuple[ModuleHeader, ...]] = {None: ()}
        self._written: dict[int, tuple[str, str, tuple[ModuleHeader, ...]]] = {}

    def fetch(self, where: str = "", values: Iterable[object] = ()) -> list[Row]:
        return self.connection.execute(f"SELECT {', '.join(COLUMNS)} FROM file {where}", tuple(values)).fetchall()

    def entry(self, row: Row) -> Entry:
        path, size, mtime, digest, reason, dialect, base, suggested, modules, ranks, parameters, dtypes = row[:12]
        structure, alphas, scales, extras, notes, place, _ = row[12:]
        headers = self._headers.get(structure)
        if headers is None:
            headers = self._load(structure)
        return Entry(
            path,
            size,
            mtime,
            digest,
            reason,
            dialect,
            base,
            suggested,
            modules,
            self._tuple(ranks),
            parameters,
            self._tuple(dtypes),
            headers,
            self._each(alphas, modules),
            self._each(scales, modules),
            self._tuple(extras),
            self._tuple(notes),
            None if place is None else os.fsdecode(place),
            StoredDetails(self.index, path),
        )

    def write(self, described: Iterable[tuple[Candidate, Entry]]) -> None:
        """Insert or replace rows, all or none."""
        files, details, structures = [], [], {}
        for candidate, entry in described:
            values: dict[str, object] = {
                "place": None if entry.place is None else os.fsencode(entry.place),
                "mark": candidate.mark,
                "structure": None,
                "alphas": _compact(entry.alphas),
                "scales": _compact(entry.scales),
            }
            if entry.headers:
                hash, text = self._structure(entry.headers)
                structures[hash], values["structure"] = text, hash
            for name in ("ranks", "dtypes", "extras", "notes"):
                values[name] = _json(getattr(entry, name)) if getattr(entry, name) else None
            files.append([values[name] if name in values else getattr(entry, name) for name in COLUMNS])
            metadata, sidecar = entry.details.metadata, entry.details.sidecar
            details.append((entry.path, _json(metadata), sidecar.to_json(), _searchable(entry)))
        marks = ", ".join("?" * len(COLUMNS))
        with self.connection:
            self.connection.executemany("INSERT OR IGNORE INTO structure VALUES (?, ?)", structures.items())
            self.connection.executemany(f"INSERT OR REPLACE INTO file ({', '.join(COLUMNS)}) VALUES ({marks})", files)
            self.connection.executemany("INSERT OR REPLACE INTO details VALUES (?, ?, ?, ?)", details)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove rows, and the structures that no file has any more."""
        gone = [(path,) for path in paths]
        with self.connection:
            self.connection.executemany("DELETE FROM file WHERE path = ?", gone)
            self.connection.executemany("DELETE FROM details WHERE path = ?", gone)
            self.connection.execute("DELETE FROM structure WHERE hash NOT IN (SELECT structure FROM file)")

    def _tuple(self, text: str | None) -> tuple[Any, ...]:
        if text is None:
            return ()
        values = self._tuples.get(text)
        if values is None:
            values = self._tuples[text] = tuple(orjson.loads(text))
        return values

    def _each(self, text: str | None, count: int) -> tuple[Any, ...]:
        values = self._tuples.get((text, count))
        if values is None:
            value = None if text is None else orjson.loads(text)
            values = shared(tuple(value) if isinstance(value, list) else (value,) * count)
            self._tuples[text, count] = values
        return values

    def _load(self, hash: str) -> tuple[ModuleHeader, ...]:
        row = self.connection.execute("SELECT headers FROM structure WHERE hash = ?", (hash,)).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"it lacks the structure {hash}")
        headers = shared(tuple(map(ModuleHeader.from_dict, orjson.loads(row[0]))))
        self._headers[hash] = headers
        return headers

    def _structure(self, headers: tuple[ModuleHeader, ...]) -> tuple[str, str]:
        """(hash, JSON) under which a structure is kept."""
        known = self._written.get(id(headers))
        if known is None:
            text = _json([asdict(header) for header in headers])
            known = hashlib.sha256(text.encode()).hexdigest()[:32], text, headers
            self._written[id(headers)] = known  # with the headers, so that their id stays their own
        return known[:2]


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _compact(values: tuple[float | None, ...]) -> str | None:
    """One value where all are equal, as they mostly are."""
    if not values or values.count(values[0]) == len(values):
        return _json(values[0]) if values else None
    return _json(values)


def _searchable(entry: Entry) -> str:
    words = [entry.path, entry.base_model or "", entry.suggested_base or "", entry.dialect or "", entry.reason or ""]
    for value in entry.details.metadata.values():
        text = value if isinstance(value, str) else _json(value)
        if len(text) <= LONGEST_VALUE:
            words.append(text)
    words.append(entry.details.sidecar.text)
    return "\n".join(words).lower()
