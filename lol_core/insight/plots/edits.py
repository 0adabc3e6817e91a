"""Figures of edits: what a model says along one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lol_core.insight.plots.style import COLORS, finish


def edit_path(moved: Sequence[float], readings: np.ndarray, names: Sequence[str], chosen: int, step: int) -> go.Figure:
    """Each output of a model over how far ΔW has moved. readings: (steps + 1, outputs); chosen: the output that was
    wished to change, drawn thick; step: where the page stands.
    """
    figure = go.Figure()
    for i, name in enumerate(names):
        wide = i == chosen
        line = {"color": COLORS[i % len(COLORS)], "width": 4 if wide else 1.5, "dash": "solid" if wide else "dot"}
        figure.add_scatter(x=list(moved), y=readings[:, i], name=name, mode="lines", line=line)
    figure.add_vline(x=moved[step], line={"dash": "dash", "width": 1, "color": "gray"})
    figure.update_xaxes(title="‖ΔW − ΔW₀‖ / ‖ΔW₀‖").update_yaxes(title="the model's reading")
    return finish(figure, 360, legend={"orientation": "h", "y": -0.3})
