"""Figures on a page: as SVG or PNG from their toolbar, with their data as CSV beside them."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from PIL import Image

from ui.keys import key
from ui.state import session

CAMERA = " The camera in its toolbar saves the picture."


def figure(
    shown: go.Figure, name: str, alt: str, data: pd.DataFrame | None = None, *, file: str = "", **options: Any
) -> None:
    """A chart that can be taken along. alt: what it shows, in words; data: its numbers; of matrices they are read from
    the figure. file: what its files are called, by default as it is.
    """
    if shown.data and shown.data[0].type == "image":  # as wide as the page and no higher than it is
        source = shown.data[0].source
        st.image(source, alt=alt, width="stretch")
        st.download_button(
            "PNG",
            lambda: as_png(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))),
            f"{name}.png",
            "image/png",
            icon=":material/download:",
            type="tertiary",
            key=key(f"{name}_png"),
        )
        take((lambda: numbers_of(shown)) if data is None else (lambda: data), name, file)
        return
    picture = session().picture
    camera = {"format": picture, "filename": re.sub(r"\W+", "-", file or name), "scale": 2 if picture == "png" else 1}
    st.plotly_chart(
        shown, key=key(name), alt=alt, config={"displaylogo": False, "toImageButtonOptions": camera}, **options
    )
    take((lambda: numbers_of(shown)) if data is None else (lambda: data), name, file, CAMERA)


def as_png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_csv(numbers: pd.DataFrame) -> str:
    """A table as CSV, with its index where that tells the rows, of modules or LoRAs, and as a column with a name."""
    told = not isinstance(numbers.index, pd.RangeIndex)
    return str(
        numbers.to_csv(index=told, index_label=[name or "row" for name in numbers.index.names] if told else None)
    )


def take(table: Callable[[], pd.DataFrame], name: str, file: str = "", more: str = "") -> None:
    """A quiet button for the numbers of a figure, made when they are asked for. more: what is said of it besides."""
    st.download_button(
        "Data",
        lambda: as_csv(table()),
        re.sub(r"\W+", "-", file or name) + ".csv",
        "text/csv",
        icon=":material/download:",
        type="tertiary",
        key=key(f"{name}_csv"),
        help=f"The numbers of this figure as CSV.{more}",
    )


def numbers_of(shown: go.Figure) -> pd.DataFrame:
    """The matrices of a figure in long form: row, column, value, and what the matrix is called."""
    parts = []
    for matrix in shown.data:
        cells = pd.DataFrame(matrix.z).rename_axis("row").reset_index().melt("row", var_name="column")
        parts.append(cells.assign(matrix=matrix.name))
    table = pd.concat(parts, ignore_index=True)
    return table.map(lambda value: html.unescape(value) if isinstance(value, str) else value)  # see `as_is`
