"""The trained models that come with the sample zoos, and the commands on their cards."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.zoo import Zoo
from lol_core.experiments.shipped import OTHER
from lol_core.learning.card import command
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.training import plan, train
from tests.conftest import ROOT
from tests.test_pages import opened

SAMPLES = ROOT / "sample_loras"
SHIPPED = sorted(path.parent for path in (SAMPLES / "checkpoints").glob("*/checkpoint.json"))


def test_two_models_come_for_each_question() -> None:
    assert {path.name for path in SHIPPED} == {
        f"{question.name}-{model.replace('_', '-')}" for question, other in OTHER.items() for model in ("gl_net", other)
    }
    assert not list((SAMPLES / "checkpoints").rglob("state.safetensors"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_model_scores_what_its_card_says(folder: Path) -> None:
    checkpoint = Checkpoint.load(folder)
    zoo = Zoo.open(SAMPLES / checkpoint.zoo)
    assert zoo.fingerprint == checkpoint.fingerprint
    test = checkpoint.split["test"]
    predicted = checkpoint.predict([zoo.load(id) for id in test])
    scores = checkpoint.task.score(zoo.labels.loc[test], predicted)
    for metric, value in checkpoint.metrics["test"].items():
        assert scores[metric] == pytest.approx(value, rel=0.02, abs=0.02), metric


def test_the_command_on_a_card_trains_the_same(synthetic_folder: Path, tmp_path: Path) -> None:
    zoo = Zoo.open(synthetic_folder)
    shape = GLNetConfig(width=8, equivariant_width=4, dropout=0.25, normalize=True)
    config = TrainingConfig("gl_net", shape, epochs=3, batch_size=16, learning_rate=2e-3, patience=0, seed=3)
    checkpoint = train(zoo, plan(zoo, [str(zoo.labels.columns[0])], config), config, tmp_path / "first")
    line = command(checkpoint)
    assert line is not None and line in (tmp_path / "first" / "README.md").read_text()
    again = line.replace(f"--zoo {checkpoint.zoo}", f"--zoo {synthetic_folder}").replace("FOLDER", f"{tmp_path}/second")
    assert CliRunner().invoke(app, shlex.split(again)[1:]).exit_code == 0
    first, second = (json.loads((tmp_path / name / "checkpoint.json").read_text()) for name in ("first", "second"))
    assert first["config"] == second["config"]
    assert first["metrics"]["test"]["mean"] == pytest.approx(second["metrics"]["test"]["mean"], rel=1e-4)


def test_no_command_is_given_where_it_would_train_another_model(synthetic_folder: Path, tmp_path: Path) -> None:
    zoo = Zoo.open(synthetic_folder)
    config = TrainingConfig("gl_net", GLNetConfig(width=8, depth=1), epochs=1)
    checkpoint = train(zoo, plan(zoo, [str(zoo.labels.columns[0])], config), config, tmp_path / "first")
    assert command(checkpoint) is None


@pytest.mark.parametrize("page", ["Predictions", "Invariance"])
def test_a_first_visit_shows_trained_models(page: str) -> None:
    shown = opened(page, SAMPLES / "glosses")
    assert not shown.exception
    text = " ".join(str(element.value) for element in (*shown.markdown, *shown.caption, *shown.info, *shown.subheader))
    assert "No model has been trained" not in text


def test_the_first_needles_are_of_a_model_that_stays_and_one_that_moves() -> None:
    shown = opened("Invariance", SAMPLES / "glosses")
    (models,) = (each for each in shown.multiselect if each.label == "Trained models")
    assert models.value[:2] == ["GL-net → validation_loss (seed 0)", "MLP + O-Align → validation_loss (seed 0)"]
