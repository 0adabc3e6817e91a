"""Choosing LoRAs: shown by their names, and kept in the URL by their ids, which no two files share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lol_core.collections.columns import database
from lol_core.collections.source import Source
from lol_core.errors import ZooError
from ui.jobs import sentence
from ui.keys import key
from ui.plain import plain
from ui.state import session

PREFERRED = ("validation_loss", "accuracy", "clip_score")
"""Labels of how good a LoRA is, which a page begins with where they are known."""
MOST = 1000
"""LoRAs that a box offers at once."""
FEW, LONG = 3, 80
"""Of how many words in a link a page says that they are not here, and by how many letters."""


def choose_lora(
    source: Source, ids: Sequence[str], name: str, label: str, *, place: DeltaGenerator | None = None, **options: Any
) -> str | None:
    """A box to choose one of these LoRAs; `index` among the options is what it starts with, the first by default. None
    when none is chosen.
    """
    index = options.pop("index", 0)
    first = [] if index is None or not ids else [ids[index]]
    _adopt(source, ids, name, many=False)
    offered = _offered(source, ids, name, first, place=place)
    chosen = (place or st).selectbox(
        label,
        offered,
        index=offered.index(first[0]) if first else None,
        format_func=lambda id: source.names[id],
        key=key(name),
        **options,
    )
    _write(name, [] if chosen is None else [chosen], first)
    return chosen


def choose_loras(
    source: Source, ids: Sequence[str], name: str, label: str, *, place: DeltaGenerator | None = None, **options: Any
) -> list[str]:
    """A box to choose some of these LoRAs; `default` among the options is what it starts with."""
    first = list(options.pop("default", []))
    _adopt(source, ids, name, many=True)
    offered = _offered(source, ids, name, first, place=place)
    chosen = (place or st).multiselect(
        label, offered, default=first, format_func=lambda id: source.names[id], key=key(name), **options
    )
    _write(name, chosen, first)
    return chosen


def _offered(
    source: Source, ids: Sequence[str], name: str, first: list[str], *, place: DeltaGenerator | None
) -> list[str]:
    """What a box offers: all, or of too many some that pass a search, what it starts with and what is chosen."""
    if len(ids) <= MOST:
        return list(ids)
    label = f"Search among {len(ids):,}"
    text = (place or st).text_input(label, key=key(f"{name}_search"), placeholder="a part of the name or path")
    try:
        matches = database(source).matching(text) if text else None
    except ZooError as error:
        (place or st).error(sentence(error))
        matches = None
    offered = list(islice((id for id in ids if matches is None or id in matches), MOST))
    present = st.session_state.get(key(name))
    kept = [*first, *([present] if isinstance(present, str) else present or [])]
    return offered + [id for id in dict.fromkeys(kept) if id not in offered]


def _adopt(source: Source, ids: Sequence[str], name: str, *, many: bool) -> None:
    """Take up what the URL says when that is not what was last written there: ids, or display names typed by hand. And
    what was chosen before other pages were looked at, when the URL says nothing.
    """
    present, last, members = st.query_params.get_all(key(name)), session().linked.get(key(name), []), set(ids)
    if key(name) not in st.session_state and not present:
        present = [id for id in last if id in members]
    elif key(name) in st.session_state and present == last:
        return
    session().linked[key(name)] = present
    of_name = {source.names[id]: id for id in ids}
    meant = {word: word if word in source.by_id else of_name.get(word) for word in present}
    known = [id for id in meant.values() if id in members]
    _say_missing("LoRA", [word for word, id in meant.items() if id not in members])
    if known:
        st.session_state[key(name)] = known if many else known[0]
    else:
        st.session_state.pop(key(name), None)


def look_at_link(name: str, what: str, offered: Collection[str]) -> None:
    """Before a box that is bound to the URL: say what a link asks for there that is not offered. what: its kind."""
    present = st.query_params.get_all(key(name))
    if present != session().linked.get(key(name), []):
        session().linked[key(name)] = present
        _say_missing(what, [word for word in present if word not in offered])


def _say_missing(what: str, words: Sequence[str]) -> None:
    for word in words[:FEW]:
        text = f"The link asks for the {what} {plain(word[:LONG])}, which cannot be chosen here."
        st.toast(text, icon=":material/link_off:", duration="infinite")


def _write(name: str, chosen: list[str], first: list[str]) -> None:
    """Write the chosen into the URL, where nothing stands for what the box starts with."""
    session().linked[key(name)] = shown = [] if chosen == first else chosen
    if shown:
        st.query_params[key(name)] = shown
    else:
        st.query_params.pop(key(name), None)
