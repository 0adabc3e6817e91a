"""Figures of edits, what a model says along one, and of merges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lol_core.insight.plots.style import COLORS, as_is, finish


def edit_path(
    moved: Sequence[float], readings: np.ndarray, names: Sequence[str], chosen: int, *, step: int
) -> go.Figure:
    """Each output of a model over how far ΔW has moved. readings: (steps + 1, outputs); chosen: the output that was
    wished to change, drawn thick; step: where the page stands. Of more than there are colours the others are grey.
    """
    figure, many = go.Figure(), len(names) > len(COLORS)
    for i, name in enumerate(names):
        wide = i == chosen
        color = "gray" if many and not wide else COLORS[i % len(COLORS)]
        line = {"color": color, "width": 4 if wide else 1.5, "dash": "solid" if wide else "dot"}
        way = {"x": list(moved), "y": readings[:, i], "name": as_is(name), "mode": "lines", "line": line}
        figure.add_scatter(**way, showlegend=wide or not many)
    figure.add_vline(x=moved[step], line={"dash": "dash", "width": 1, "color": "gray"})
    figure.update_xaxes(title="‖ΔW − ΔW₀‖ / ‖ΔW₀‖").update_yaxes(title="the model's reading")
    return finish(figure, 360, legend={"orientation": "h", "y": -0.3})


def merged_modules(table: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Module by module, how far a merge is from the sum of its LoRAs, and its cosine with each of these. table: as
    `MergeReport.modules`, the cosines under the names.
    """
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.4, 0.6], vertical_spacing=0.06)
    x = list(range(len(table)))
    away, lost = ({"x": x, "y": table[name]} for name in ("from the sum", "lost"))
    figure.add_trace(go.Bar(**away, name="away from the sum", marker={"color": COLORS[0]}), 1, 1)
    line = {"symbol": "line-ew-open", "size": 12, "color": COLORS[1], "line": {"width": 3}}
    figure.add_trace(go.Scatter(**lost, name="left out by the rank", mode="markers", marker=line), 1, 1)
    for i, name in enumerate(names):
        color = COLORS[(i + 2) % len(COLORS)]
        figure.add_trace(go.Bar(x=x, y=table[name], name=f"cosine with {as_is(name)}", marker={"color": color}), 2, 1)
    figure.update_traces(customdata=[as_is(name) for name in table.index], hovertemplate="%{customdata}<br>%{y:.3g}")
    seen = {"rangemode": "tozero", "autorangeoptions": {"include": 0.01}}  # rounding is no error to look into
    figure.update_yaxes(title="error", tickformat=".0%", **seen, row=1, col=1)
    figure.update_yaxes(title="cosine", row=2, col=1)
    figure.update_xaxes(title="module, in the order of the blocks", row=2, col=1)
    return finish(figure, 420, legend={"orientation": "h", "y": -0.2})
