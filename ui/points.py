"""The points of a page's charts by keyboard, and with the previews of their LoRAs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import streamlit as st
from streamlit.components.v2 import component

from lol_core.collections.columns import detailed
from lol_core.collections.source import Source
from ui.keys import key
from ui.previews import preview, tiles

MAX_PREVIEWS = 2000
PROBED = 1000
SIDE = 64
_points = component("lol_explorer.points", js=(Path(__file__).parent / "points.js").read_text())


def thumbnail(source: Source, id: str) -> str | None:
    """The first picture of a LoRA's preview as a data URI."""
    if (strip := preview(source, id)) is None:
        return None
    buffer = io.BytesIO()
    tiles(strip)[0].resize((SIDE, SIDE)).save(buffer, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@st.cache_resource(max_entries=4, show_spinner=False)
def _thumbnails(fingerprint: str, ids: tuple[str, ...], _source: Source) -> dict[str, str]:
    """id → its thumbnail, of those that have one."""
    shown = [entry.path for entry in detailed(_source, ids) if _source.preview_of(entry)]
    return {id: picture for id in shown if (picture := thumbnail(_source, id)) is not None}


@st.cache_data(max_entries=8, show_spinner=False)
def _any_previews(fingerprint: str, _source: Source) -> bool:
    probed = _source.ids[:: len(_source) // PROBED + 1]
    return any(map(_source.preview_of, detailed(_source, probed)))


def any_previews(source: Source) -> bool:
    """Whether LoRAs of a collection come with pictures; of a large one a thousand are looked at, evenly spread."""
    return _any_previews(source.fingerprint, source)


def walk_points(source: Source, ids: Sequence[str] = ()) -> None:
    """Put at the end of a page: charts take the keyboard focus and arrow keys walk along their points; `ids` show their
    preview there and under the mouse.

    Of more than two thousand LoRAs no previews are sent.
    """
    previews = _thumbnails(source.fingerprint, tuple(ids), source) if len(ids) <= MAX_PREVIEWS else {}
    _points(data={"previews": previews}, key=key("points"))
