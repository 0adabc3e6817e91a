"""Entries as rows of an index, made when they are looked at."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import orjson

from lol_core.collections.entry import Entry, content_of, shared
from lol_core.collections.schema import COLUMNS, FORM, Row
from lol_core.collections.sidecar import NONE, Sidecar
from lol_core.core.header import ModuleHeader

_REASON, _FORM = COLUMNS.index("reason"), COLUMNS.index("form")


class StoredDetails:
    """The details of one file, read from the index when they are wanted; empty when they are no longer there."""

    __slots__ = ("_content", "_index", "_path")

    def __init__(self, index: Path, path: str):
        self._index, self._path = index, path
        self._content: tuple[Mapping[str, Any], Sidecar] | None = None

    def _read(self) -> tuple[Mapping[str, Any], Sidecar]:
        if self._content is None:
            row = None
            if self._index.is_file():
                with closing(sqlite3.connect(self._index, timeout=60)) as connection:
                    statement = "SELECT metadata, sidecar FROM details WHERE path = ?"
                    row = connection.execute(statement, (self._path,)).fetchone()
            self._content = (orjson.loads(row[0]), Sidecar.from_json(row[1])) if row else ({}, NONE)
        return self._content

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._read()[0]

    @property
    def sidecar(self) -> Sidecar:
        return self._read()[1]


class Decoder:
    """Rows as entries, for as long as they are wanted. What many rows share becomes one object.

    forms: hash → the columns FORM; structures: hash → JSON of the headers.
    """

    def __init__(self, index: Path, forms: Mapping[str, Row], structures: Mapping[str, str]):
        self.index, self.forms, self.structures = index, forms, structures
        self._tuples: dict[object, tuple[Any, ...]] = {}
        self._headers: dict[str | None, tuple[ModuleHeader, ...]] = {None: ()}
        self._decoded: dict[str, dict[str, Any]] = {}

    def entry(self, row: Row) -> Entry:
        path, size, mtime, digest, reason, place, _, form = row
        decoded = self._decoded.get(form)
        if decoded is None:
            decoded = self._decoded[form] = self._fields(self.forms[form])
        where = None if place is None else os.fsdecode(place)
        return Entry(path, size, mtime, digest, reason, place=where, details=StoredDetails(self.index, path), **decoded)

    def _fields(self, form: Row) -> dict[str, Any]:
        """What an Entry takes from a form."""
        fields = dict(zip(FORM, form, strict=True))
        structure, modules = fields.pop("structure"), fields["modules"]
        headers = self._headers.get(structure)
        if headers is None:
            headers = shared(tuple(map(ModuleHeader.from_dict, orjson.loads(self.structures[structure]))))
            self._headers[structure] = headers
        fields |= {name: self._tuple(fields[name]) for name in ("ranks", "dtypes", "extras", "notes")}
        return (
            fields | {name: self._each(fields[name], modules) for name in ("alphas", "scales")} | {"headers": headers}
        )

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


class Entries(Sequence[Entry]):
    """Entries that are made from their rows when they are looked at: 100,000 cost no more than their rows."""

    def __init__(self, rows: Sequence[Row], decoder: Decoder):
        self.rows, self._decoder = rows, decoder

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> Entries: ...
    def __getitem__(self, place: int | slice) -> Entry | Entries:
        if isinstance(place, slice):
            return self.of(self.rows[place])
        return self._decoder.entry(self.rows[place])

    def __iter__(self) -> Iterator[Entry]:
        return map(self._decoder.entry, self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and self.rows == other.rows

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def of(self, rows: Sequence[Row]) -> Entries:
        """Of some of these rows."""
        return Entries(rows, self._decoder)

    @property
    def database(self) -> Path:
        """The SQLite file that the rows come from."""
        return self._decoder.index

    @cached_property
    def ids(self) -> list[str]:
        return [row[0] for row in self.rows]

    @property
    def contents(self) -> list[str]:
        """The `content` of each."""
        columns = ("digest", "scales", "size", "mtime")
        return [*map(content_of, *map(self.column, columns))]

    def column(self, name: str) -> list[Any]:
        """A column of every row, as it is stored: of the table `file` or `form`."""
        if name in COLUMNS:
            place = COLUMNS.index(name)
            return [row[place] for row in self.rows]
        of = {hash: form[FORM.index(name)] for hash, form in self._decoder.forms.items()}
        return [of[row[_FORM]] for row in self.rows]

    def parted(self) -> tuple[Entries, Entries]:
        """Those that could be read, and those that were refused."""
        parts: tuple[list[Row], list[Row]] = ([], [])
        for row in self.rows:
            parts[row[_REASON] is not None].append(row)
        return self.of(parts[0]), self.of(parts[1])


class ById(Mapping[str, Entry]):
    """The same entries by their ids."""

    def __init__(self, entries: Entries):
        self._entries = entries
        self._places = {id: place for place, id in enumerate(entries.ids)}

    def __getitem__(self, id: str) -> Entry:
        return self._entries[self._places[id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, id: object) -> bool:
        return id in self._places
