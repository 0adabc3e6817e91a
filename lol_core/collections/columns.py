"""What is known of all LoRAs of a collection, from the rows of its index where it has one: no object for each."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import orjson
import pandas as pd

from lol_core.collections.entries import Entries
from lol_core.collections.entry import Entry, KnownDetails
from lol_core.collections.index import Database
from lol_core.collections.rows import Rows
from lol_core.collections.sidecar import Sidecar
from lol_core.collections.source import Source
from lol_core.collections.walk import Candidate

BLOCK = 500
"""Entries whose details are read at once."""
LISTS = ("ranks", "dtypes")
"""Columns that hold several values of each LoRA."""


def database(source: Source) -> Database:
    """The index of a source: its own, or one that is made of its entries. Raises ZooError when it cannot be used."""
    made = Database(source.store())
    if not isinstance(source.entries, Entries):
        with made.connection() as connection:
            if not connection.execute("SELECT EXISTS (SELECT 1 FROM file)").fetchone()[0]:
                candidates = (Candidate(entry.path, entry.path, entry.size, entry.mtime) for entry in source.entries)
                Rows(made.path, connection).write(zip(candidates, source.entries, strict=True))
    return made


def contents(source: Source) -> Sequence[str]:
    """What tells the update of each LoRA from others, in order: see `Entry.content`."""
    if isinstance(source.entries, Entries):
        return source.entries.contents
    return [entry.content for entry in source.entries]


def content_by_id(source: Source) -> dict[str, str]:
    """id → what tells its update from others."""
    return dict(zip(source.ids, contents(source), strict=True))


def size(source: Source) -> int:
    """Bytes of all LoRAs together."""
    if isinstance(source.entries, Entries):
        return sum(source.entries.column("size"))
    return sum(entry.size for entry in source.entries)


def detailed(source: Source, ids: Sequence[str] | None = None) -> Iterator[Entry]:
    """Some entries, or all, with their metadata and sidecars read many at a time."""
    ids = source.ids if ids is None else ids
    if not isinstance(source.entries, Entries) or not source.entries.database.is_file():
        yield from (source.by_id[id] for id in ids)
        return
    statement = "SELECT path, metadata, sidecar FROM details WHERE path IN (SELECT value FROM json_each(?))"
    with closing(sqlite3.connect(source.entries.database, timeout=60)) as connection:
        for start in range(0, len(ids), BLOCK):
            block = ids[start : start + BLOCK]
            rows = connection.execute(statement, (orjson.dumps(block).decode(),))
            known = {path: KnownDetails(orjson.loads(data), Sidecar.from_json(claims)) for path, data, claims in rows}
            for id in block:
                entry = source.by_id[id]
                yield replace(entry, details=known[id]) if id in known else entry


def structures(source: Source, ids: Sequence[str]) -> list[Entry]:
    """The first of these LoRAs with each list of modules: what holds for the modules of these holds for all."""
    if isinstance(source.entries, Entries):
        structure = dict(zip(source.ids, source.entries.column("structure"), strict=True))
        first = {structure[id]: id for id in reversed(ids)}
        kept = set(first.values())
        return [source.by_id[id] for id in ids if id in kept]
    entries: dict[int, Entry] = {}
    for id_ in ids:
        entry = source.by_id[id_]
        entries.setdefault(id(entry.headers), entry)
    return list(entries.values())


def values(source: Source, column: str) -> pd.Series:
    """A field of `Entry` of every LoRA, by id: one that is a text or a number, or the ranks or dtypes as a text."""
    if isinstance(source.entries, Entries):
        stored = source.entries.column(column)
        if column in LISTS:
            texts = {text: _joined(orjson.loads(text or "[]")) for text in set(stored)}
            stored = [texts[text] for text in stored]
    else:
        stored = [getattr(entry, column) for entry in source.entries]
        stored = [_joined(value) for value in stored] if column in LISTS else stored
    return pd.Series(stored, index=source.ids, name=column)


def _joined(several: Sequence[object]) -> str:
    return ", ".join(map(str, several))
