"""The LoRAs of a collection that a search and filters let through, in the order that is chosen, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lol_core.collections.columns import database
from lol_core.collections.page import Counted, Filters
from lol_core.collections.source import Source
from lol_core.errors import ZooError
from lol_core.insight.overview import Examination, overview
from lol_core.insight.survey import Survey
from ui.columns import Column, counts_of
from ui.jobs import sentence
from ui.keys import key
from ui.selection import visible
from ui.tables import filters

PAGE = 500
"""LoRAs of a table at once."""


def passing(source: Source, columns: Mapping[str, Column]) -> list[str]:
    """The LoRAs that pass the search and the filters, in the collection's order."""
    titles: dict[Counted, str] = {"dialect": "Dialect", "base": "Base model", "rank": "Rank"}
    kinds = {what: sorted(counts_of(source, what)) for what in titles}
    apart = [what for what, values in kinds.items() if len(values) > 1]  # one value of all lets every LoRA through
    search, *places = st.columns([3, *(3 if what == "base" else 2 for what in apart)])
    text = search.text_input(
        "Search",
        key=key("q"),
        bind="query-params",
        placeholder="name, path, trigger word, metadata; or /regex/",
        live="100ms",
    )
    chosen: dict[Counted, tuple[Any, ...]] = dict.fromkeys(titles, ())
    for what, place in zip(apart, places, strict=True):
        chosen[what] = tuple(place.multiselect(titles[what], kinds[what], key=key(what), bind="query-params"))
    ids = visible(source)
    try:
        if text.strip() or any(chosen.values()):
            filtered = Filters(dialects=chosen["dialect"], bases=chosen["base"], ranks=chosen["rank"])
            allowed = database(source).matching(text, filtered)
            ids = [id for id in ids if id in allowed]
    except ZooError as error:
        st.error(sentence(error))
    return list(compress(ids, filters(columns, ids, source.ids)))


def ordered(ids: list[str], columns: Mapping[str, Column], line: DeltaGenerator) -> list[str]:
    """LoRAs on more than one page in the order that is chosen; a page is sorted by a click on a column."""
    if len(ids) <= PAGE:
        return ids
    with line:
        name = st.selectbox(
            "Sort by", list(columns), index=None, placeholder="place", key=key("sort"), persist_state="session"
        )
        falling = st.toggle("Falling", key=key("falling"), disabled=name is None, persist_state="session")
    if name is None:
        return ids
    values = columns[name]().reindex(ids)
    values = values if pd.api.types.is_numeric_dtype(values) else values.astype(str).where(values.notna())
    return list(values.sort_values(ascending=not falling, kind="stable").index)


@st.cache_resource(max_entries=8, show_spinner=False)
def _table(
    state: tuple[object, ...],
    ids: tuple[str, ...],
    _source: Source,
    _surveys: Mapping[str, Survey],
    _examination: Examination | None,
) -> pd.DataFrame:
    return overview(_source, _surveys, ids, None if _examination is None else _examination.runs)


def table_of(
    source: Source, ids: Sequence[str], surveys: Mapping[str, Survey], examination: Examination | None
) -> pd.DataFrame:
    """The table of some LoRAs. Shared: not to be changed."""
    state = (source.fingerprint, source.labels_digest, len(surveys), examination is None)
    return _table(state, tuple(ids), source, surveys, examination)
