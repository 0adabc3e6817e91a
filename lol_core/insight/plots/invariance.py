"""Figures of what R does to factors, to the inside of models and to predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lol_core.insight.plots.style import COLORS, as_is, finish


def matrix(values: np.ndarray, title: str) -> go.Figure:
    """A small square matrix with its numbers, such as R."""
    limit = float(np.abs(values).max()) or 1.0
    text = "%{z:.2f}" if len(values) <= 8 else ""
    heat = go.Heatmap(
        z=values,
        name=as_is(title),
        zmin=-limit,
        zmax=limit,
        colorscale="RdBu",
        showscale=False,
        texttemplate=text,
        textfont={"size": 13},
        hovertemplate="%{z:.5g}<extra></extra>",
    )
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed", showticklabels=False, scaleanchor="x", constrain="domain")
    figure.update_xaxes(showticklabels=False, constrain="domain")
    return finish(figure, 300, title={"text": as_is(title), "font": {"size": 14}})


def matrices(shown: Mapping[str, np.ndarray]) -> go.Figure:
    """Matrices side by side on one colour scale."""
    figure = make_subplots(1, len(shown), subplot_titles=list(shown), horizontal_spacing=0.04)
    limit = max(float(np.abs(values).max()) for values in shown.values()) or 1.0
    for column, (name, values) in enumerate(shown.items(), 1):
        figure.add_trace(
            go.Heatmap(
                z=values,
                name=name,
                zmin=-limit,
                zmax=limit,
                colorscale="RdBu",
                showscale=False,
                hovertemplate="%{z:.5g}<extra></extra>",
            ),
            1,
            column,
        )
    figure.update_yaxes(autorange="reversed", showticklabels=False).update_xaxes(showticklabels=False)
    return finish(figure, 260)


def factor_heatmaps(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> go.Figure:
    """Matrices before (top) and after (bottom) R, each pair on one colour scale that spans both."""
    names = list(before)
    titles = [f"{name} before" for name in names] + [f"{name} after" for name in names]
    figure = make_subplots(2, len(names), subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.06)
    for column, name in enumerate(names, 1):
        limit = float(max(np.abs(before[name]).max(), np.abs(after[name]).max())) or 1.0
        for row, (when, matrix) in enumerate({"before": before[name], "after": after[name]}.items(), 1):
            heat = go.Heatmap(z=matrix, zmin=-limit, zmax=limit, colorscale="RdBu", showscale=False, hoverinfo="z")
            figure.add_trace(heat.update(name=f"{name} {when}"), row, column)
    figure.update_yaxes(autorange="reversed", showticklabels=False).update_xaxes(showticklabels=False)
    return finish(figure, 420)


def spread_of_changes(changes: pd.DataFrame, tolerance: float, smallest: float) -> go.Figure:
    """Relative change of predictions over many draws of R, as violins on a logarithmic axis. changes: columns
    model, group, change, a row for each draw.

    tolerance: the largest change that rounding explains, drawn as a line; smallest: the one at which smaller
    changes stand.
    """
    figure = go.Figure()
    for i, (group, rows) in enumerate(changes.groupby("group", sort=False)):
        exponents = np.log10(rows["change"].clip(lower=smallest))
        line = {"color": COLORS[i % len(COLORS)], "width": 1.5}
        figure.add_trace(
            go.Violin(
                x=rows["model"].map(as_is),
                y=exponents,
                name=as_is(group),
                points="all",
                pointpos=0,
                jitter=0.6,
                marker={"size": 2.5},
                line=line,
            )
        )
    annotation = {"annotation_text": "what rounding explains", "annotation_position": "top left"}
    figure.add_hline(y=float(np.log10(tolerance)), line={"dash": "dash", "color": "gray"}, **annotation)
    ticks = list(range(-18, 7, 2))
    figure.update_yaxes(
        title="relative change of the prediction", tickvals=ticks, ticktext=[f"10<sup>{t}</sup>" for t in ticks]
    )
    return finish(
        figure, 420, violinmode="group", violingap=0.1, violingroupgap=0.05, legend={"orientation": "h", "y": 1.1}
    )


def passage(names: Sequence[str], moved: Sequence[float], off: Sequence[float | None]) -> go.Figure:
    """How far each stage of an equivariant model moves with R, and how far it is from R acting on the stage: where
    R is, and where it leaves.
    """
    figure = go.Figure()
    for title, values, color, symbol in (
        ("moved by R", moved, COLORS[1], "circle"),
        ("differs from R ⋆ F(x)", off, COLORS[2], "diamond"),
    ):
        y = [None if value is None else max(value, 1e-18) for value in values]
        line = {"color": color, "width": 2.5}
        figure.add_scatter(
            x=[as_is(name) for name in names],
            y=y,
            mode="lines+markers",
            name=title,
            line=line,
            marker={"size": 10, "symbol": symbol},
        )
    figure.update_yaxes(title="relative change", type="log", exponentformat="power").update_xaxes(
        title="stage, from the factors to the prediction"
    )
    return finish(figure, 320, legend={"orientation": "h", "y": 1.12})
