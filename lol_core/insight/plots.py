"""Figures: data in, a plotly figure out. Colours are Okabe and Ito's, which people with colour vision deficiencies
can tell apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MAX_SVG_POINTS = 1000


def _scatter(points: int) -> type:
    return go.Scattergl if points > MAX_SVG_POINTS else go.Scatter


def _finish(figure: go.Figure, height: int, **layout: object) -> go.Figure:
    return figure.update_layout(height=height, margin={"l": 10, "r": 10, "t": 30, "b": 10}, **layout)


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Each run against its epochs: training (dotted) and validation (solid) loss above, the validation score (R² or
    accuracy) below where it was kept.
    """
    scored = any("validation_score" in row for history in histories.values() for row in history)
    figure = make_subplots(
        2 if scored else 1, 1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.6, 0.4] if scored else None
    )
    for i, (name, history) in enumerate(histories.items()):
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
            )
            trace.update(
                showlegend=key == "validation_loss",
                hovertemplate=f"{name}<br>epoch %{{x}}: {key.replace('_', ' ')} %{{y:.4g}}<extra></extra>",
            )
            figure.add_trace(trace, row, 1)
    figure.update_yaxes(title="loss (solid: validation)", type="log", exponentformat="power", row=1, col=1)
    if scored:
        figure.update_yaxes(title="validation score", row=2, col=1)
    figure.update_xaxes(rangemode="tozero").update_xaxes(title="epoch", row=2 if scored else 1, col=1)
    return _finish(figure, 460 if scored else 360, legend={"orientation": "h", "y": 1.12})


def predicted_against_true(frame: pd.DataFrame, target: str, selected: Sequence[str] = ()) -> go.Figure:
    """Predicted against true values, by part of the split. frame: columns true, predicted, part, name; indexed by
    LoRA, which `customdata` carries.
    """
    chosen = set(selected) & set(frame.index)
    figure = go.Figure()
    low, high = (float(f(f(frame["true"]), f(frame["predicted"]))) for f in (min, max))
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": "gray", "dash": "dash"},
        name="exact",
        hoverinfo="skip",
    )
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
            figure.data[-1].update(
                selectedpoints=[k for k, id in enumerate(rows.index) if id in chosen],
                unselected={"marker": {"opacity": 0.2}},
            )
    figure.update_xaxes(title=f"true {target}").update_yaxes(title=f"predicted {target}")
    return _finish(figure, 440, legend={"orientation": "h", "y": 1.1})


def residuals(frame: pd.DataFrame, target: str) -> go.Figure:
    """Predicted minus true against the prediction, by part of the split, and how the differences are spread. frame:
    as in `predicted_against_true`.
    """
    figure = make_subplots(1, 2, column_widths=[0.75, 0.25], shared_yaxes=True, horizontal_spacing=0.02)
    for i, (part, rows) in enumerate(frame.groupby("part", sort=False)):
        gap = rows["predicted"] - rows["true"]
        marker = {"color": COLORS[i], "size": 7, "opacity": 0.8}
        hover = "<b>%{text}</b><br>predicted %{x:.4g}<br>too high by %{y:.4g}<extra></extra>"
        points = _scatter(len(frame))(
            x=rows["predicted"],
            y=gap,
            mode="markers",
            name=str(part),
            text=rows["name"],
            marker=marker,
            hovertemplate=hover,
        )
        figure.add_trace(points.update(customdata=rows.index), 1, 1)
        figure.add_trace(
            go.Histogram(y=gap, marker={"color": COLORS[i]}, opacity=0.7, name=str(part), showlegend=False), 1, 2
        )
    figure.add_hline(y=0, line={"dash": "dash", "color": "gray"})
    figure.update_xaxes(title=f"predicted {target}", row=1, col=1).update_xaxes(
        title="LoRAs", row=1, col=2
    ).update_yaxes(title="predicted − true", row=1, col=1)
    return _finish(figure, 320, legend={"orientation": "h", "y": 1.12}, barmode="overlay")


def calibration_curve(bins: pd.DataFrame, target: str, yes_no: bool) -> go.Figure:
    """Mean truth against mean prediction in bins; a calibrated model lies on the dashed line. bins: see
    `evaluation.calibration`.
    """
    low, high = (0.0, 1.0) if yes_no else (float(f(f(bins["predicted"]), f(bins["true"]))) for f in (min, max))
    figure = go.Figure(
        go.Scatter(
            x=[low, high],
            y=[low, high],
            mode="lines",
            line={"color": "gray", "dash": "dash"},
            name="calibrated",
            hoverinfo="skip",
        )
    )
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
    title = f"share with {target}" if yes_no else f"mean true {target}"
    figure.update_xaxes(title="mean prediction").update_yaxes(title=title)
    return _finish(figure, 320, legend={"orientation": "h", "y": 1.12})


def confusion_heatmap(matrix: pd.DataFrame) -> go.Figure:
    """A confusion matrix, true classes in rows."""
    figure = go.Figure(
        go.Heatmap(
            z=matrix.to_numpy(), x=list(matrix.columns), y=list(matrix.index), colorscale="Blues", texttemplate="%{z}"
        )
    )
    figure.update_xaxes(title="predicted").update_yaxes(title="true", autorange="reversed")
    return _finish(figure, 440)


def module_norms(names: Sequence[str], norms: Sequence[float], title: str = "‖ΔW‖ (Frobenius)") -> go.Figure:
    """‖ΔW‖, or another number, of every module, in the file's order."""
    bars = go.Bar(x=list(range(len(names))), y=list(norms), customdata=list(names), marker={"color": COLORS[0]})
    bars.hovertemplate = "%{customdata}<br>%{y:.4g}<extra></extra>"
    figure = go.Figure(bars)
    figure.update_xaxes(title="module, in the file's order").update_yaxes(title=title, rangemode="tozero")
    return _finish(figure, 320)


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
    blocks = np.broadcast_to(np.array([str(block) for block in table.columns]), table.shape)
    heat = go.Heatmap(
        z=table.to_numpy(), x=list(range(len(short))), y=list(table.index), customdata=blocks, xgap=1, ygap=1, **scale
    )
    figure = go.Figure(
        heat.update(
            colorbar={"title": title, "thickness": 12}, hovertemplate="%{customdata}<br>%{y}: %{z:.4g}<extra></extra>"
        )
    )
    figure.update_xaxes(
        title="block, in the file's order",
        tickvals=list(range(len(short))),
        ticktext=short,
        showticklabels=len(short) <= 24,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    return _finish(figure, 160 + 26 * len(table) + (60 if len(short) <= 24 else 0))


def along_run(table: pd.DataFrame, title: str) -> go.Figure:
    """Predictions along one training run. table: columns step, predicted, name and, where there is a label, true."""
    hover = "%{text}<br>step %{x}: %{y:.4g}<extra></extra>"
    figure = go.Figure(
        go.Scatter(
            x=table["step"],
            y=table["predicted"],
            text=table["name"],
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
            text=table["name"],
            name="measured",
            mode="markers",
            marker={"color": COLORS[1], "size": 8},
        )
    figure.update_xaxes(title="step or epoch, from the names").update_yaxes(title=title)
    return _finish(figure, 280, legend={"orientation": "h", "y": 1.12})


def frequencies(counts: pd.Series, title: str) -> go.Figure:
    """Counts of words, the most frequent on top."""
    figure = go.Figure(go.Bar(x=counts.to_numpy(), y=list(counts.index), orientation="h", marker={"color": COLORS[0]}))
    figure.update_yaxes(autorange="reversed", automargin=True, dtick=1).update_xaxes(title=title)
    return _finish(figure, 80 + 20 * len(counts))


def module_comparison(table: pd.DataFrame, first: str, second: str) -> go.Figure:
    """Norms of two LoRAs side by side, and the cosine of their updates, module by module. table: as the page LoRA
    makes it, indexed by module.
    """
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    x = list(range(len(table)))
    for name, column, color in ((first, "‖ΔW₁‖", COLORS[0]), (second, "‖ΔW₂‖", COLORS[1])):
        figure.add_trace(
            go.Bar(x=x, y=table[column], name=name, marker={"color": color}, customdata=list(table.index)), 1, 1
        )
    figure.add_trace(
        go.Bar(x=x, y=table["cosine"], name="cosine", marker={"color": COLORS[2]}, customdata=list(table.index)), 2, 1
    )
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
        figure.add_scatter(
            x=np.arange(1, len(positive) + 1),
            y=positive,
            name=name,
            mode="lines+markers",
            line=line,
            hoverlabel={"namelength": -1},
        )
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
            figure.add_trace(
                go.Heatmap(z=matrix, zmin=-limit, zmax=limit, colorscale="RdBu", showscale=False, hoverinfo="z"),
                row,
                column,
            )
    figure.update_yaxes(autorange="reversed", showticklabels=False).update_xaxes(showticklabels=False)
    return _finish(figure, 420)


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
    return _finish(figure, 300, title={"text": title, "font": {"size": 14}})


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
    words = {"annotation_text": "what rounding explains", "annotation_position": "top left"}
    figure.add_hline(y=float(np.log10(tolerance)), line={"dash": "dash", "color": "gray"}, **words)
    ticks = list(range(-18, 7, 2))
    figure.update_yaxes(
        title="relative change of the prediction", tickvals=ticks, ticktext=[f"10<sup>{t}</sup>" for t in ticks]
    )
    return _finish(
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
    return _finish(figure, 320, legend={"orientation": "h", "y": 1.12})


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
    return _finish(figure, 260)


def ranking(scores: pd.Series, measured: pd.Series | None, title: str, selected: Sequence[str] = ()) -> go.Figure:
    """Scores in falling order against their rank, with the measured values where they are something else."""
    names, ranks = list(scores.index), np.arange(1, len(scores) + 1)
    figure = go.Figure()
    if measured is not None and measured.notna().any():
        marker = {"color": COLORS[1], "size": 6, "opacity": 0.6}
        figure.add_scattergl(x=ranks, y=measured, customdata=names, name="measured", mode="markers", marker=marker)
    figure.add_scattergl(
        x=ranks,
        y=scores,
        customdata=names,
        name="predicted" if measured is not None else "measured",
        mode="markers",
        marker={"color": COLORS[0], "size": 6},
    )
    figure.update_traces(hovertemplate="%{customdata}<br>rank %{x}: %{y:.4g}")
    if chosen := set(selected) & set(names):
        figure.update_traces(
            selectedpoints=[i for i, name in enumerate(names) if name in chosen],
            unselected={"marker": {"opacity": 0.15}},
        )
    figure.update_xaxes(title="rank").update_yaxes(title=title)
    return _finish(figure, 240, legend={"orientation": "h", "y": 1.15})


def collection_map(
    picture: pd.DataFrame,
    names: Mapping[str, str],
    colours: pd.Series | None,
    selected: Sequence[str],
    density: bool = False,
    regions: Mapping[str, Sequence[str]] | None = None,
) -> go.Figure:
    """LoRAs as points. picture: index ids, columns x, y (and z); colours: by id, numbers as a scale, anything else
    as categories; selected ones stand out.

    density: shaded contours under the points; regions: names written over the middle of some LoRAs. Both in two
    dimensions only.
    """
    figure = go.Figure()
    if density and "z" not in picture and len(picture) > 2:
        contours = go.Histogram2dContour(
            x=picture["x"], y=picture["y"], colorscale=[[0, "rgba(128,128,128,0)"], [1, "rgba(128,128,128,0.55)"]]
        )
        figure.add_trace(
            contours.update(showscale=False, ncontours=12, line={"width": 0}, hoverinfo="skip", showlegend=False)
        )
    for region, members in (regions or {}).items():
        if "z" not in picture and (inside := [id for id in members if id in picture.index]):
            middle = picture.loc[inside].median()
            figure.add_annotation(
                x=middle["x"],
                y=middle["y"],
                text=f"<b>{region}</b>",
                showarrow=False,
                bgcolor="rgba(128,128,128,0.25)",
                borderpad=2,
            )
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
        hover = (
            "<b>%{text}</b>"
            + (f"<br>{colours.name}: %{{meta}}" if colours is not None and not numeric else "")
            + "<extra></extra>"
        )
        ids = part.index.to_numpy(
            object
        )  # arrays of objects are taken as they are, lists are looked through one by one
        text = np.array(
            (
                [names[id] + f"<br>{value:.4g}" for id, value in zip(ids, own, strict=True)]
                if numeric
                else [names[id] for id in ids]
            ),
            object,
        )
        figure.add_trace(
            kind(
                **trace,
                mode="markers",
                name=str(title),
                meta=str(title),
                customdata=ids,
                text=text,
                marker=marker,
                hovertemplate=hover,
            )
        )
        if chosen and "z" not in picture:
            figure.data[-1].update(
                selectedpoints=[k for k, id in enumerate(part.index) if id in chosen],
                unselected={"marker": {"opacity": 0.2}},
            )
    if "z" in picture:
        figure.update_scenes(**{f"{axis}axis": {"title": "", "showticklabels": False} for axis in "xyz"})
    figure.update_xaxes(title="", showticklabels=False, zeroline=False).update_yaxes(
        title="", showticklabels=False, zeroline=False
    )
    return _finish(
        figure,
        560,
        legend={"orientation": "h", "y": 1.08},
        showlegend=colours is not None and not numeric,
        dragmode="lasso",
    )


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
    if (told := shown[shown["paper"].notna()]).shape[0]:
        bars = {"type": "data", "array": told["paper_std"].fillna(0), "thickness": 1.5}
        marker = {"color": COLORS[1], "size": 11, "symbol": "circle-open", "line": {"width": 2.5}}
        figure.add_scatter(
            x=told["paper"],
            y=told["row"],
            mode="markers",
            name="in the paper (other zoos)",
            marker=marker,
            error_x=bars,
        )
    figure.update_yaxes(autorange="reversed", automargin=True).update_xaxes(title=title)
    return _finish(figure, 120 + 32 * len(shown), legend={"orientation": "h", "y": 1.12})


def across(
    table: pd.DataFrame,
    x_title: str,
    y_titles: Mapping[str, str] | None = None,
    log_y: bool = False,
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
    return _finish(figure, 460, legend={"orientation": "h", "y": -0.2}).update_layout(margin={"t": 50, "b": 90})


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
    figure.add_vline(
        x=tolerance,
        line={"dash": "dash", "color": "gray"},
        annotation_text="rounding in float32 ends here",
        annotation_position="top left",
    )
    figure.update_xaxes(title="relative change of the latent vector", type="log", exponentformat="power").update_yaxes(
        autorange="reversed", automargin=True
    )
    return _finish(figure, 360, legend={"orientation": "h", "y": -0.25})


def sheet(image: Image.Image) -> go.Figure:
    """A picture as a figure, without axes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    figure = go.Figure(
        go.Image(source="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), hoverinfo="skip")
    )
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.update_layout(height=image.height, width=image.width, margin={"l": 0, "r": 0, "t": 0, "b": 0})
