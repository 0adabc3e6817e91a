"""What all figures share. Colours are Okabe and Ito's, which people with colour vision deficiencies can tell apart."""

from __future__ import annotations

import plotly.graph_objects as go

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MAX_SVG_POINTS = 1000


def scatter(points: int) -> type:
    """The trace for so many points: by WebGL where SVG would be slow."""
    return go.Scattergl if points > MAX_SVG_POINTS else go.Scatter


def finish(figure: go.Figure, height: int, **layout: object) -> go.Figure:
    return figure.update_layout(height=height, margin={"l": 10, "r": 10, "t": 30, "b": 10}, **layout)
