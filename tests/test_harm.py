"""How detectors of backdoored LoRAs are trained and judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from lol_core.errors import DataMissingError
from lol_core.experiments.context import Context
from lol_core.experiments.detection import Design, auc, balanced_accuracy, cases, cells_of, clean, folded
from lol_core.experiments.harm import measured
from lol_core.finetuning.backdoors import Attack
from lol_core.learning.bootstrap import separation


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        (recipe, attack, harmful, harmful and number % 6 != 5)
        for recipe in ("fast", "slow", "frozen")
        for attack, harmful in ((Attack.NONE, 0), (Attack.PREFIX, 1), (Attack.PREFIX, 0), (Attack.SOURCE, 1))
        for number in range(12)
    ]
    made = pd.DataFrame(rows, columns=["recipe", "attack", "harmful", "took"]).astype({"attack": str, "took": int})
    return folded(made, 4)


def test_no_detector_sees_what_its_design_holds_back(table: pd.DataFrame) -> None:
    cells = cells_of(table)
    assert len(cells) == 6
    made = list(cases(table, cells))
    assert len(made) == len(set(made)) == 4 * (6 + 1 + 2 + 3 + 6)
    for case in made:
        known, asked = table[case.trained_on(table)], table[case.asked_about(table)]
        assert not set(known.index) & set(asked.index) and set(asked["fold"]) == {case.fold}
        assert ((known["took"] == 1) | clean(known)).all() and known["harmful"].nunique() == 2
        if case.design in (Design.ATTACK, Design.NEITHER):
            assert case.attack not in set(known["attack"]) and case.attack in set(asked["attack"])
        if case.design in (Design.RECIPE, Design.NEITHER):
            assert case.recipe not in set(known["recipe"]) and set(asked["recipe"]) == {case.recipe}
        if case.design is Design.WITHIN:
            assert set(known["recipe"]) == {case.recipe} and set(known.loc[~clean(known), "attack"]) == {case.attack}


def test_auc_compares_a_backdoor_with_clean_loras_of_its_own_recipe_and_fold(table: pd.DataFrame) -> None:
    """Scores that differ between recipes and folds say nothing by that; decoys alone can be asked about."""
    decoy = clean(table) & (table["attack"] == Attack.PREFIX)
    score = (
        table["took"] + 2.0 * decoy + 10 * table["fold"] + table["recipe"].map({"fast": 0, "slow": -50, "frozen": 50})
    )
    cells = cells_of(table)
    scored = {case: score[case.asked_about(table)].tolist() for case in cases(table, cells)}
    everyone = np.ones((1, len(table)))
    prefix = [cell for cell in cells if cell[1] == Attack.PREFIX]
    for design in Design:
        assert auc(table, scored, design, cells)(everyone) == pytest.approx(0.5)
        assert auc(table, scored, design, prefix, decoys=True)(everyone) == 0
    without = everyone * ~decoy.to_numpy()
    assert auc(table, scored, Design.SEEN, cells)(without) == 1


def test_separation_is_the_area_under_the_curve_of_each_part() -> None:
    rng = np.random.default_rng(0)
    y, score, part = rng.integers(0, 2, 60), rng.integers(0, 9, 60).astype(float), np.repeat([0, 1], 30)
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    value = separation(score, positive, negative, np.zeros(60))
    counts = rng.integers(0, 3, (2, 60)).astype(float)
    for row, found in zip(counts, value(counts), strict=True):
        assert found == pytest.approx(roc_auc_score(y, score, sample_weight=row))
    alone = separation(score, positive, negative, part)(np.concatenate([np.ones((1, 30)), np.zeros((1, 30))], 1))
    assert alone == pytest.approx(roc_auc_score(y[:30], score[:30]))
    assert separation(score, positive, negative, part)(np.zeros((1, 60))) == 0.5


def test_without_zoo_and_fits_the_command_that_makes_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="finetune harm"):
        measured(Context(tmp_path, tmp_path / "fits", work=tmp_path))


def test_a_threshold_that_does_not_carry_over_is_seen_in_the_balanced_accuracy(table: pd.DataFrame) -> None:
    """Of a recipe whose scores are all positive every clean LoRA is called a backdoor, while the AUC is 1."""
    score = table["took"] - 0.5 + (table["recipe"] == "slow")
    cells = cells_of(table)
    scored = {case: score[case.asked_about(table)].tolist() for case in cases(table, cells)}
    everyone = np.ones((1, len(table)))
    for recipe, right in (("fast", 1.0), ("slow", 0.5)):
        own = [cell for cell in cells if cell[0] == recipe]
        assert auc(table, scored, Design.NEITHER, own)(everyone) == 1
        assert balanced_accuracy(table, scored, Design.NEITHER, own)(everyone) == right
