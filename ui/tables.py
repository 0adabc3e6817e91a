"""Tables on a page: with filters made of their columns, with long texts in full, and taken along as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui.choice import look_at_link
from ui.keys import key
from ui.plain import plain

NOT_KNOWN = "not known"
MAX_WRAPPED = 100
PAGES = 160
"""Pixels of where a page is chosen."""
ENCODED_AT_ONCE = 5000
"""Rows of a table that are written as CSV in some hundredths of a second."""
STEPS = 500
"""Places of a slider."""
FEW_VALUES = 6
"""A column of numbers with no more values than this is filtered by value, not by range."""


def show(table: pd.DataFrame, name: str, *, index: bool = False, **options: Any) -> Any:
    """A table on a page, which says of what is missing that it is not known. options: of `st.dataframe`."""
    return st.dataframe(table, hide_index=not index, key=key(name), placeholder=NOT_KNOWN, **options)


def numbers(format: str, names: Iterable[str]) -> dict[str, Any]:
    """The configuration of columns of numbers, for `show`."""
    return {name: st.column_config.NumberColumn(format=format) for name in names}


def download(
    table: pd.DataFrame | Callable[[], pd.DataFrame], name: str, *, index: bool = False, label: str = "Download as CSV"
) -> None:
    """A button for a table as CSV. What is long, or has to be made first, is encoded when it is asked for; what is
    short at once, since a click is lost on a file that a rerun of the page has just put off anew.
    """

    def encoded() -> str:
        return (table() if callable(table) else table).to_csv(index=index)

    st.download_button(
        label,
        encoded if callable(table) or len(table) > ENCODED_AT_ONCE else encoded(),
        f"{name}.csv",
        "text/csv",
        icon=":material/download:",
        key=key(f"{name}_download"),
    )


def wrapped(table: pd.DataFrame, name: str) -> None:
    """A table whose long texts are shown in full, a page at a time, and all of it as CSV."""
    shown = table.iloc[paged(len(table), MAX_WRAPPED, f"{name}_page")]
    st.table(shown.map(lambda cell: plain(cell) if isinstance(cell, str) else cell).set_index("path"))
    download(table, name)


def paged(count: int, size: int, name: str) -> slice:
    """The rows of the page that is chosen, of so many in all; nothing is to be chosen where they are one page. Of a
    number that is no page those of the nearest, which is said.
    """
    pages = -(-count // size)
    label = f"Page, of {pages:,}"
    asked = st.number_input(label, value=1, key=key(f"{name}_{pages}"), width=PAGES) if pages > 1 else 1
    page = min(max(asked, 1), max(pages, 1))
    if page != asked:
        st.caption(f"There is no page {asked:,}: this is page {page:,}.")
    return slice((page - 1) * size, page * size)


def filters(columns: Mapping[str, Callable[[], pd.Series]], ids: list[str], every: list[str]) -> np.ndarray:
    """Which LoRAs pass the filters that are chosen among the columns: ranges of numbers, values of the rest. (ids,).

    every: the whole collection, whose values are offered, so that a filter stays as it is when a search leaves fewer.
    """
    look_at_link("by", "filter", columns)
    by = st.multiselect(
        "Filter by",
        list(columns),
        key=key("by"),
        bind="query-params",
        placeholder="a label, the size, the norm, a prediction",
    )
    keep = np.ones(len(every), bool)
    for column, place in zip(by, st.columns(max(1, min(len(by), 4))) * len(by), strict=False):
        values = columns[column]().reindex(every)
        low, high = _ends(values)
        keep &= _in_range(column, values, (low, high), place) if low < high else _among(column, values, place)
    if not by:
        return np.ones(len(ids), bool)
    passing = set(compress(every, keep))
    return np.fromiter((id in passing for id in ids), bool, len(ids))


def _ends(values: pd.Series) -> tuple[float, float]:
    """The ends of a slider for a column; 0 and 0 where it is no numbers, few, or such as no slider can have."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= FEW_VALUES:
        return 0.0, 0.0
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    return (low, high) if 0 < (high - low) / STEPS < np.inf else (0.0, 0.0)


def _in_range(column: str, values: pd.Series, ends: tuple[float, float], place: DeltaGenerator) -> np.ndarray:
    low, high = ends
    step, name = (high - low) / STEPS, key(f"range {column}")
    kept = st.session_state.get(name, ends)
    if not low <= kept[0] <= kept[1] <= high:
        del st.session_state[name]  # of a column of that name in another collection
    first, last = place.slider(plain(column), low, high, ends, step, key=name, format="%.4g", persist_state="session")
    numbers, keep = values.to_numpy(np.float64, na_value=np.nan), np.ones(len(values), bool)
    # a thumb at its end leaves nothing out, however the browser rounds
    keep &= numbers >= first if first > low + step / 2 else True
    keep &= numbers <= last if last < high - step / 2 else True
    return keep


def _among(column: str, values: pd.Series, place: DeltaGenerator) -> np.ndarray:
    text, name = values.astype(str).where(values.notna(), "unknown"), key(f"values {column}")
    options = sorted(text.unique())
    if not set(st.session_state.get(name, [])) <= set(options):
        st.session_state[name] = []  # set, not forgotten: the browser shows what it had
    picked = place.multiselect(plain(column), options, key=name, persist_state="session")
    return text.isin(picked).to_numpy() if picked else np.ones(len(text), bool)
