"""Writing entries into an index, and finding their rows."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import orjson

from lol_core.collections.entries import Decoder, Entries
from lol_core.collections.entry import Entry, compact
from lol_core.collections.schema import COLUMNS, FORM, SELECTED, marks
from lol_core.collections.walk import Candidate
from lol_core.core.header import ModuleHeader

_FORM, _STRUCTURE = COLUMNS.index("form"), FORM.index("structure")
LONGEST_VALUE = 300
"""Characters of a metadata value that a search still looks into: names and prompts, no dumps."""


class Rows:
    """The rows of an index, over one connection."""

    def __init__(self, index: Path, connection: sqlite3.Connection):
        self.index, self.connection = index, connection
        self._written: dict[int, tuple[str, str, tuple[ModuleHeader, ...]]] = {}

    def entries(self, where: str = "", values: Iterable[object] = ()) -> Entries:
        """Entries as they are at one moment, whoever writes meanwhile. where: what follows `FROM file`."""
        found = "WHERE hash IN (SELECT value FROM json_each(?))"
        with self.connection:
            self.connection.execute("BEGIN")
            rows = self.connection.execute(f"SELECT {SELECTED} FROM file {where}", tuple(values)).fetchall()
            hashes = _json(list({row[_FORM] for row in rows}))
            forms = {form[0]: form[1:] for form in self.connection.execute(f"SELECT * FROM form {found}", (hashes,))}
            hashes = _json([hash for form in forms.values() if (hash := form[_STRUCTURE])])
            structures = dict(self.connection.execute(f"SELECT hash, headers FROM structure {found}", (hashes,)))
        return Entries(rows, Decoder(self.index, forms, structures))

    def write(self, described: Iterable[tuple[Candidate, Entry]]) -> None:
        """Insert or replace rows, all or none."""
        files, details, texts, forms, structures = [], [], [], {}, {}
        for candidate, entry in described:
            values: dict[str, object] = {
                "structure": None,
                "alphas": compact(entry.alphas),
                "scales": compact(entry.scales),
            }
            if entry.headers:
                hash, text = self._structure(entry.headers)
                structures[hash], values["structure"] = text, hash
            for name in ("ranks", "dtypes", "extras", "notes"):
                values[name] = _json(getattr(entry, name)) if getattr(entry, name) else None
            form = tuple(values[name] if name in values else getattr(entry, name) for name in FORM)
            hash = _hash(_json(form))
            forms[hash] = (hash, *form)
            place = None if entry.place is None else os.fsencode(entry.place)
            own = entry.path, entry.size, entry.mtime, entry.digest, entry.reason
            files.append((*own, place, candidate.mark, hash))
            metadata, sidecar = entry.details.metadata, entry.details.sidecar
            details.append((entry.path, _json(metadata), sidecar.to_json()))
            texts.append((entry.path, _searchable(entry)))
        columns = ", ".join(COLUMNS)
        with self.connection:
            self.connection.executemany("INSERT OR IGNORE INTO structure VALUES (?, ?)", structures.items())
            self.connection.executemany(f"INSERT OR IGNORE INTO form VALUES ({marks(('hash', *FORM))})", forms.values())
            self.connection.executemany(f"INSERT OR REPLACE INTO file ({columns}) VALUES ({marks(COLUMNS)})", files)
            self.connection.executemany("INSERT OR REPLACE INTO details VALUES (?, ?, ?)", details)
            self.connection.executemany("INSERT OR REPLACE INTO search VALUES (?, ?)", texts)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove rows, and the forms and structures that no file has any more."""
        gone = [(path,) for path in paths]
        with self.connection:
            for table in ("file", "details", "search"):
                self.connection.executemany(f"DELETE FROM {table} WHERE path = ?", gone)
            self.connection.execute("DELETE FROM form WHERE hash NOT IN (SELECT form FROM file)")
            self.connection.execute(
                "DELETE FROM structure WHERE hash NOT IN (SELECT structure FROM form WHERE structure IS NOT NULL)"
            )

    def _structure(self, headers: tuple[ModuleHeader, ...]) -> tuple[str, str]:
        """(hash, JSON) under which a structure is kept."""
        known = self._written.get(id(headers))
        if known is None:
            text = _json(headers)
            known = _hash(text), text, headers
            self._written[id(headers)] = known  # with the headers, so that their id stays their own
        return known[:2]


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _searchable(entry: Entry) -> str:
    words = [entry.path, entry.base_model or "", entry.suggested_base or "", entry.dialect or "", entry.reason or ""]
    for value in entry.details.metadata.values():
        text = value if isinstance(value, str) else _json(value)
        if len(text) <= LONGEST_VALUE:
            words.append(text)
    words.append(entry.details.sidecar.text)
    return "\n".join(words).lower()
