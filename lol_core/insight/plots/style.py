"""What all figures share. Colours are Okabe and Ito's, which people with colour vision deficiencies can tell apart."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MAX_SVG_POINTS = 1000
NUMBERED = 80
"""Pixels that a titled axis with numbers, or a scale of colours, takes at most, mostly."""


def as_is(name: object) -> str:
    """A name of a label, a class, a LoRA or a module, so that a figure shows it letter by letter: Plotly reads HTML in
    titles, legends, ticks and hover texts. `html.unescape` gives it back.
    """
    return escape(str(name), quote=False)


def scatter(points: int) -> type:
    """The trace for so many points: by WebGL where SVG would be slow."""
    return go.Scattergl if points > MAX_SVG_POINTS else go.Scatter


def finish(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """With margins as wide as titles and numbers of axes take: where Plotly has to widen them, it draws twice."""
    titled_x, titled_y = (any(a.title.text for a in axes) for axes in (figure.select_xaxes(), figure.select_yaxes()))
    legend_above = layout.get("legend", {}).get("y", 0) > 1
    left, top, bottom = NUMBERED if titled_y else 10, 44 if legend_above else 30, 66 if titled_x else 10
    return figure.update_layout(height=height, margin={"l": left, "r": 10, "t": top, "b": bottom}, **layout)
