"""Figures: data in, a plotly figure out. Colours are Okabe and Ito's, which people with colour vision deficiencies can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MAX_SVG_POINTS = 1000


def _scatter(points: int) -> type:
    return go.Scattergl if points > MAX_SVG_POINTS else go.Scatter


def _finish(figure: go.Figure, height: int, **layout: object) -> go.Figure:
    return figure.update_layout(height=height, margin={"l": 10, "r": 10, "t": 30, "b": 10}, **layout)


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Training (dotted) and validation (solid) loss of each run against its epochs."""
    figure = go.Figure()
    for i, (name, history) in enumerate(histories.items()):
        epochs = [row["epoch"] for row in history]
        color = COLORS[i % len(COLORS)]
        figure.add_scatter(x=epochs, y=[r["validation_loss"] for r in history], name=name, legendgroup=name, mode="lines", line={"color": color, "width": 2.5})
        figure.add_scatter(
            x=epochs,
            y=[r["train_loss"] for r in history],
            name=f"{name}, training",
            legendgroup=name,
            showlegend=False,
            mode="lines",
            line={"color": color, "dash": "dot"},
        )
    figure.update_xaxes(title="epoch", rangemode="tozero").update_yaxes(title="loss (solid: validation, dotted: training)", type="log", exponentformat="power")
    return _finish(figure, 360, legend={"orientation": "h", "y": 1.12})


def predicted_against_true(frame: pd.DataFrame, target: str, selected: Sequence[str] = ()) -> go.Figure:
    """Predicted against true values, by part of the split. frame: columns true, predicted, part, name; indexed by LoRA, which `customdata` carries."""
    chosen = set(selected) & set(frame.index)
    figure = go.Figure()
    low, high = (float(f(f(frame["true"]), f(frame["predicted"]))) for f in (min, max))
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": "gray", "dash": "dash"}, name="exact", hoverinfo="skip")
    for i, (part, rows) in enumerate(frame.groupby("part", sort=False)):
        figure.add_trace(
            _scatter(len(frame))(
                x=rows["true"],
                y=rows["predicted"],
                mode="markers",
                name=str(part),
                customdata=rows.index,
                text=rows["name"],
                marker={"color": COLORS[i], "size": 8, "opacity": 0.85},
                hovertemplate="<b>%{text}</b><br>true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
            )
        )
        if chosen:
            figure.data[-1].update(selectedpoints=[k for k, id in enumerate(rows.index) if id in chosen], unselected={"marker": {"opacity": 0.2}})
    figure.update_xaxes(title=f"true {target}").update_yaxes(title=f"predicted {target}")
    return _finish(figure, 440, legend={"orientation": "h", "y": 1.1})


def confusion_heatmap(matrix: pd.DataFrame) -> go.Figure:
    """A confusion matrix, true classes in rows."""
    figure = go.Figure(go.Heatmap(z=matrix.to_numpy(), x=list(matrix.columns), y=list(matrix.index), colorscale="Blues", texttemplate="%{z}"))
    figure.update_xaxes(title="predicted").update_yaxes(title="true", autorange="reversed")
    return _finish(figure, 440)


def module_norms(names: Sequence[str], norms: Sequence[float], title: str = "‖ΔW‖ (Frobenius)") -> go.Figure:
    """‖ΔW‖, or another number, of every module, in the file's order."""
    bars = go.Bar(x=list(range(len(names))), y=list(norms), customdata=list(names), marker={"color": COLORS[0]})
    bars.hovertemplate = "%{customdata}<br>%{y:.4g}<extra></extra>"
    figure = go.Figure(bars)
    figure.update_xaxes(title="module, in the file's order").update_yaxes(title=title, rangemode="tozero")
    return _finish(figure, 320)


def module_comparison(table: pd.DataFrame, first: str, second: str) -> go.Figure:
    """Norms of two LoRAs side by side, and the cosine of their updates, module by module. table: as the page LoRA makes it, indexed by module."""
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    x = list(range(len(table)))
    for name, column, color in ((first, "‖ΔW₁‖", COLORS[0]), (second, "‖ΔW₂‖", COLORS[1])):
        figure.add_trace(go.Bar(x=x, y=table[column], name=name, marker={"color": color}, customdata=list(table.index)), 1, 1)
    figure.add_trace(go.Bar(x=x, y=table["cosine"], name="cosine", marker={"color": COLORS[2]}, customdata=list(table.index)), 2, 1)
    figure.update_traces(hovertemplate="%{customdata}<br>%{y:.4g}")
    figure.update_yaxes(title="‖ΔW‖", row=1, col=1).update_yaxes(title="cosine", range=[-1, 1], row=2, col=1)
    figure.update_xaxes(title="module, in the file's order", row=2, col=1)
    return _finish(figure, 380, legend={"orientation": "h", "y": 1.1})


def spectra(names: Sequence[str], values: Sequence[np.ndarray]) -> go.Figure:
    """Singular values of each module's ΔW on a logarithmic axis."""
    figure = go.Figure()
    for i, (name, sigma) in enumerate(zip(names, values, strict=True)):
        positive = sigma[sigma > 0]
        line = {"color": COLORS[i % len(COLORS)], "width": 1.5}
        figure.add_scatter(x=np.arange(1, len(positive) + 1), y=positive, name=name, mode="lines+markers", line=line, hoverlabel={"namelength": -1})
    figure.update_xaxes(title="index", dtick=1 if max(map(len, values), default=0) <= 16 else None)
    figure.update_yaxes(title="singular value of ΔW", type="log", exponentformat="power")
    return _finish(figure, 320, showlegend=False)


def factor_heatmaps(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> go.Figure:
    """Matrices before (top) and after (bottom) R, each pair on one colour scale that spans both."""
    names = list(before)
    titles = [f"{name} before" for name in names] + [f"{name} after" for name in names]
    figure = make_subplots(2, len(names), subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.06)
    for column, name in enumerate(names, 1):
        limit = float(max(np.abs(before[name]).max(), np.abs(after[name]).max())) or 1.0
        for row, matrix in enumerate((before[name], after[name]), 1):
            figure.add_trace(go.Heatmap(z=matrix, zmin=-limit, zmax=limit, colorscale="RdBu", showscale=False, hoverinfo="z"), row, column)
    figure.update_yaxes(autorange="reversed", showticklabels=False).update_xaxes(showticklabels=False)
    return _finish(figure, 420)


def prediction_moves(names: Sequence[str], before: Sequence[float], after: Sequence[Sequence[float]], unit: str) -> go.Figure:
    """For each model its prediction before R (diamond) and under every R drawn so far (dots)."""
    figure = go.Figure()
    for i, (name, start, moved) in enumerate(zip(names, before, after, strict=True)):
        color = COLORS[i % len(COLORS)]
        figure.add_scatter(
            x=list(moved), y=[name] * len(moved), mode="markers", marker={"color": color, "size": 9, "opacity": 0.5}, name=name, showlegend=False
        )
        marker = {"color": color, "size": 16, "symbol": "diamond-open", "line": {"width": 3}}
        figure.add_scatter(x=[start], y=[name], mode="markers", marker=marker, name=name, showlegend=False)
    figure.update_xaxes(title=f"predicted {unit}  (◇ before R, ● after)").update_yaxes(autorange="reversed")
    return _finish(figure, 120 + 60 * len(names))


def ranking(scores: pd.Series, measured: pd.Series | None, title: str) -> go.Figure:
    """Scores in falling order against their rank, with the measured values where they are something else."""
    names, ranks = list(scores.index), np.arange(1, len(scores) + 1)
    figure = go.Figure()
    if measured is not None and measured.notna().any():
        marker = {"color": COLORS[1], "size": 6, "opacity": 0.6}
        figure.add_scattergl(x=ranks, y=measured, customdata=names, name="measured", mode="markers", marker=marker)
    figure.add_scattergl(
        x=ranks, y=scores, customdata=names, name="predicted" if measured is not None else "measured", mode="markers", marker={"color": COLORS[0], "size": 6}
    )
    figure.update_traces(hovertemplate="%{customdata}<br>rank %{x}: %{y:.4g}")
    figure.update_xaxes(title="rank").update_yaxes(title=title)
    return _finish(figure, 240, legend={"orientation": "h", "y": 1.15})


def collection_map(picture: pd.DataFrame, names: Mapping[str, str], colours: pd.Series | None, selected: Sequence[str]) -> go.Figure:
    """LoRAs as points. picture: index ids, columns x, y (and z); colours: by id, numbers as a scale, anything else as categories; selected ones stand out."""
    figure = go.Figure()
    kind = go.Scatter3d if "z" in picture else _scatter(len(picture))
    chosen = set(selected)
    size = 4 if "z" in picture else 9 if len(picture) <= MAX_SVG_POINTS else 5
    numeric = colours is not None and pd.api.types.is_numeric_dtype(colours) and colours.nunique() > len(COLORS)
    values = pd.Series("LoRAs", index=picture.index) if colours is None else colours.reindex(picture.index)
    if not numeric:
        common = values.astype("str").where(values.notna(), "unknown")
        kept = common.value_counts().index[: len(COLORS)]
        values = common.where(common.isin(kept) | (common.nunique() <= len(COLORS)), "other")
    for i, (title, part) in enumerate([("", picture)] if numeric else picture.groupby(values, sort=True)):
        own = values.loc[part.index]
        marker: dict[str, object] = {"size": size, "opacity": 0.85, "color": COLORS[i % len(COLORS)]}
        if numeric:
            bar = {"title": str(colours.name) if colours is not None else "", "thickness": 12}
            marker |= {"color": own, "colorscale": "Viridis", "showscale": True, "colorbar": bar}
        trace = {axis: part[axis] for axis in part.columns}
        hover = "<b>%{text}</b>" + (f"<br>{colours.name}: %{{meta}}" if colours is not None and not numeric else "") + "<extra></extra>"
        text = [names[id] + (f"<br>{own[id]:.4g}" if numeric else "") for id in part.index]
        figure.add_trace(
            kind(**trace, mode="markers", name=str(title), meta=str(title), customdata=list(part.index), text=text, marker=marker, hovertemplate=hover)
        )
        if chosen and "z" not in picture:
            figure.data[-1].update(selectedpoints=[k for k, id in enumerate(part.index) if id in chosen], unselected={"marker": {"opacity": 0.2}})
    if "z" in picture:
        figure.update_scenes(**{f"{axis}axis": {"title": "", "showticklabels": False} for axis in "xyz"})
    figure.update_xaxes(title="", showticklabels=False, zeroline=False).update_yaxes(title="", showticklabels=False, zeroline=False)
    return _finish(figure, 560, legend={"orientation": "h", "y": 1.08}, showlegend=colours is not None and not numeric, dragmode="lasso")
