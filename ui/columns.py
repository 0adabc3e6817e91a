"""What the LoRAs of a collection can be filtered and sorted by: columns that are made when they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from lol_core.collections.columns import database, values
from lol_core.collections.page import Counted
from lol_core.collections.source import Source
from lol_core.insight.overview import Examination
from lol_core.insight.survey import Survey
from ui.selection import computed

Column = Callable[[], pd.Series]
HEADER = {
    "base model": "base_model",
    "modules": "modules",
    "parameters": "parameters",
    "dtype": "dtypes",
    "size (kB)": "size",
}
"""Column of the table → field of an entry."""


@st.cache_resource(max_entries=16, show_spinner=False)
def _counts(fingerprint: str, what: Counted, _source: Source) -> dict[Any, int]:
    return {value: count for value, count in database(_source).counts(what).items() if value is not None}


def counts_of(source: Source, what: Counted) -> dict[Any, int]:
    """How many LoRAs have each dialect, base or rank, the most frequent first."""
    return _counts(source.fingerprint, what, source)


@st.cache_resource(max_entries=4, show_spinner=False)
def _kinds(fingerprint: str, _source: Source) -> pd.DataFrame:
    names = {
        "dialect": "dialect",
        "base_model": "base model, as claimed",
        "suggested_base": "base model, by shapes",
    }
    table = pd.DataFrame({title: values(_source, field) for field, title in names.items()})
    table = table.fillna({names["base_model"]: "not named", names["suggested_base"]: "unknown"})
    return table.value_counts().rename("LoRAs").reset_index()


def kinds_of(source: Source) -> pd.DataFrame:
    """How many LoRAs there are of each dialect and base model, the most frequent first."""
    return _kinds(source.fingerprint, source)


@st.cache_resource(max_entries=16, show_spinner=False)
def _header(fingerprint: str, name: str, _source: Source) -> pd.Series:
    column = values(_source, HEADER[name])
    return (column / 1000 if name == "size (kB)" else column).rename(name)


@st.cache_resource(max_entries=4, show_spinner=False)
def _norms(fingerprint: str, n_read: int, _surveys: Mapping[str, Survey]) -> pd.Series:
    norms = {id: survey.norm for id, survey in _surveys.items() if survey.problem is None}
    return pd.Series(norms, dtype=float, name="‖ΔW‖")


def _table(table: pd.DataFrame) -> dict[str, Column]:
    def column(name: str) -> Column:
        return lambda: table[name]

    return {str(name): column(str(name)) for name in table if len(table)}


def columns_of(source: Source, surveys: Mapping[str, Survey], examined: Examination | None) -> dict[str, Column]:
    """Name → the column, by id; of two of one name the first."""
    columns: dict[str, Column] = {name: partial(_header, source.fingerprint, name, source) for name in HEADER}
    if surveys:
        columns["‖ΔW‖"] = partial(_norms, source.fingerprint, len(surveys), surveys)
    offered = {name: lambda column=column: column for name, column in computed(source).items()}
    columns = offered | columns
    if examined is not None:
        for table in (examined.runs.to_frame(), examined.rank_used.to_frame(), examined.claims):
            columns = _table(table) | columns
    labels = _table(source.labels)
    return labels | {name: column for name, column in columns.items() if name not in labels}
