"""Figures of a whole collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lol_core.insight.plots.style import COLORS, MAX_SVG_POINTS, as_is, finish, scatter


def collection_map(
    picture: pd.DataFrame,
    names: Mapping[str, str],
    colours: pd.Series | None,
    selected: Sequence[str],
    *,
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
                text=f"<b>{as_is(region)}</b>",
                showarrow=False,
                bgcolor="rgba(128,128,128,0.25)",
                borderpad=2,
            )
    kind = go.Scatter3d if "z" in picture else scatter(len(picture))
    chosen = set(selected)
    size = 4 if "z" in picture else 9 if len(picture) <= MAX_SVG_POINTS else 5
    numeric = colours is not None and pd.api.types.is_numeric_dtype(colours) and colours.nunique() > len(COLORS)
    values = pd.Series("LoRAs", index=picture.index) if colours is None else colours.reindex(picture.index)
    if not numeric:
        common = values.astype("str").where(values.notna(), "unknown")
        kept = common.value_counts().index[: len(COLORS)]
        values = common.where(common.isin(kept) | (common.nunique() <= len(COLORS)), "other")
    called = "" if colours is None else as_is(colours.name)
    for i, (title, part) in enumerate([("", picture)] if numeric else picture.groupby(values, sort=True)):
        own = values.loc[part.index]
        marker: dict[str, object] = {"size": size, "opacity": 0.85, "color": COLORS[i % len(COLORS)]}
        if numeric:
            bar = {"title": called, "thickness": 12}
            bar |= {"orientation": "h", "y": 0, "yanchor": "top", "len": 0.6}
            marker |= {"color": own, "colorscale": "Viridis", "showscale": True, "colorbar": bar}
        trace = {axis: part[axis] for axis in part.columns}
        hover = (
            "<b>%{text}</b>"
            + ("<br>%{meta[1]}: %{meta[0]}" if colours is not None and not numeric else "")
            + "<extra></extra>"
        )
        ids = part.index.to_numpy(
            object
        )  # arrays of objects are taken as they are, lists are looked through one by one
        text = np.array(
            (
                [as_is(names[id]) + f"<br>{value:.4g}" for id, value in zip(ids, own, strict=True)]
                if numeric
                else [as_is(names[id]) for id in ids]
            ),
            object,
        )
        figure.add_trace(
            kind(
                **trace,
                mode="markers",
                name=as_is(title),
                meta=[as_is(title), called],
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
    bare = {"title": "", "showticklabels": False, "zeroline": False, "showgrid": False}
    figure.update_xaxes(**bare).update_yaxes(**bare)
    return finish(
        figure,
        560,
        legend={"orientation": "h", "y": 1.08},
        showlegend=colours is not None and not numeric,
        dragmode="lasso",
    )


def frequencies(counts: pd.Series, title: str) -> go.Figure:
    """Counts of words, the most frequent on top."""
    figure = go.Figure(
        go.Bar(
            x=counts.to_numpy(), y=[as_is(word) for word in counts.index], orientation="h", marker={"color": COLORS[0]}
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True, dtick=1).update_xaxes(title=title)
    return finish(figure, 80 + 20 * len(counts))
