"""Names of labels, classes, LoRAs and modules stand in figures letter by letter, though Plotly reads HTML."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lol_core.insight import plots
from lol_core.insight.plots.experiments import errors_of_models
from ui.figures import numbers_of

NAMES = ["<b>bold</b>.up", "a<br>b & c.down"]
TITLE = "<script>%{x}</script>"
FRAME = pd.DataFrame(
    {"true": [0.0, 1.0], "predicted": [0.5, 0.5], "part": "test", "name": NAMES, "step": [1, 2]}, index=["1", "2"]
)
PLACES = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]}, index=["1", "2"])
CALLED = dict(zip(PLACES.index, NAMES, strict=True))
MERGED = pd.DataFrame({name: [0.5, 0.5] for name in (*NAMES, "from the sum", "lost", "cosine")}, index=NAMES)
BINS = pd.DataFrame({"true": [0.0], "predicted": [0.0], "standard error": [0.1], "LoRAs": [2]})
SQUARE = np.eye(2)
FIGURES = {
    "map by classes": plots.collection_map(
        PLACES, CALLED, pd.Series(NAMES, PLACES.index, name=TITLE), (), regions={TITLE: ["1"]}
    ),
    "map by numbers": plots.collection_map(
        pd.DataFrame({"x": range(9), "y": range(9)}, index=list("012345678")),
        dict.fromkeys(map(str, range(9)), TITLE),
        pd.Series(range(9), name=TITLE),
        (),
    ),
    "frequencies": plots.frequencies(pd.Series([2, 1], NAMES), "pictures"),
    "an edit": plots.edit_path([0.0, 1.0], SQUARE, NAMES, 0, step=1),
    "a merge": plots.merged_modules(MERGED, NAMES),
    "norms": plots.module_norms(NAMES, [1.0, 2.0]),
    "a base": plots.base_map(pd.DataFrame(SQUARE, index=NAMES, columns=NAMES), TITLE),
    "two LoRAs": plots.module_comparison(MERGED.assign(**{"‖ΔW₁‖": 1.0, "‖ΔW₂‖": 1.0}), *NAMES),
    "spectra": plots.spectra(NAMES, [np.ones(2)] * 2),
    "learning": plots.learning_curves(
        {TITLE: [{"epoch": 1, "train_loss": 1.0, "validation_loss": 1.0, "validation_score": 1.0}]}
    ),
    "predictions": plots.predicted_against_true(FRAME, TITLE),
    "residuals": plots.residuals(FRAME, TITLE),
    "calibration": plots.calibration_curve(BINS, TITLE, False),
    "calibration of a class": plots.calibration_curve(BINS, TITLE, True),
    "confusion": plots.confusion_heatmap(pd.DataFrame(SQUARE, index=NAMES, columns=NAMES)),
    "a run": plots.along_run(FRAME, TITLE),
    "a ranking": plots.ranking(FRAME["true"].set_axis(NAMES), FRAME["predicted"].set_axis(NAMES), TITLE),
    "R": plots.matrix(SQUARE, TITLE),
    "stages": plots.passage(NAMES, [0.1, 0.1], [0.1, None]),
    "changes": plots.spread_of_changes(pd.DataFrame({"model": NAMES, "group": "GL", "change": [0.1, 0.1]}), 1e-3, 1e-9),
}


def test_what_rounding_explains_is_written_beside_its_line() -> None:
    """Lines are placed on a logarithmic axis by their value, texts by its logarithm."""
    figure = errors_of_models(pd.DataFrame({"GL(r)": [0.1, 1e-7]}, NAMES), 1e-3)
    assert figure.layout.shapes[0].x0 == 1e-3 and figure.layout.annotations[0].x == -3


@pytest.mark.parametrize("name", FIGURES)
def test_no_name_is_read_as_html(name: str) -> None:
    figure = go.Figure(FIGURES[name])
    if name == "a ranking":  # ids, that the figure does not show
        figure.update_traces(customdata=None)
    said = json.dumps(json.loads(figure.to_json())).lower()
    assert "&lt;" in said and not any(tag in said for tag in ("<script", "<b>bold", "a<br>", "b & c"))


def test_names_in_the_numbers_of_a_figure_are_as_they_were() -> None:
    assert list(numbers_of(plots.matrices(dict.fromkeys(NAMES, np.eye(1))))["matrix"]) == NAMES


def test_classes_that_are_numbers_are_no_scale() -> None:
    """Class 10 stood nine times as far from class 1 as class 2 does."""
    figure = plots.confusion_heatmap(pd.DataFrame(np.eye(3), index=["1", "2", "10"], columns=["1", "2", "10"]))
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "category"
