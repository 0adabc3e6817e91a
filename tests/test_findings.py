"""What is concluded from scores: intervals, verdicts, and numbers said plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lol_core.collections.zoo import Zoo
from lol_core.experiments import OF_PAPER
from lol_core.experiments.comparison import best_rival, differences, least_clear
from lol_core.experiments.context import Context
from lol_core.experiments.models import beats, unseen
from lol_core.experiments.paired import paired
from lol_core.experiments.question import fold_of
from lol_core.experiments.result import (
    Finding,
    Holds,
    Result,
    alike,
    blocks,
    verdict,
    weakest,
    wide,
    with_interval,
    with_spread,
)
from lol_core.experiments.search import SMALL, Halving, Variant
from lol_core.experiments.table5 import LOSS_QUESTION, predicted_well
from lol_core.experiments.trials import Trials
from lol_core.learning.verdict import Difference, over_seeds
from tests.conftest import ROOT
from tests.test_experiments import CELLS, SAMPLES


@cache
def glosses() -> Zoo:
    return Zoo.open(SAMPLES / "glosses")


def with_scores(folder: Path, scores: Mapping[str, Sequence[float | None]], folded: bool = False) -> Trials:
    """Trials that found these R² at each seed; None where a model diverged."""
    question = replace(LOSS_QUESTION, folded=folded)
    budget = replace(SMALL, seeds=len(next(iter(scores.values()))))
    trials = Trials(question, glosses(), budget, folder, models=tuple(scores))
    for name, values in scores.items():
        for seed, value in enumerate(values):
            line = {"model": name, "seed": seed, "validation_loss": 0.0}
            found = {"scores": {}} if value is None else {"scores": {"r2": value}, "predicted": [value]}
            trials.kept.add(**line, setting=budget.settings(Variant.of(name))[0].to_dict(), **found)
    return trials


def test_a_split_at_which_a_model_diverged_leaves_its_differences_open(tmp_path: Path) -> None:
    trials = with_scores(tmp_path, {"svd": [0.9, 0.91, None], "mlp": [0.1, 0.12, 0.13], "dense": [None] * 3})
    assert verdict(differences(trials, "r2", "svd", "mlp")) == Holds.NOT_CLEAR
    assert verdict(differences(trials, "r2", "dense", "mlp")) == Holds.NOT_CLEAR
    assert "not defined" in with_interval(differences(trials, "r2", "svd", "mlp"))
    assert best_rival(trials, "r2", ["dense", "svd", "mlp"]) == "mlp"
    assert np.isnan(paired(with_scores(tmp_path / "folds", {"svd": [None], "mlp": [0.1]}, True), "svd", "mlp").value)


def test_a_model_is_better_than_all_where_it_is_better_than_the_least_clear(tmp_path: Path) -> None:
    close, unsteady, diverged = [0.85, 0.86, 0.87], [0.6, 0.99, 0.7], [None, 0.1, 0.1]
    trials = with_scores(tmp_path, {"svd": [0.9, 0.91, 0.92], "mlp": close, "dense": unsteady, "gl_net": diverged})
    rival, gap = least_clear(trials, "r2", "svd", ["svd", "mlp", "dense", "gl_net"])
    assert rival == "dense" and verdict(gap) == Holds.NOT_CLEAR and gap.value > 0
    rival, gap = least_clear(trials, "r2", "svd", ["mlp"])
    assert rival == "mlp" and verdict(gap) == Holds.YES
    assert verdict(least_clear(trials, "r2", "svd", ["mlp", "dense"], lower_is_better=True)[1]) == Holds.NO


def test_who_decides_is_judged_as_one_picked_from_all_others(tmp_path: Path) -> None:
    far = [0.1, 0.12, 0.1]
    found = {"svd": [0.9, 0.91, 0.92], "mlp": [0.89, 0.893, 0.908], "dense": far, "gl_net": far}
    trials = with_scores(tmp_path, found)
    assert verdict(least_clear(trials, "r2", "svd", ["mlp"])[1]) == Holds.YES
    rival, gap = least_clear(trials, "r2", "svd", ["mlp", "dense", "gl_net"])
    assert rival == "mlp" and verdict(gap) == Holds.NOT_CLEAR


def test_tuckernet_is_judged_at_the_seeds_it_was_not_made_on_and_for_all_questions_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (
        [0.6, 0.9, 0.9, *[0.7] * 5],
        [0.5, 0.5, 0.5, *(0.7 - gap for gap in (0.01, 0.017, 0.012, 0.016, 0.03))],
    )
    trials = with_scores(tmp_path, {"tucker": ours, "gl_net": theirs})
    context = Context(SAMPLES, tmp_path, replace(trials.budget, loras=None, search=Halving()))
    monkeypatch.setattr(Context, "trials", lambda *_: trials)
    judged = unseen(context, LOSS_QUESTION, "r2")
    assert judged.index.tolist() == [3, 4, 5, 6, 7]
    assert len(unseen(context, replace(LOSS_QUESTION, folded=True), "r2")) == 8
    assert verdict(over_seeds((judged["tucker"] - judged["gl_net"]).tolist(), trials.test_share)) == Holds.YES
    assert beats(trials, judged, "validation loss, R²", "r2").holds == Holds.NOT_CLEAR


@pytest.mark.parametrize(
    ("second", "held"),
    [
        ([0.99, 0.991, 0.992], Holds.YES),
        ([0.955, 0.96, 0.965], Holds.NOT_CLEAR),  # below 0.98 by itself, and not as one of five
        ([0.5, 0.51, 0.52], Holds.NO),
    ],
)
def test_several_models_are_two_of_five_by_intervals_that_hold_together(
    tmp_path: Path, second: list[float], held: Holds
) -> None:
    rest = {name: [0.1, 0.11, 0.12] for name in ("mlp", "o_align", "dense")}
    trials = with_scores(tmp_path, {"svd": [0.99, 0.992, 0.991], "gl_net": second, **rest})
    for seed in range(3):
        line = {"model": "norms only", "seed": seed, "setting": None, "validation_loss": 0.0}
        trials.kept.add(**line, scores={"r2": 0.2 + 0.01 * seed})
    assert predicted_well("the loss", trials)[0].holds == held


def test_a_paired_bootstrap_over_folds_tells_a_good_ranking_from_a_bad_one(tmp_path: Path) -> None:
    question = replace(LOSS_QUESTION, folded=True, score="kendall_tau")
    trials = Trials(question, Zoo.open(SAMPLES / "glosses"), replace(SMALL, seeds=5), tmp_path, models=("svd",))
    rng = np.random.default_rng(0)
    for seed in range(5):
        truth = trials.zoo.labels.loc[fold_of(trials.labelled, seed)["test"], "validation_loss"].to_numpy()
        noise = rng.normal(size=len(truth)) * truth.std()
        for name, values in (("svd", truth + 0.1 * noise), ("constant", noise), ("norms only", truth + 0.1 * noise)):
            setting = trials.budget.settings(Variant.of("svd"))[0].to_dict() if name == "svd" else None
            line = {"model": name, "seed": seed, "setting": setting, "validation_loss": 0.0, "scores": {}}
            trials.kept.add(**line, predicted=values.tolist())
    assert paired(trials, "svd", "constant", draws=100).low > 0.3
    same = paired(trials, "svd", "norms only", draws=100)
    assert same.value == same.low == same.high == 0


def test_verdicts_are_those_of_whole_intervals() -> None:
    above, across, below, alone = (Difference(*gap) for gap in ((2, 1, 3), (1, -1, 3), (-2, -3, -1), (1, nan, nan)))
    assert [*map(verdict, (above, across, below, alone))] == [Holds.YES, Holds.NOT_CLEAR, Holds.NO, Holds.NOT_CLEAR]
    assert [alike(gap, 1.5) for gap in (Difference(0, -1, 1), across, above, alone)] == [
        *(Holds.YES, Holds.NOT_CLEAR, Holds.NOT_CLEAR, Holds.NOT_CLEAR)
    ]
    assert alike(below, 0.5) == alike(above, 0.5) == Holds.NO
    assert weakest([Holds.YES, Holds.NOT_CLEAR]) == Holds.NOT_CLEAR and weakest([Holds.NO, Holds.YES]) == Holds.NO
    assert with_interval(across) == "+1.000 (-1.000 to +3.000)" and "no interval" in with_interval(alone)


def test_intervals_over_overlapping_splits_are_those_of_nadeau_and_bengio() -> None:
    values, share = [0.1, 0.2, 0.3, 0.4, 0.5], 15 / 70
    plain = t_interval(values)
    wide = over_seeds(values, share)
    assert (wide.high - wide.value) / plain == pytest.approx(np.sqrt(1 + 5 * share)) == pytest.approx(1.44, abs=0.01)
    five = over_seeds(values, 0.0, among=5)
    assert (five.high - five.value) / plain == pytest.approx(4.6041 / 2.7764, abs=1e-3)  # t of .995 and .975, df 4


def t_interval(values: list[float]) -> float:
    """Half the width of the plain 95 % interval of a mean."""
    return 2.776445 * float(np.std(values, ddof=1)) / len(values) ** 0.5


def test_numbers_are_said_plainly() -> None:
    assert (
        with_spread(0.1234, 0.004) == "0.123 ± 0.004"
        and with_spread(2e-7, float("nan")) == "2e-07"
        and with_spread(float("nan"), 0.1) == "–"
    )
    cells = pd.DataFrame(
        [
            ("a", "x: one", 0.5, 0.1, 0.4, 0.1),
            ("b", "x: one", 0.6, 0.1, np.nan, np.nan),
            ("a", "y: one", 1.0, np.nan, np.nan, np.nan),
        ],
        columns=CELLS,
    )
    heads = blocks(cells)
    assert [head for head, _ in heads] == ["x", "y"] and heads[0][1].loc["b", "one (paper)"] == "–"
    assert wide(cells).loc["b", "y: one"] == ""
    turned = pd.concat([cells[:2], cells[:2].iloc[::-1].assign(column="z")])
    assert list(wide(turned)["z"]) == list(wide(turned)["x: one"]), "a row is known by its name, not by its place"


def test_a_question_of_our_own_says_so() -> None:
    asked = Finding("GL-net is best.", Holds.YES, "it is.")
    ours = Finding("Does it rank better than norms?", Holds.YES, "it does.", in_paper=False)
    made = Result("x", "X", pd.DataFrame(columns=CELLS), [ours, asked], [], go.Figure(), {})
    assert made.judged == [("The paper's findings", [asked]), ("Not asked in the paper", [ours])]
    text = made.markdown()
    assert text.index("GL-net is best.") < text.index("**Not asked in the paper**") < text.index("better than norms?")
    assert "The paper's" not in replace(made, findings=[ours]).markdown()
    for name in OF_PAPER:
        findings = Result.read(ROOT / "docs" / "results" / name).findings
        assert any(finding.in_paper for finding in findings)
