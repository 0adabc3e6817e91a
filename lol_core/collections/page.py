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

SEARCHING = 5.0
"""Seconds that a regular expression may take over all LoRAs."""
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
    regular expression between slashes. Raises ZooError when it is none.
    """
    by, direction = _ORDERED.get(order, f"file.{order}"), "DESC" if descending else "ASC"
    joined = _JOINED if order in _ORDERED else ""
    ordered = f"ORDER BY {by} {direction}, file.path LIMIT ? OFFSET ?"
    with _text_condition(rows.connection, query) as (text, texts):
        where, values = _where(filters)
        if text:
            where += f" AND file.path IN (SELECT path FROM search WHERE {text})"
            values += texts
        total = rows.connection.execute(f"SELECT COUNT(*) FROM file {where}", values).fetchone()[0]
        page = rows.entries(f"{joined} {where} {ordered}", (*values, limit, offset))
    return Page(tuple(page), total)


def matching(connection: sqlite3.Connection, query: str, filters: Filters) -> set[str]:
    """The ids of all that a query and filters let through. Raises ZooError as `select` does."""
    where, values = _where(filters)
    with _text_condition(connection, query) as (text, texts):
        tables = "search CROSS JOIN file USING (path)" if text else "file"  # the texts first, and only their files
        statement = f"SELECT file.path FROM {tables} {where}{f' AND {text}' if text else ''}"
        return {path for (path,) in connection.execute(statement, (*values, *texts))}


@contextmanager
def _text_condition(connection: sqlite3.Connection, query: str) -> Iterator[tuple[str, list[object]]]:
    """The condition on the text of a LoRA and its values, to be asked meanwhile; none for no query. Raises ZooError
    when a regular expression is none, or takes too long.
    """
    if pattern := _EXPRESSION.fullmatch(query.strip()):
        matcher = _Matcher(pattern[1])
        connection.create_function("regexp", 2, matcher, deterministic=True)
        yield "search.text REGEXP ?", [pattern[1]]
        matcher.check()
    else:
        words = query.lower().split()
        yield " AND ".join(["instr(search.text, ?)"] * len(words)), [*words]


def _where(filters: Filters) -> tuple[str, list[object]]:
    """The condition of filters and its values."""
    conditions = [f"file.reason IS {'NOT ' if filters.refused else ''}NULL"]
    values: list[object] = []
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


class _Matcher:
    """What SQLite calls for REGEXP: whether an expression matches a text, as long as time is left. What is raised in it
    SQLite does not pass on. Raises ZooError when the expression is none.
    """

    def __init__(self, expression: str):
        try:
            self.search = regex.compile(expression, regex.IGNORECASE).search
        except regex.error as error:
            raise ZooError(
                f"/{expression}/ is no regular expression ({error}). Without the slashes its words are searched."
            ) from error
        self.expression, self.end = expression, time.monotonic() + SEARCHING
        self.late = False

    def __call__(self, _: str, text: str) -> bool:
        left = self.end - time.monotonic()
        self.late = self.late or left <= 0
        try:
            return not self.late and self.search(text, timeout=left) is not None
        except TimeoutError:
            self.late = True
            return False

    def check(self) -> None:
        """Raises ZooError when time ran out."""
        if self.late:
            raise ZooError(
                f"/{self.expression}/ takes more than {SEARCHING:g} s among these LoRAs. Search for words, or for an"
                " expression without repetitions within repetitions."
            )


def value_counts(connection: sqlite3.Connection, what: Counted) -> dict[object, int]:
    """How many readable files have each dialect, base, rank or tag, the most frequent first."""
    table, value = _VALUES[what]
    statement = f"SELECT {value}, COUNT(*) FROM {table} WHERE file.reason IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    return dict(connection.execute(statement).fetchall())
