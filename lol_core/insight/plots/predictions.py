"""Figures of models: how they learn, and their predictions beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lol_core.insight.plots.style import COLORS, as_is, finish, scatter

FEW_EPOCHS = 8
"""So many have a tick each: Plotly would mark halves of an epoch."""


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Each run against its epochs: training (dotted) and validation (solid) loss above, the validation score (R² or
    accuracy) below where it was kept.
    """
    scored = any("validation_score" in row for history in histories.values() for row in history)
    figure = make_subplots(
        2 if scored else 1, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.6, 0.4] if scored else None
    )
    for i, (name, history) in enumerate((as_is(name), history) for name, history in histories.items()):
        color = COLORS[i % len(COLORS)]
        drawn = [
            ("validation_loss", {"color": color, "width": 2.5}, 1),
            ("train_loss", {"color": color, "dash": "dot"}, 1),
        ]
        drawn += [("validation_score", {"color": color, "width": 2.5}, 2)] if scored else []
        for key, line, row in drawn:
            rows = [values for values in history if key in values]
            trace = go.Scatter(
                x=[r["epoch"] for r in rows],
                y=[r[key] for r in rows],
                name=name,
                legendgroup=name,
                mode="lines",
                line=line,
                meta=name,
            )
            trace.update(
                showlegend=key == "validation_loss",
                hovertemplate=f"%{{meta}}<br>epoch %{{x}}: {key.replace('_', ' ')} %{{y:.4g}}<extra></extra>",
            )
            figure.add_trace(trace, row, 1)
    figure.update_yaxes(title="loss (solid: validation)", type="log", exponentformat="power", row=1, col=1)
    if scored:
        figure.update_yaxes(title="validation score", row=2, col=1)
    last = max((row["epoch"] for history in histories.values() for row in history), default=0)
    figure.update_xaxes(rangemode="tozero", dtick=1 if last < FEW_EPOCHS else None)
    figure.update_xaxes(title="epoch", row=2 if scored else 1, col=1)
    return finish(figure, 460 if scored else 360, legend={"orientation": "h", "y": 1.12})


def range_of(frame: pd.DataFrame) -> tuple[float, float]:
    """The least and the greatest number in the columns true and predicted."""
    low, high = (float(f(f(frame["true"]), f(frame["predicted"]))) for f in (min, max))
    return low, high


def diagonal(name: str, low: float, high: float) -> go.Scatter:
    """Where predictions equal the truth."""
    line = {"color": "gray", "dash": "dash"}
    return go.Scatter(x=[low, high], y=[low, high], mode="lines", line=line, name=name, hoverinfo="skip")


def predicted_against_true(frame: pd.DataFrame, target: str, selected: Sequence[str] = ()) -> go.Figure:
    """Predicted against true values, by part of the split. frame: columns true, predicted, part, name; indexed by
    LoRA, which `customdata` carries.
    """
    chosen = set(selected) & set(frame.index)
    figure = go.Figure(diagonal("exact", *range_of(frame)))
    for i, (part, rows) in enumerate(frame.groupby("part", sort=False)):
        figure.add_trace(
            scatter(len(frame))(
                x=rows["true"],
                y=rows["predicted"],
                mode="markers",
                name=str(part),
                customdata=rows.index,
                text=rows["name"].map(as_is),
                marker={"color": COLORS[i], "size": 8, "opacity": 0.85},
                hovertemplate="<b>%{text}</b><br>true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
            )
        )
        if chosen:
            figure.data[-1].update(
                selectedpoints=[k for k, id in enumerate(rows.index) if id in chosen],
                unselected={"marker": {"opacity": 0.2}},
            )
    figure.update_xaxes(title=f"true {as_is(target)}").update_yaxes(title=f"predicted {as_is(target)}")
    return finish(figure, 440, legend={"orientation": "h", "y": 1.1})


def residuals(frame: pd.DataFrame, target: str) -> go.Figure:
    """Predicted minus true against the prediction, by part of the split, and how the differences are spread. frame:
    as in `predicted_against_true`.
    """
    figure = make_subplots(1, 2, column_widths=[0.75, 0.25], shared_yaxes=True, horizontal_spacing=0.02)
    for i, (part, rows) in enumerate(frame.groupby("part", sort=False)):
        gap = rows["predicted"] - rows["true"]
        marker = {"color": COLORS[i], "size": 7, "opacity": 0.8}
        hover = "<b>%{text}</b><br>predicted %{x:.4g}<br>too high by %{y:.4g}<extra></extra>"
        points = scatter(len(frame))(
            x=rows["predicted"],
            y=gap,
            mode="markers",
            name=str(part),
            text=rows["name"].map(as_is),
            marker=marker,
            hovertemplate=hover,
        )
        figure.add_trace(points.update(customdata=rows.index), 1, 1)
        figure.add_trace(
            go.Histogram(y=gap, marker={"color": COLORS[i]}, opacity=0.7, name=str(part), showlegend=False), 1, 2
        )
    figure.add_hline(y=0, line={"dash": "dash", "color": "gray"})
    figure.update_xaxes(title=f"predicted {as_is(target)}", row=1, col=1).update_xaxes(
        title="LoRAs", row=1, col=2
    ).update_yaxes(title="predicted − true", row=1, col=1)
    return finish(figure, 320, legend={"orientation": "h", "y": 1.12}, barmode="overlay")


def calibration_curve(bins: pd.DataFrame, target: str, yes_no: bool) -> go.Figure:
    """Mean truth against mean prediction in bins; a calibrated model lies on the dashed line. bins: see
    `evaluation.calibration`.
    """
    figure = go.Figure(diagonal("calibrated", *((0.0, 1.0) if yes_no else range_of(bins))))
    errors = {"type": "data", "array": bins["standard error"], "color": COLORS[0]}
    hover = "predicted %{x:.4g}<br>true %{y:.4g} ± %{error_y.array:.2g}<br>%{text} LoRAs<extra></extra>"
    figure.add_scatter(
        x=bins["predicted"],
        y=bins["true"],
        error_y=errors,
        text=bins["LoRAs"],
        mode="markers+lines",
        name="bins of equal number",
        hovertemplate=hover,
        marker={"color": COLORS[0], "size": 8},
    )
    title = f"share with {as_is(target)}" if yes_no else f"mean true {as_is(target)}"
    figure.update_xaxes(title="mean prediction").update_yaxes(title=title)
    return finish(figure, 320, legend={"orientation": "h", "y": 1.12})


def confusion_heatmap(matrix: pd.DataFrame) -> go.Figure:
    """A confusion matrix, true classes in rows."""
    figure = go.Figure(
        go.Heatmap(
            z=matrix.to_numpy(),
            x=[as_is(name) for name in matrix.columns],
            y=[as_is(name) for name in matrix.index],
            zmin=0,  # so that one is not drawn as none
            colorscale="Blues",
            texttemplate="%{z}",
        )
    )
    figure.update_xaxes(title="predicted", type="category").update_yaxes(
        title="true", type="category", autorange="reversed"
    )
    return finish(figure, 440)


def along_run(table: pd.DataFrame, title: str) -> go.Figure:
    """Predictions along one training run. table: columns step, predicted, name and, where there is a label, true."""
    hover = "%{text}<br>step %{x}: %{y:.4g}<extra></extra>"
    figure = go.Figure(
        go.Scatter(
            x=table["step"],
            y=table["predicted"],
            text=table["name"].map(as_is),
            name="predicted",
            mode="lines+markers",
            hovertemplate=hover,
        )
    )
    figure.update_traces(line={"color": COLORS[0], "width": 2.5}, marker={"size": 9})
    if table["true"].notna().any():
        figure.add_scatter(
            x=table["step"],
            y=table["true"],
            text=table["name"].map(as_is),
            name="measured",
            mode="markers",
            marker={"color": COLORS[1], "size": 8},
        )
    figure.update_xaxes(title="step or epoch, from the names").update_yaxes(title=as_is(title))
    return finish(figure, 280, legend={"orientation": "h", "y": 1.12})


def ranking(scores: pd.Series, measured: pd.Series | None, title: str, selected: Sequence[str] = ()) -> go.Figure:
    """Scores in falling order against their rank, with the measured values where they are something else."""
    ids, ranks = list(scores.index), np.arange(1, len(scores) + 1)
    figure = go.Figure()
    if measured is not None and measured.notna().any():
        marker = {"color": COLORS[1], "size": 6, "opacity": 0.6}
        figure.add_scattergl(x=ranks, y=measured, customdata=ids, name="measured", mode="markers", marker=marker)
    figure.add_scattergl(
        x=ranks,
        y=scores,
        customdata=ids,
        name="predicted" if measured is not None else "measured",
        mode="markers",
        marker={"color": COLORS[0], "size": 6},
    )
    figure.update_traces(text=[as_is(id) for id in ids], hovertemplate="%{text}<br>rank %{x}: %{y:.4g}")
    if chosen := set(selected) & set(ids):
        figure.update_traces(
            selectedpoints=[i for i, name in enumerate(ids) if name in chosen],
            unselected={"marker": {"opacity": 0.15}},
        )
    figure.update_xaxes(title="rank").update_yaxes(title=as_is(title))
    return finish(figure, 240, legend={"orientation": "h", "y": 1.15})
