"""Figures of one LoRA, or of two: its modules, their norms and singular values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lol_core.insight.plots.style import COLORS, NUMBERED, as_is, finish


def module_norms(names: Sequence[str], norms: Sequence[float], title: str = "‖ΔW‖ (Frobenius)") -> go.Figure:
    """‖ΔW‖, or another number, of every module, in the order of the blocks."""
    bars = go.Bar(
        x=list(range(len(names))),
        y=list(norms),
        customdata=[as_is(name) for name in names],
        marker={"color": COLORS[0]},
    )
    bars.hovertemplate = "%{customdata}<br>%{y:.4g}<extra></extra>"
    figure = go.Figure(bars)
    figure.update_xaxes(title="module, in the order of the blocks").update_yaxes(title=title, rangemode="tozero")
    return finish(figure, 320)


def _apart(names: Sequence[str]) -> list[str]:
    """Dotted names without the parts that all have in common at their two ends; still long ones by their ends."""
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts), default=0)
    head = next((i for i in range(shortest) if len({tuple(p[: i + 1]) for p in parts}) > 1), 0)
    tail = next((i for i in range(shortest - head) if len({tuple(p[len(p) - i - 1 :]) for p in parts}) > 1), 0)
    short = [".".join(p[head : len(p) - tail]) for p in parts]
    return [name if len(name) <= 28 else "… " + name[-26:] for name in short]


def base_map(table: pd.DataFrame, title: str, signed: bool = False) -> go.Figure:
    """A map of the base model: projections in rows, blocks in columns, coloured by a number of each module; signed:
    with zero in the middle of the scale.
    """
    short = _apart([str(block) for block in table.columns])
    limit = float(np.nanmax(np.abs(table.to_numpy()), initial=0.0)) or 1.0
    scale = (
        {"colorscale": "RdBu", "zmin": -limit, "zmax": limit}
        if signed
        else {"colorscale": "Viridis", "zmin": 0.0, "zmax": limit}
    )
    blocks = np.broadcast_to(np.array([as_is(block) for block in table.columns]), table.shape)
    heat = go.Heatmap(
        z=table.to_numpy(),
        x=list(range(len(short))),
        y=[as_is(name) for name in table.index],
        customdata=blocks,
        xgap=1,
        ygap=1,
        **scale,
    )
    figure = go.Figure(
        heat.update(
            colorbar={"title": as_is(title), "thickness": 12},
            hovertemplate="%{customdata}<br>%{y}: %{z:.4g}<extra></extra>",
        )
    )
    figure.update_xaxes(
        title="block",
        tickvals=list(range(len(short))),
        ticktext=[as_is(name) for name in short],
        showticklabels=len(short) <= 24,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    left = 10 + 6.5 * max(map(len, table.index), default=0)  # a letter of a name takes about so many pixels
    height = 160 + 26 * len(table) + (60 if len(short) <= 24 else 0)
    return finish(figure, height).update_layout(margin={"l": left, "r": NUMBERED, "b": 76})


def module_comparison(table: pd.DataFrame, first: str, second: str) -> go.Figure:
    """Norms of two LoRAs side by side, and the cosine of their updates, module by module. table: as the page LoRA
    makes it, indexed by module.
    """
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    x, modules = list(range(len(table))), [as_is(name) for name in table.index]
    for name, column, color in ((first, "‖ΔW₁‖", COLORS[0]), (second, "‖ΔW₂‖", COLORS[1])):
        figure.add_trace(
            go.Bar(x=x, y=table[column], name=as_is(name), marker={"color": color}, customdata=modules), 1, 1
        )
    figure.add_trace(
        go.Bar(x=x, y=table["cosine"], name="cosine", marker={"color": COLORS[2]}, customdata=modules), 2, 1
    )
    figure.update_traces(hovertemplate="%{customdata}<br>%{y:.4g}")
    figure.update_yaxes(title="‖ΔW‖", row=1, col=1).update_yaxes(title="cosine", range=[-1, 1], row=2, col=1)
    figure.update_xaxes(title="module, in the order of the blocks", row=2, col=1)
    return finish(figure, 380, legend={"orientation": "h", "y": 1.1})


def spectra(names: Sequence[str], values: Sequence[np.ndarray]) -> go.Figure:
    """Singular values of each module's ΔW on a logarithmic axis."""
    figure = go.Figure()
    for i, (name, sigma) in enumerate(zip(names, values, strict=True)):
        positive = sigma[sigma > 0]
        line = {"color": COLORS[i % len(COLORS)], "width": 1.5}
        figure.add_scatter(
            x=np.arange(1, len(positive) + 1),
            y=positive,
            name=as_is(name),
            mode="lines+markers",
            line=line,
            hoverlabel={"namelength": -1},
        )
    figure.update_xaxes(title="index", dtick=1 if max(map(len, values), default=0) <= 16 else None)
    figure.update_yaxes(title="singular value of ΔW", type="log", exponentformat="power")
    return finish(figure, 320, showlegend=False)
