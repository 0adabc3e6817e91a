"""The tables of an index."""

from __future__ import annotations

import sqlite3
from typing import Any

SCHEMA = 4
TABLES = """
CREATE TABLE structure (hash TEXT PRIMARY KEY, headers TEXT) WITHOUT ROWID;
CREATE TABLE file (path TEXT PRIMARY KEY, place BLOB, size INTEGER, mtime REAL, mark TEXT, digest TEXT, reason TEXT,
    dialect TEXT, base_model TEXT, suggested_base TEXT, modules INTEGER, ranks TEXT, parameters INTEGER, dtypes TEXT,
    structure TEXT, alphas TEXT, scales TEXT, extras TEXT, notes TEXT);
CREATE TABLE details (path TEXT PRIMARY KEY, metadata TEXT, sidecar TEXT);
CREATE TABLE search (path TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID;
"""
"""search.text: what a search looks through, in lower case."""
COLUMNS = tuple(
    "path size mtime digest reason dialect base_model suggested_base modules ranks parameters dtypes structure alphas"
    " scales extras notes place mark".split()
)
"""Of the table `file`, in the order of an Entry's fields as far as it has them."""
SELECTED = ", ".join(f"file.{column}" for column in COLUMNS)
Row = tuple[Any, ...]


def make_tables(connection: sqlite3.Connection) -> None:
    """Replace the tables of another version. Of two processes that come at once, one does it."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
        for table in ("files", "file", "structure", "details", "search"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in filter(str.strip, TABLES.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.commit()
