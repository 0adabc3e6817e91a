"""Figures of what R does to factors, to the inside of models and to predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lol_core.insight.plots.style import COLORS, finish


@dataclass(frozen=True)
class Dial:
    """One model's prediction before and after R on a scale from low to high."""

    title: str
    unit: str
    low: float
    high: float
    before: float
    after: float
    verdict: str
    keeps: bool


def needle(dial: Dial) -> go.Figure:
    """A dial: the grey needle is the prediction before R, the coloured one after. A needle past the end of its
    scale rests at the end.
    """
    color = COLORS[2] if dial.keeps else COLORS[4]
    arc = np.linspace(0, np.pi, 60)
    figure = go.Figure(
        go.Scatter(
            x=np.cos(arc),
            y=np.sin(arc),
            mode="lines",
            line={"color": "gray", "width": 6},
            opacity=0.35,
            hoverinfo="skip",
        )
    )
    for value, line in ((dial.before, {"color": "gray", "width": 8}), (dial.after, {"color": color, "width": 4})):
        angle = np.pi * (1 - np.clip((value - dial.low) / ((dial.high - dial.low) or 1), 0, 1))
        hover = f"{dial.unit}: {value:.6g}<extra></extra>"
        figure.add_scatter(
            x=[0, 0.9 * np.cos(angle)], y=[0, 0.9 * np.sin(angle)], mode="lines", line=line, hovertemplate=hover
        )
    texts = (
        (0, 1.5, f"<b>{dial.title}</b>", 13),
        (0, 1.22, dial.unit, 11),
        (-1, -0.16, f"{dial.low:.3g}", 10),
        (1, -0.16, f"{dial.high:.3g}", 10),
    )
    for x, y, text, size in (*texts, (0, -0.36, f"{dial.before:.5g} → <b>{dial.after:.5g}</b>", 12)):
        figure.add_annotation(x=x, y=y, text=text, font={"size": size}, showarrow=False)
    figure.add_annotation(x=0, y=-0.64, text=dial.verdict, font={"color": color, "size": 13}, showarrow=False)
    figure.update_xaxes(visible=False, range=[-1.2, 1.2], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.8, 1.65], fixedrange=True, scaleanchor="x")
    return figure.update_layout(height=215, margin={"l": 0, "r": 0, "t": 0, "b": 0}, showlegend=False)


def matrix(values: np.ndarray, title: str) -> go.Figure:
    """A small square matrix with its numbers, such as R."""
    limit = float(np.abs(values).max()) or 1.0
    text = "%{z:.2f}" if len(values) <= 8 else ""
    heat = go.Heatmap(
        z=values,
        zmin=-limit,
        zmax=limit,
        colorscale="RdBu",
        showscale=False,
        texttemplate=text,
        textfont={"size": 13},
        hovertemplate="%{z:.5g}",
    )
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed", showticklabels=False, scaleanchor="x", constrain="domain")
    figure.update_xaxes(showticklabels=False, constrain="domain")
    return finish(figure, 300, title={"text": title, "font": {"size": 14}})


def matrices(shown: Mapping[str, np.ndarray]) -> go.Figure:
    """Matrices side by side on one colour scale."""
    figure = make_subplots(1, len(shown), subplot_titles=list(shown), horizontal_spacing=0.04)
    limit = max(float(np.abs(values).max()) for values in shown.values()) or 1.0
    for column, values in enumerate(shown.values(), 1):
        figure.add_trace(
            go.Heatmap(
                z=values,
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
        for row, matrix in enumerate((before[name], after[name]), 1):
            figure.add_trace(
                go.Heatmap(z=matrix, zmin=-limit, zmax=limit, colorscale="RdBu", showscale=False, hoverinfo="z"),
                row,
                column,
            )
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
                x=rows["model"],
                y=exponents,
                name=str(group),
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
            x=list(names), y=y, mode="lines+markers", name=title, line=line, marker={"size": 10, "symbol": symbol}
        )
    figure.update_yaxes(title="relative change", type="log", exponentformat="power").update_xaxes(
        title="stage, from the factors to the prediction"
    )
    return finish(figure, 320, legend={"orientation": "h", "y": 1.12})
