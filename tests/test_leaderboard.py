from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lol_core.collections.zoo import Zoo
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.evaluation import calibration, error_slices
from lol_core.learning.leaderboard import disagreement, leaderboard, verdict, verdicts
from lol_core.learning.metrics import Scores
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train
from lol_core.learning.verdict import Difference, Outcome, judge, over_seeds


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> tuple[Zoo, Checkpoint]:
    zoo = Zoo.open(synthetic_folder)
    config = TrainingConfig(model="gl_net", model_config=ModelConfig(width=16), epochs=4, batch_size=16)
    return zoo, train(zoo, plan(zoo, ["size"], config), config, tmp_path_factory.mktemp("run") / "run")


def judged(checkpoint: Checkpoint, score: float, controls: dict[str, float], seed: int = 0) -> Checkpoint:
    """The same model with other scores, as a checkpoint written before differences were measured has them."""
    metrics = checkpoint.metrics | {"test": Scores({**checkpoint.metrics["test"], "r2": score})}
    named = {name: Scores({"r2": value}) for name, value in controls.items()}
    config = dataclasses.replace(checkpoint.config, seed=seed)
    return dataclasses.replace(checkpoint, metrics=metrics, controls=named, differences={}, config=config)


def test_a_model_is_better_only_when_it_surely_exceeds_every_control() -> None:
    sure, unsure, below = Difference(0.3, 0.1, 0.5), Difference(0.2, -0.1, 0.5), Difference(-0.2, -0.3, -0.1)
    assert judge("r2", {"constant": sure}).sentence == "better than every control in R²"
    mixed = judge("r2", {"constant": sure, "norms only": unsure})
    assert mixed.outcome is Outcome.NOT_CLEAR and not mixed.better
    assert mixed.sentence == "not clearly better than the norms of the updates in R²"
    assert "+0.200 (95 % -0.100 to +0.500)" in mixed.evidence
    worse = judge("kendall_tau", {"constant": sure, "norms only": unsure, "structure only": below})
    assert worse.sentence == "worse than file metadata in Kendall τ"
    assert judge("r2", {}).sentence.startswith("not compared") and judge("r2", {}).evidence == ""


def test_differences_are_measured_with_the_model_and_kept_with_it(
    fitted: tuple[Zoo, Checkpoint], tmp_path: Path
) -> None:
    model = fitted[1]
    assert set(model.differences) == set(model.controls)
    for name, gaps in model.differences.items():
        assert set(gaps) == {"r2", "kendall_tau"} and gaps["r2"].low <= gaps["r2"].value <= gaps["r2"].high
        assert gaps["r2"].value == pytest.approx(model.metrics["test"]["r2"] - model.controls[name]["r2"])
    model.save(tmp_path / "run")
    assert Checkpoint.load(tmp_path / "run").differences == model.differences
    assert [given.metric for given in verdicts(model)] == ["r2", "kendall_tau"]


def test_without_an_interval_nothing_is_clear(fitted: tuple[Zoo, Checkpoint]) -> None:
    old = judged(fitted[1], 0.9, {"constant": 0.0, "norms only": 0.2})
    assert verdict(old).outcome is Outcome.NOT_CLEAR and "no interval" in verdict(old).evidence
    assert verdict(judged(fitted[1], 0.9, {})).outcome is Outcome.NOT_COMPARED
    assert verdict(judged(fitted[1], float("nan"), {"constant": 0.0})).outcome is Outcome.NOT_CLEAR


def test_seeds_stand_together_and_the_best_comes_first(fitted: tuple[Zoo, Checkpoint]) -> None:
    model = fitted[1]
    good = [judged(model, score, {"norms only": 0.3}, seed=seed) for seed, score in enumerate((0.7, 0.8, 0.75))]
    board = leaderboard(good)
    assert len(board) == 1 and board.loc[0, "seeds"] == 3
    assert board.loc[0, "test"] == pytest.approx(0.75) and board.loc[0, "± std"] == pytest.approx(0.05)
    assert (
        board.loc[0, "margin"] == pytest.approx(0.45) and board.loc[0, "verdict"] == "better than every control in R²"
    )
    wide = [judged(model, score, {"norms only": 0.3}, seed=seed) for seed, score in enumerate((0.0, 0.9, 0.2))]
    assert leaderboard(wide).loc[0, "verdict"] == "not clearly better than the norms of the updates in R²"
    assert leaderboard([]).empty


def test_other_settings_and_trainings_of_one_seed_are_no_seeds(fitted: tuple[Zoo, Checkpoint]) -> None:
    model = fitted[1]
    runs = [judged(model, score, {"norms only": 0.3}, seed=seed) for seed, score in ((0, 0.7), (1, 0.8), (0, 0.72))]
    runs[2].created = "9" + model.created
    faster = judged(model, 0.9, {"norms only": 0.3}, seed=0)
    faster.config = dataclasses.replace(faster.config, learning_rate=0.5)
    board = leaderboard([*runs, faster]).set_index("setting")
    assert board.loc["learning rate 0.5", "seeds"] == 1 and len(board) == 2
    [together] = board[board["seeds"] == 2].to_dict("records")
    assert together["test"] == pytest.approx(0.76), "of the seed that was trained twice the newest"


def test_overlapping_splits_are_not_taken_for_independent_ones() -> None:
    """Nadeau and Bengio's variance, computed by hand: s² (1/J + n_test/n_train), Student's t with two degrees of
    freedom.
    """
    gap = over_seeds([0.1, 0.2, 0.3], test_share=0.25)
    half = 4.302653 * 0.1 * (1 / 3 + 0.25) ** 0.5
    assert (gap.low, gap.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert np.isnan(over_seeds([0.1], 0.25).low)


def test_disagreement_is_the_spread_over_the_models_that_read_a_lora() -> None:
    table = disagreement({"one": pd.Series({"a": 1.0, "b": 2.0, "c": 1.0}), "two": pd.Series({"a": 1.0, "b": 4.0})})
    assert list(table.index) == ["b", "a"] and table.loc["b", "spread"] == pytest.approx(1.0)


def test_calibrated_predictions_lie_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    chance = pd.Series(rng.uniform(size=4000))
    happened = pd.Series((rng.uniform(size=4000) < chance).astype(float))
    bins = calibration(chance, happened)
    assert len(bins) == 10 and bins["LoRAs"].sum() == 4000
    assert ((bins["true"] - bins["predicted"]).abs() < 4 * bins["standard error"]).all()
    overconfident = calibration((chance > 0.5).astype(float) * 0.98 + 0.01, happened)
    assert (overconfident["true"] - overconfident["predicted"]).abs().max() > 0.2


def test_the_slice_where_a_model_fails_comes_first() -> None:
    rng = np.random.default_rng(0)
    labels = pd.DataFrame(
        {"kind": rng.choice(["x", "y"], 200), "rate": rng.uniform(size=200), "name": [f"n{i}" for i in range(200)]}
    )
    errors = pd.Series(rng.normal(size=200)) + 5 * ((labels["kind"] == "y") & (labels["rate"] > 0.75))
    slices = error_slices(errors, labels)
    assert "name" not in set(slices["column"])
    assert slices["column"].iloc[0] == "rate" and slices["p"].iloc[0] < 1e-3 and slices["ratio"].iloc[0] > 1.5
    assert set(slices["column"]) == {"kind", "rate"} and len(slices[slices["column"] == "rate"]) == 4
