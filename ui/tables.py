"""Tables on a page: with filters made of their columns, with long texts in full, and taken along as CSV."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from ui.keys import key

NOT_KNOWN = "not known"
MAX_WRAPPED = 100
FEW_VALUES = 6
"""A column of numbers with no more values than this is filtered by value, not by range."""


def show(table: pd.DataFrame, name: str, *, index: bool = False, **options: Any) -> Any:
    """A table on a page, which says of what is missing that it is not known. options: of `st.dataframe`."""
    return st.dataframe(table, hide_index=not index, key=key(name), placeholder=NOT_KNOWN, **options)


def numbers(format: str, names: Iterable[str]) -> dict[str, Any]:
    """The configuration of columns of numbers, for `show`."""
    return {name: st.column_config.NumberColumn(format=format) for name in names}


def download(table: pd.DataFrame, name: str, *, index: bool = False) -> None:
    """A button for a table as CSV, encoded when it is asked for."""
    st.download_button(
        "Download as CSV",
        lambda: table.to_csv(index=index),
        f"{name}.csv",
        "text/csv",
        icon=":material/download:",
        key=key(f"{name}_download"),
    )


def wrapped(table: pd.DataFrame, name: str) -> None:
    """A table whose long texts are shown in full, a page at a time, and all of it as CSV."""
    pages = -(-len(table) // MAX_WRAPPED)
    page = st.number_input(f"Page, of {pages}", 1, pages, 1, key=key(f"{name}_page")) if pages > 1 else 1
    st.table(table.iloc[(page - 1) * MAX_WRAPPED : page * MAX_WRAPPED].set_index("path"))
    download(table, name)


def filters(pool: pd.DataFrame) -> np.ndarray:
    """Which rows pass the filters that are chosen among the columns: ranges of numbers, values of the rest. (rows,)."""
    by = st.multiselect(
        "Filter by",
        list(pool.columns),
        key=key("by"),
        bind="query-params",
        placeholder="a label, the size, the norm, a prediction",
    )
    keep = np.ones(len(pool), bool)
    for column, place in zip(by, st.columns(max(1, min(len(by), 4))) * len(by), strict=False):
        values = pool[column]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > FEW_VALUES:
            low, high = float(values.min()), float(values.max())
            chosen = place.slider(column, low, high, (low, high), key=key(f"range {column}"), format="%.4g")
            keep &= values.between(*chosen).to_numpy() if chosen != (low, high) else True
        else:
            text = values.astype(str).where(values.notna(), "unknown")
            picked = place.multiselect(column, sorted(text.unique()), key=key(f"values {column}"))
            keep &= text.isin(picked).to_numpy() if picked else True
    return keep
