"""The selected LoRAs of each collection: one selection, the same on every page, kept in the URL and across reloads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core.collections.labels import with_labels
from lol_core.collections.source import Source
from ui.keys import FRAME, key
from ui.state import kept, session
from ui.tables import download


def _place(kind: str, name: str) -> Path:
    return kept() / kind / f"{name}.json"


def _collection(source: Source) -> str:
    return hashlib.sha256(source.address.encode()).hexdigest()[:16]


def select(source: Source, ids: Iterable[str]) -> None:
    """Make these LoRAs the selection. It is written beside the indexes, so that its short name in the URL opens it
    again.
    """
    members = set(ids)
    chosen = [id for id in source.ids if id in members]
    session().selections[_collection(source)] = tuple(chosen)
    if chosen:
        path = _place("selections", _token(source))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"collection": _collection(source), "ids": chosen}))
    _show(source)


def _token(source: Source) -> str:
    """The short name of the selection, "" when there is none."""
    chosen = selected(source)
    return hashlib.sha256("\0".join([source.address, *chosen]).encode()).hexdigest()[:12] if chosen else ""


def _show(source: Source) -> None:
    """Write the selection's name into the URL."""
    token = session().url["selected"] = _token(source)
    if token:
        st.query_params["selected"] = token
    else:
        st.query_params.pop("selected", None)
        session().isolated = False


def marked(source: Source, chart: str) -> None:
    """Points marked in a chart of the page (`customdata` holds ids) become the selection; marking nothing leaves it."""
    points = st.session_state[key(chart)].selection.points
    ids = [
        point["customdata"][0] if isinstance(point["customdata"], list) else point["customdata"]
        for point in points
        if "customdata" in point
    ]
    if ids:
        select(source, ids)


def selected(source: Source) -> list[str]:
    """The selected LoRAs in the collection's order."""
    return [id for id in session().selections.get(_collection(source), ()) if id in source.by_id]


def visible(source: Source) -> list[str]:
    """The LoRAs to show: all, or only the selected ones when they are isolated."""
    chosen = selected(source)
    return chosen if session().isolated and chosen else source.ids


def restore(source: Source) -> None:
    """Take up the selection that the URL names, or write this session's into the URL."""
    token = st.query_params.get("selected", "")
    if token and token != session().url["selected"]:
        path = _place("selections", token)
        try:
            saved = json.loads(path.read_text()) if token.isalnum() else {}
        except (OSError, ValueError):
            saved = {}
        if saved.get("collection") == _collection(source):
            select(source, saved["ids"])
            return
        text = "The link asks for a selection that is of another collection or another computer. Nothing is selected."
        st.toast(text, icon=":material/link_off:", duration="infinite")
    _show(source)


def _slices(source: Source) -> dict[str, list[str]]:
    try:
        slices: dict[str, list[str]] = json.loads(_place("slices", _collection(source)).read_text())
    except (OSError, ValueError):
        return {}
    return slices


def save_slice(source: Source, name: str) -> None:
    path = _place("slices", _collection(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_slices(source) | {name: selected(source)}))


def _open_slice(source: Source) -> None:
    """Take up the slice that is chosen, and leave its box empty: what is selected may change, and be taken up again."""
    name = st.session_state[key("slice", FRAME)]
    st.session_state[key("slice", FRAME)] = None
    select(source, _slices(source).get(name, ()))


def exported(source: Source) -> pd.DataFrame:
    """The selected LoRAs: path, name, labels, and what pages have computed of them (predictions, places on the map)."""
    ids = selected(source)
    names = pd.DataFrame({"name": [source.names[id] for id in ids]}, index=pd.Index(ids, name="lora"))
    table = with_labels(names, source.labels, after="name")
    offered = {name: column for name, column in computed(source).items() if name not in table}
    return table.assign(**{name: column.reindex(ids) for name, column in offered.items()})


def select_button(source: Source, ids: Sequence[str], label: str, name: str) -> None:
    """A button that makes these LoRAs the selection; none where there are none."""
    if ids:
        icon = ":material/select_all:"
        st.button(label, icon=icon, on_click=select, args=(source, list(ids)), key=key(name))


def offer(source: Source, origin: str, columns: pd.DataFrame) -> None:
    """Let a page's computed columns, indexed by id, go along when a selection is exported."""
    session().computed.setdefault(_collection(source), {})[origin] = columns


def computed(source: Source, but: str = "") -> dict[str, pd.Series]:
    """Name → column that a page has offered, indexed by id; of one name the first. but: an origin to leave out."""
    columns: dict[str, pd.Series] = {}
    for origin, table in session().computed.get(_collection(source), {}).items():
        columns |= {} if origin == but else {str(name): table[name] for name in table if name not in columns}
    return columns


def panel(source: Source) -> None:
    """The selection in the sidebar: its size, and what can be done with it."""
    chosen, slices = selected(source), _slices(source)
    if not chosen and not slices:
        return
    st.markdown(f"**{len(chosen):,} of {len(source):,} selected**")
    if slices:
        st.selectbox(
            "Saved slices",
            list(slices),
            index=None,
            placeholder="Open a saved slice",
            label_visibility="collapsed",
            key=key("slice", FRAME),
            on_change=_open_slice,
            args=(source,),
        )
    if not chosen:
        return
    with st.container(horizontal=True):
        st.button("Clear", icon=":material/close:", on_click=select, args=(source, ()), key=key("clear", FRAME))
        members = set(chosen)
        others = [id for id in source.ids if id not in members]
        st.button(
            "Invert", icon=":material/invert_colors:", on_click=select, args=(source, others), key=key("invert", FRAME)
        )
    session().isolated = st.toggle("Show only these", value=session().isolated, key=key("isolated", FRAME))
    with st.popover("Save or export", icon=":material/download:", width="stretch"):
        name = st.text_input("Name of the slice", key=key("slice_name", FRAME), placeholder="e.g. smiling, low score")
        if st.button("Save as slice", disabled=not name, key=key("slice_save", FRAME)):
            save_slice(source, name)
            st.rerun()
        table = exported(source)
        st.caption(
            f"Export: {len(chosen):,} rows with {', '.join(table.columns[:6])}{' …' if len(table.columns) > 6 else ''}"
        )
        download(table, f"{source.name}-selection", index=True, label="CSV")
        # encoded when asked for, outside the session: so from the table, not from the selection
        parquet = f"{source.name}-selection.parquet"
        st.download_button(
            "Parquet", lambda: table.to_parquet(), parquet, "application/octet-stream", key=key("parquet", FRAME)
        )
