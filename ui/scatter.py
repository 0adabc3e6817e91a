"""Maps of more points than Plotly draws well, by regl-scatterplot (WebGL): lasso, keyboard, a legend that counts.

Coordinates, colours and names are columns of bytes, each in a component of its own. Streamlit sends a message that the
browser has already got as a reference only, so a column travels once; the selection travels as a bitmask, both ways.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from plotly.colors import sample_colorscale
from streamlit.components.v2 import component

from lol_core.insight.plots.style import COLORS
from ui.keys import key

MAX_PLOTLY = 5_000
"""Plotly draws flat maps of so many points; of more, this."""
STEPS = 64
UNKNOWN = "#888888"
VIRIDIS = tuple(
    "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
    for rgb in sample_colorscale("Viridis", STEPS, colortype="tuple")
)

_WEBGL = Path(__file__).parent / "webgl"
_engine = component("lol_explorer.map_engine", js=(_WEBGL / "regl-scatterplot.js").read_text(), isolate_styles=False)
_column = component("lol_explorer.map_column", js=(_WEBGL / "carrier.js").read_text(), isolate_styles=False)
_map = component(
    "lol_explorer.map",
    js=(_WEBGL / "map.js").read_text(),
    css=(_WEBGL / "map.css").read_text(),
    isolate_styles=False,  # the library looks for its canvas in the document, not in a shadow of it
)


@dataclass(frozen=True)
class Scale:
    """How a column of colours is read: `kind` "numbers" between low and high, or "names" as categories.

    colours: one for each step or name; unknown: that of points without a value, which the legend calls `rest`.
    """

    kind: str
    title: str
    colours: tuple[str, ...]
    names: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    unknown: str = UNKNOWN
    rest: str = "unknown"


def colour_column(values: pd.Series | None, count: int) -> tuple[Scale, bytes]:
    """The scale of some values and their column: float32 numbers, or uint8 codes of categories.

    Numbers of more than seven values are a scale (Viridis); anything else is categories, the seven most frequent in
    colours of their own (Okabe and Ito) and the others in grey. values: none for points of one colour, `count` of them.
    """
    if values is None:
        return Scale("names", "", COLORS[:1], ("LoRAs",)), bytes(count)
    title = str(values.name)
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > len(COLORS):
        numbers = values.to_numpy(np.float32, na_value=np.nan)
        numbers = np.where(np.isfinite(numbers), numbers, np.float32(np.nan))
        low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        return Scale("numbers", title, VIRIDIS, low=low, high=high), numbers.tobytes()
    known = values.astype("str").where(values.notna())
    frequent = known.value_counts()
    names = sorted(frequent.index[: len(COLORS)])
    codes = pd.Index(names).get_indexer(pd.Index(known))
    codes = np.where(codes < 0, len(names), codes).astype(np.uint8)
    rest = "unknown" if len(frequent) <= len(COLORS) else "other" if values.notna().all() else "other or unknown"
    return Scale("names", title, COLORS[: len(names)], tuple(names), rest=rest), codes.tobytes()


def pack(marked: np.ndarray) -> str:
    """A boolean mask as text: eight points a byte, the first in the lowest bit, in base 64."""
    return base64.b64encode(np.packbits(marked, bitorder="little").tobytes()).decode()


def unpack(mask: str, count: int) -> np.ndarray:
    """The positions that a packed mask of `count` points marks."""
    bits = np.frombuffer(base64.b64decode(mask), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, count=count, bitorder="little"))


def _send(column: bytes, name: str) -> str:
    """Mount a column; returns the digest under which the browser keeps it."""
    digest = hashlib.blake2b(column, digest_size=8).hexdigest()
    _column(data=digest.encode() + column, key=key(name))
    return digest


@st.fragment
def scatter(
    points: pd.DataFrame,
    names: Mapping[str, str],
    colours: pd.Series | None,
    *,
    name: str,
    alt: str,
    selected: Callable[[], Sequence[str]],
    on_select: Callable[[list[str]], None],
    preview: Callable[[str], str | None] | None = None,
) -> None:
    """A map of many points. points: index ids, columns x and y; colours: by id.

    name: of the widget; alt: what it shows, in words. selected: the ids to show as selected; on_select: takes those
    that were selected here, after which the page runs again. preview: the picture of a point as a data URI, which is
    taken only when the mouse or the keyboard rests on it.
    """
    ids = points.index.tolist()
    place, peeked = key(name), key(f"{name}_peeked")
    scale, codes = colour_column(None if colours is None else colours.reindex(points.index), len(points))
    with st.container(gap=None):
        _engine(key=key(f"{name}_engine"))
        xy = points[["x", "y"]].to_numpy(np.float32)
        sent = {
            "coordinates": _send(xy.T.tobytes(), f"{name}_coordinates"),
            "colour": _send(codes, f"{name}_colour"),
            "names": _send("\n".join([*(names[id].replace("\n", " ") for id in ids), ""]).encode(), f"{name}_names"),
        }

        def answer(event: str, field: str) -> object:
            """What the browser sent of this event, where it is about the points that are shown."""
            value = st.session_state[place][event]
            return value[field] if value and value["of"] == sent["coordinates"] else None

        def take() -> None:
            if isinstance(mask := answer("selection", "mask"), str):
                on_select([ids[i] for i in unpack(mask, len(ids))])

        def peek() -> None:
            if preview is not None and isinstance(index := answer("peek", "index"), int) and 0 <= index < len(ids):
                st.session_state[peeked] = {"index": index, "preview": preview(ids[index]) or ""}

        chosen = set(selected())  # several times as fast as pandas' isin
        result = _map(
            data=sent
            | {
                "scale": asdict(scale),
                "selection": pack(np.fromiter((id in chosen for id in ids), bool, len(ids))),
                "alt": alt,
                "previews": preview is not None,
                "peeked": st.session_state.pop(peeked, None),
            },
            key=place,
            on_selection_change=take,
            on_peek_change=peek,
        )
    if result.selection is not None:
        st.rerun()
