"""The tables of an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Sized
from typing import Any

SCHEMA = 6
TABLES = """
CREATE TABLE structure (hash TEXT PRIMARY KEY, headers TEXT) WITHOUT ROWID;
CREATE TABLE form (hash TEXT PRIMARY KEY, dialect TEXT, base_model TEXT, suggested_base TEXT, modules INTEGER,
    ranks TEXT, parameters INTEGER, dtypes TEXT, structure TEXT, alphas TEXT, scales TEXT, extras TEXT, notes TEXT
    ) WITHOUT ROWID;
CREATE TABLE file (path TEXT PRIMARY KEY, place BLOB, size INTEGER, mtime REAL, mark TEXT, digest TEXT, reason TEXT,
    form TEXT);
CREATE TABLE details (path TEXT PRIMARY KEY, metadata TEXT, sidecar TEXT);
CREATE TABLE search (path TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID;
"""
"""form: what many headers say alike, kept once. search.text: what a search looks through, in lower case."""
COLUMNS = ("path", "size", "mtime", "digest", "reason", "place", "mark", "form")
"""Of the table `file`, which are read for every file of a collection: few, as they are what opening it waits for."""
FORM = tuple(
    "dialect base_model suggested_base modules ranks parameters dtypes structure alphas scales extras notes".split()
)
"""Of the table `form` after its hash, in the order of an Entry's fields."""
SELECTED = ", ".join(f"file.{column}" for column in COLUMNS)
Row = tuple[Any, ...]


def marks(values: Sized) -> str:
    """Places for so many values in a statement."""
    return ", ".join("?" * len(values))


def make_tables(connection: sqlite3.Connection) -> None:
    """Replace the tables of another version. Of two processes that come at once, one does it."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
        for table in ("files", "file", "form", "structure", "details", "search"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in filter(str.strip, TABLES.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.commit()
