"""Searching, filtering, sorting and paging an index, in SQL, so that no other entry is made than those of the page."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from lol_core.collections.entry import Entry
from lol_core.collections.rows import Rows
from lol_core.errors import ZooError


class Order(StrEnum):
    """What a page may be sorted by: columns of the table of files."""

    PATH = "path"
    SIZE = "size"
    MODIFIED = "mtime"
    DIALECT = "dialect"
    BASE = "base"
    MODULES = "modules"
    PARAMETERS = "parameters"


@dataclass(frozen=True)
class Filters:
    """Which files to list; of each kind of value any of those named, where some are. bases: the base model suggested
    by the shapes, or else the one that the file names; tags: of the sidecar; refused: those that could not be read,
    instead of those that could.
    """

    dialects: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class Page:
    """Some of the entries that were asked for, and how many there are in all."""

    entries: tuple[Entry, ...]
    total: int


Counted = Literal["dialect", "base", "rank", "tag"]

_EXPRESSION = re.compile(r"/(.+)/")
_BASE = "COALESCE(file.suggested_base, file.base_model, 'unknown')"
_VALUES = {
    "dialect": ("file", "dialect"),
    "base": ("file", _BASE),
    "rank": ("file, json_each(file.ranks)", "json_each.value"),
    "tag": ("file JOIN details USING (path), json_each(details.sidecar, '$.tags')", "json_each.value"),
}


def select(
    rows: Rows, query: str, filters: Filters, *, order: Order, descending: bool, limit: int, offset: int
) -> Page:
    """A page. query: words that must all occur in the path, the names in the header, or the sidecar, in any case; or a
    regular expression between slashes. Raises ZooError when it is none.
    """
    where, values = _where(rows.connection, query, filters)
    total = rows.connection.execute(f"SELECT COUNT(*) FROM file {where}", values).fetchone()[0]
    by = _BASE if order is Order.BASE else f"file.{order}"
    direction = "DESC" if descending else "ASC"
    page = rows.fetch(f"{where} ORDER BY {by} {direction}, file.path LIMIT ? OFFSET ?", (*values, limit, offset))
    return Page(tuple(rows.entries(page)), total)


def matching(connection: sqlite3.Connection, query: str, filters: Filters) -> set[str]:
    """The ids of all that a query and filters let through. Raises ZooError as `select` does."""
    text, texts = _text_condition(connection, query)
    where, values = _where(connection, "", filters)
    tables = "search CROSS JOIN file USING (path)" if text else "file"  # the texts first, and only their files
    statement = f"SELECT file.path FROM {tables} {where}{f' AND {text}' if text else ''}"
    return {path for (path,) in connection.execute(statement, (*values, *texts))}


def _text_condition(connection: sqlite3.Connection, query: str) -> tuple[str, list[object]]:
    """The condition on the text of a LoRA and its values; none for no query."""
    if pattern := _EXPRESSION.fullmatch(query.strip()):
        connection.create_function("regexp", 2, _matcher(pattern[1]), deterministic=True)
        return "search.text REGEXP ?", [pattern[1]]
    words = query.lower().split()
    return " AND ".join(["instr(search.text, ?)"] * len(words)), [*words]


def _where(connection: sqlite3.Connection, query: str, filters: Filters) -> tuple[str, list[object]]:
    """The condition and its values."""
    conditions = [f"file.reason IS {'NOT ' if filters.refused else ''}NULL"]
    values: list[object] = []
    text, texts = _text_condition(connection, query)
    if text:
        conditions.append(f"file.path IN (SELECT path FROM search WHERE {text})")
        values += texts
    for column, chosen in (("file.dialect", filters.dialects), (_BASE, filters.bases)):
        if chosen:
            conditions.append(f"{column} IN ({_marks(chosen)})")
            values += chosen
    if filters.ranks:
        conditions.append(f"EXISTS (SELECT 1 FROM json_each(file.ranks) WHERE value IN ({_marks(filters.ranks)}))")
        values += filters.ranks
    if filters.tags:
        tagged = (
            f"SELECT details.path FROM details, json_each(sidecar, '$.tags') WHERE value IN ({_marks(filters.tags)})"
        )
        conditions.append(f"file.path IN ({tagged})")
        values += filters.tags
    return f"WHERE {' AND '.join(conditions)}", values


def _matcher(expression: str) -> Callable[[str, str], bool]:
    """What SQLite calls for REGEXP. Raises ZooError when the expression is none."""
    try:
        search = re.compile(expression, re.IGNORECASE).search
    except re.error as error:
        raise ZooError(
            f"/{expression}/ is no regular expression ({error}). Without the slashes its words are searched."
        ) from error
    return lambda _, text: search(text) is not None


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def value_counts(connection: sqlite3.Connection, what: Counted) -> dict[object, int]:
    """How many readable files have each dialect, base, rank or tag, the most frequent first."""
    table, value = _VALUES[what]
    statement = f"SELECT {value}, COUNT(*) FROM {table} WHERE file.reason IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    return dict(connection.execute(statement).fetchall())
