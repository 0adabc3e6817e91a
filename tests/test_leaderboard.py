from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lol_core.collections.zoo import Zoo
from lol_core.insight.novelty import Known
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig
from lol_core.learning.evaluation import calibration, error_slices
from lol_core.learning.fit import plan, train
from lol_core.learning.leaderboard import best_control, disagreement, leaderboard, verdict
from lol_core.learning.models import ModelConfig


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> tuple[Zoo, Checkpoint]:
    zoo = Zoo.open(synthetic_folder)
    config = TrainingConfig(
        model="gl_net", model_config=ModelConfig(width=16, equivariant_width=4), epochs=4, batch_size=16
    )
    return zoo, train(zoo, plan(zoo, ["size"], config), config, tmp_path_factory.mktemp("run") / "run")


def judged(
    checkpoint: Checkpoint,
    score: float,
    controls: dict[str, float],
    interval: tuple[float, float] | None = None,
    seed: int = 0,
) -> Checkpoint:
    """The same model with other scores."""
    metrics = checkpoint.metrics | {"test": checkpoint.metrics["test"] | {"r2": score}}
    named = {name: {"r2": value} for name, value in controls.items()}
    return dataclasses.replace(
        checkpoint,
        metrics=metrics,
        controls=named,
        interval=interval,
        config=dataclasses.replace(checkpoint.config, seed=seed),
    )


def test_the_verdict_is_about_the_best_control_and_the_interval(fitted: tuple[Zoo, Checkpoint]) -> None:
    model = fitted[1]
    controls = {"constant": 0.0, "structure only": 0.3, "norms only": 0.2}
    assert best_control(judged(model, 0.5, controls)) == ("structure only", 0.3)
    assert verdict(judged(model, 0.25, controls, (0.1, 0.4))) == "no better than file metadata"
    assert verdict(judged(model, 0.5, controls, (0.2, 0.7))) == "not clearly better than file metadata"
    assert verdict(judged(model, 0.5, controls, (0.4, 0.7))) == "better than every control"
    assert verdict(judged(model, 0.5, {})).startswith("not compared")
    assert verdict(judged(model, float("nan"), controls)) == "no better than file metadata"


def test_seeds_stand_together_and_the_best_comes_first(fitted: tuple[Zoo, Checkpoint]) -> None:
    model = fitted[1]
    good = [judged(model, score, {"norms only": 0.3}, seed=seed) for seed, score in enumerate((0.7, 0.8, 0.75))]
    board = leaderboard(good)
    assert len(board) == 1 and board.loc[0, "seeds"] == 3
    assert board.loc[0, "test"] == pytest.approx(0.75) and board.loc[0, "± std"] == pytest.approx(0.05)
    assert board.loc[0, "margin"] == pytest.approx(0.45) and board.loc[0, "verdict"] == "better than every control"
    wide = [judged(model, score, {"norms only": 0.3}, seed=seed) for seed, score in enumerate((0.0, 0.9, 0.2))]
    assert leaderboard(wide).loc[0, "verdict"] == "not clearly better than the norms of the updates"
    assert leaderboard([]).empty


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


def test_a_lora_far_from_the_training_set_is_outside(fitted: tuple[Zoo, Checkpoint]) -> None:
    zoo, model = fitted
    known = Known.of(model, zoo)
    train = [zoo.load(id) for id in model.split["train"]]
    marks = known.strangeness(train)
    assert marks["outside"].mean() < 0.05 and marks["latent"].between(0, 1).all()
    layers = tuple(dataclasses.replace(layer, U=layer.U * 1000) for layer in train[0].layers)
    assert known.strangeness([dataclasses.replace(train[0], layers=layers)])["outside"].all()
