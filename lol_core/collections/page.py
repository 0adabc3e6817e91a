"""Searching, filtering, sorting and paging an index, in SQL, so that no other entry is made than those of the page."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import regex

from lol_core.collections.entry import Entry
from lol_core.collections.rows import Rows
from lol_core.collections.schema import marks
from lol_core.errors import ZooError
from lol_core.formats.expressions import compiled


class Order(StrEnum):
    """What a page may be sorted by."""

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

PATIENCE = 2.0
PACE = 2e-4
"""Seconds that a regular expression may take for all texts together, and for each of them besides."""
_EXPRESSION = re.compile(r"/(.+)/")
_BASE = "COALESCE(form.suggested_base, form.base_model, 'unknown')"
_JOINED = "CROSS JOIN form ON form.hash = file.form"
"""To `file`, whose rows come first, in the order that is wanted."""
_ORDERED = {
    Order.DIALECT: "form.dialect",
    Order.BASE: _BASE,
    Order.MODULES: "form.modules",
    Order.PARAMETERS: "form.parameters",
}
_VALUES = {
    "dialect": (f"file {_JOINED}", "form.dialect"),
    "base": (f"file {_JOINED}", _BASE),
    "rank": (f"file {_JOINED}, json_each(form.ranks)", "json_each.value"),
    "tag": ("file JOIN details USING (path), json_each(details.sidecar, '$.tags')", "json_each.value"),
}


def select(
    rows: Rows, query: str, filters: Filters, *, order: Order, descending: bool, limit: int, offset: int
) -> Page:
    """A page. query: words that must all occur in the path, the names in the header, or the sidecar, in any case; or a
    regular expression between slashes. Raises ZooError when it is none, or takes too long.
    """
    where, values = _where(query, filters)
    by, direction = _ORDERED.get(order, f"file.{order}"), "DESC" if descending else "ASC"
    joined = _JOINED if order in _ORDERED else ""
    ordered = f"ORDER BY {by} {direction}, file.path LIMIT ? OFFSET ?"
    with _expression(rows.connection, query):
        total = rows.connection.execute(f"SELECT COUNT(*) FROM file {where}", values).fetchone()[0]
        page = rows.entries(f"{joined} {where} {ordered}", (*values, limit, offset))
    return Page(tuple(page), total)


def matching(connection: sqlite3.Connection, query: str, filters: Filters) -> set[str]:
    """The ids of all that a query and filters let through. Raises ZooError as `select` does."""
    text, texts = _text_condition(query)
    where, values = _where("", filters)
    tables = "search CROSS JOIN file USING (path)" if text else "file"  # the texts first, and only their files
    statement = f"SELECT file.path FROM {tables} {where}{f' AND {text}' if text else ''}"
    with _expression(connection, query):
        return {path for (path,) in connection.execute(statement, (*values, *texts))}


def _text_condition(query: str) -> tuple[str, list[object]]:
    """The condition on the text of a LoRA and its values; none for no query."""
    if pattern := _EXPRESSION.fullmatch(query.strip()):
        return "search.text REGEXP ?", [pattern[1]]
    words = query.lower().split()
    return " AND ".join(["instr(search.text, ?)"] * len(words)), [*words]


def _where(query: str, filters: Filters) -> tuple[str, list[object]]:
    """The condition and its values."""
    conditions = [f"file.reason IS {'NOT ' if filters.refused else ''}NULL"]
    values: list[object] = []
    text, texts = _text_condition(query)
    if text:
        conditions.append(f"file.path IN (SELECT path FROM search WHERE {text})")
        values += texts
    ranked = "EXISTS (SELECT 1 FROM json_each(form.ranks) WHERE value {})"
    for condition, chosen in (
        ("form.dialect {}", filters.dialects),
        (_BASE + " {}", filters.bases),
        (ranked, filters.ranks),
    ):
        if chosen:
            among = condition.format(f"IN ({marks(chosen)})")
            conditions.append(f"file.form IN (SELECT hash FROM form WHERE {among})")
            values += chosen
    if filters.tags:
        tagged = (
            f"SELECT details.path FROM details, json_each(sidecar, '$.tags') WHERE value IN ({marks(filters.tags)})"
        )
        conditions.append(f"file.path IN ({tagged})")
        values += filters.tags
    return f"WHERE {' AND '.join(conditions)}", values


@contextmanager
def _expression(connection: sqlite3.Connection, query: str) -> Iterator[None]:
    """While SQLite searches, by a regular expression or not. Raises ZooError when it is none, or takes too long."""
    if (pattern := _EXPRESSION.fullmatch(query.strip())) is None:
        yield
        return
    try:
        matcher = _Matcher(pattern[1])
    except ValueError as error:
        raise ZooError(
            f"{pattern[0]} is no regular expression ({error}). Without the slashes its words are searched."
        ) from error
    connection.create_function("regexp", 2, matcher, deterministic=True)
    try:
        yield
    except sqlite3.OperationalError as error:
        if matcher.slow:
            raise ZooError(
                f"{pattern[0]} takes too long. Simplify it; without the slashes its words are searched."
            ) from error
        raise


class _Matcher:
    """What SQLite calls for REGEXP. slow: whether it gave up, of which SQLite does not say why."""

    def __init__(self, expression: str):
        self.search = compiled(expression, regex.IGNORECASE).search
        self.slow = False
        self.deadline = time.monotonic() + PATIENCE

    def __call__(self, _: str, text: str) -> bool:
        self.deadline += PACE
        try:
            if (left := self.deadline - time.monotonic()) > 0:
                return self.search(text, timeout=left) is not None
        except TimeoutError:
            pass
        self.slow = True
        raise TimeoutError


def value_counts(connection: sqlite3.Connection, what: Counted) -> dict[object, int]:
    """How many readable files have each dialect, base, rank or tag, the most frequent first."""
    table, value = _VALUES[what]
    statement = f"SELECT {value}, COUNT(*) FROM {table} WHERE file.reason IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    return dict(connection.execute(statement).fetchall())
