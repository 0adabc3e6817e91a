"""Figures of experiments: scores beside the paper's, lines over a size, pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from lol_core.insight.plots.style import COLORS, finish


def models_beside_controls(table: pd.DataFrame, title: str) -> go.Figure:
    """One score of every row (columns row, mean, std, and the paper's as paper, paper_std): measured as dots, the
    paper's as rings.
    """
    figure = go.Figure()
    shown = table[table["mean"].notna()]
    bars = {"type": "data", "array": shown["std"].fillna(0), "thickness": 1.5}
    figure.add_scatter(
        x=shown["mean"],
        y=shown["row"],
        mode="markers",
        name="here",
        marker={"color": COLORS[0], "size": 11},
        error_x=bars,
    )
    if (published := shown[shown["paper"].notna()]).shape[0]:
        bars = {"type": "data", "array": published["paper_std"].fillna(0), "thickness": 1.5}
        marker = {"color": COLORS[1], "size": 11, "symbol": "circle-open", "line": {"width": 2.5}}
        figure.add_scatter(
            x=published["paper"],
            y=published["row"],
            mode="markers",
            name="in the paper (other zoos)",
            marker=marker,
            error_x=bars,
        )
    figure.update_yaxes(autorange="reversed", automargin=True).update_xaxes(title=title)
    return finish(figure, 120 + 32 * len(shown), legend={"orientation": "h", "y": 1.12})


def across(
    table: pd.DataFrame,
    x_title: str,
    y_titles: Mapping[str, str] | None = None,
    log_y: bool = False,
    *,
    ticks: Mapping[float, str] | None = None,
) -> go.Figure:
    """A line for each model over x (logarithmic), a panel for each measure. table: columns model, panel, x, mean,
    std; models whose names begin with "control" are drawn thin and dotted. ticks: what is written at values of x,
    by default the values.
    """
    panels = list(table["panel"].unique())
    figure = make_subplots(1, len(panels), subplot_titles=panels, horizontal_spacing=0.1)
    for i, (model, rows) in enumerate(table.groupby("model", sort=False)):
        control = str(model).startswith("control")
        style = {
            "color": (*COLORS, "#666666")[i % (len(COLORS) + 1)],
            "width": 1.5 if control else 2.5,
            "dash": "dot" if control else "solid",
        }
        for k, panel in enumerate(panels):
            part = rows[rows["panel"] == panel].dropna(subset=["mean"]).sort_values("x")
            bars = {"type": "data", "array": part["std"].fillna(0), "thickness": 1.2}
            line = go.Scatter(
                x=part["x"],
                y=part["mean"],
                error_y=bars,
                name=str(model),
                legendgroup=str(model),
                showlegend=k == 0,
                mode="lines+markers",
            )
            figure.add_trace(line.update(line=style, marker={"size": 6 if control else 8}), 1, k + 1)
    shown = ticks or {value: f"{value:g}" for value in sorted(table["x"].unique())}
    figure.update_xaxes(title=x_title, type="log", tickvals=list(shown), ticktext=list(shown.values()))
    for k, panel in enumerate(panels):
        figure.update_yaxes(title=(y_titles or {}).get(panel, ""), type="log" if log_y else "linear", row=1, col=k + 1)
    return finish(figure, 460, legend={"orientation": "h", "y": -0.2}).update_layout(margin={"t": 50, "b": 90})


def merged_and_turned(table: pd.DataFrame, order: Sequence[str]) -> go.Figure:
    """A panel for each measure, a row for each way of merging: as it is (dots), and with one LoRA in another gauge
    (rings). table: columns panel, row, turned, mean, std.
    """
    panels = list(table["panel"].unique())
    titles = [panel.replace(": ", ":<br>", 1) for panel in panels]
    figure = make_subplots(1, len(panels), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    for turned, name in ((False, "as fine-tuned"), (True, "one in another gauge")):
        marker = {"color": COLORS[int(turned)], "size": 10, "symbol": "circle-open" if turned else "circle"}
        for k, panel in enumerate(panels):
            rows = table[(table["panel"] == panel) & (table["turned"] == turned)]
            dots = go.Scatter(
                x=rows["mean"],
                y=rows["row"],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=k == 0,
                marker=marker,
                error_x={"type": "data", "array": rows["std"].fillna(0), "thickness": 1.2},
            )
            figure.add_trace(dots, 1, k + 1)
    figure.update_yaxes(categoryorder="array", categoryarray=list(order)[::-1], automargin=True)
    finish(figure, 180 + 34 * len(order), legend={"orientation": "h", "y": -0.12})
    return figure.update_layout(margin_t=50)


def errors_of_models(table: pd.DataFrame, tolerance: float) -> go.Figure:
    """How far each model (row) moves under each change (column), on a logarithmic scale, and what rounding may
    explain.
    """
    figure = go.Figure()
    for i, column in enumerate(table.columns):
        marker = {"color": COLORS[i], "size": 11, "symbol": i}
        figure.add_scatter(
            x=table[column].clip(lower=1e-17), y=table.index, mode="markers", name=str(column), marker=marker
        )
    figure.add_vline(x=tolerance, line={"dash": "dash", "color": "gray"})
    figure.add_annotation(
        text="rounding in float32 ends here",
        x=math.log10(tolerance),  # of a logarithmic axis annotations are placed so, lines are not
        yref="y domain",
        y=1,
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
    )
    figure.update_xaxes(title="relative change of the latent vector", type="log", exponentformat="power").update_yaxes(
        autorange="reversed", automargin=True
    )
    return finish(figure, 360, legend={"orientation": "h", "y": -0.32, "yanchor": "top"})


def sheet(image: Image.Image) -> go.Figure:
    """A picture as a figure, without axes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    figure = go.Figure(
        go.Image(source="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), hoverinfo="skip")
    )
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.update_layout(height=image.height, width=image.width, margin={"l": 0, "r": 0, "t": 0, "b": 0})
