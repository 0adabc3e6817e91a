from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import TaskError
from lol_core.insight.scores import over_folds
from lol_core.learning.config import TrainingConfig
from lol_core.learning.crossvalidation import Folds, crossvalidate
from lol_core.learning.models import ModelConfig
from lol_core.learning.verdict import Difference

CONFIG = TrainingConfig(model="gl_net", model_config=ModelConfig(width=16), epochs=4, batch_size=16)


@pytest.fixture(scope="module")
def found(synthetic_folder: Path) -> Folds:
    return crossvalidate(Zoo.open(synthetic_folder), ["size"], CONFIG, 3)


def test_every_lora_is_held_out_once_and_predicted(found: Folds, synthetic_folder: Path) -> None:
    zoo = Zoo.open(synthetic_folder)
    assert sorted(found.truth.index) == sorted(zoo.ids) and sorted(np.bincount(found.fold)) == [20, 20, 20]
    assert set(found.predicted) == {"model", "constant", "structure only", "norms only"}
    assert all(np.isfinite(values).all() and values.shape == (60, 1) for values in found.predicted.values())
    for k in range(3):  # the constant of a fold is the mean of the other folds
        others = found.truth.loc[found.fold != k, "size"].mean()
        assert found.predicted["constant"][found.fold == k] == pytest.approx(others)


def test_the_model_beats_a_constant_and_norms_cannot_be_told_from_themselves(found: Folds) -> None:
    scores = found.scores()
    assert scores["norms only"]["kendall_tau"][0] > 0.5, "the label is a norm"
    ours = Folds(found.task, found.truth, found.predicted | {"model": found.predicted["norms only"]}, found.fold)
    gap = ours.difference("constant", draws=100)
    assert gap.value > 0.5 and gap.low > 0.3 and gap.low < gap.value < gap.high
    assert ours.difference("norms only", draws=20) == Difference(0.0, 0.0, 0.0)


@pytest.mark.whole_forests  # as what it is compared with, which other tests share
def test_the_same_seed_gives_the_same_predictions(found: Folds, synthetic_folder: Path) -> None:
    again = crossvalidate(Zoo.open(synthetic_folder), ["size"], CONFIG, 3)
    assert all((again.predicted[name] == values).all() for name, values in found.predicted.items())


def test_groups_stay_in_one_fold(synthetic_folder: Path) -> None:
    zoo = Zoo.open(synthetic_folder)
    grouped = crossvalidate(
        zoo,
        ["positive"],
        TrainingConfig(model="svd", model_config=ModelConfig(width=8), epochs=1, group_column="author"),
        3,
    )
    folds = zoo.labels["author"].reindex(grouped.truth.index).groupby(grouped.fold).unique()
    assert sum(len(authors) for authors in folds) == zoo.labels["author"].nunique()


def test_it_stops_and_refuses(synthetic_folder: Path) -> None:
    zoo = Zoo.open(synthetic_folder)
    with pytest.raises(TaskError, match="two folds"):
        crossvalidate(zoo, ["size"], CONFIG, 1)
    with pytest.raises(TaskError, match="folds"):
        crossvalidate(zoo, ["size"], CONFIG, 61)
    with pytest.raises(Stopped):
        crossvalidate(zoo, ["size"], CONFIG, 2, reporter=Reporter(stop=lambda: True))


def test_ranks_are_compared_within_folds(found: Folds) -> None:
    """Two models may differ by a constant, which ranks nothing."""
    shifted = found.predicted["norms only"] + 10 * found.fold[:, None]
    ours = Folds(found.task, found.truth, found.predicted | {"model": shifted}, found.fold)
    assert ours.difference("norms only", draws=20) == Difference(0.0, 0.0, 0.0)
    assert ours.difference("constant", draws=20).value == pytest.approx(ours.scores()["model"]["kendall_tau"][0])


def test_the_command_tells_small_scores_from_zero(synthetic_folder: Path, tmp_path: Path, found: Folds) -> None:
    labels = Zoo.open(synthetic_folder).labels
    labels.assign(size=labels["size"] / 1000).rename_axis("path").to_csv(tmp_path / "labels.csv")
    command = ["crossvalidate", "--zoo", str(synthetic_folder), "--labels", str(tmp_path / "labels.csv"), "--target"]
    command += ["size", "--model", "svd", "--folds", "3", "--epochs", "2"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "0.000 ± 0.000" not in result.output and "nan" not in result.output
    assert "Kendall τ within folds, svd less norms only" in result.output and "svd less constant" in result.output
    assert over_folds(0.5, 0.25) == "0.500 ± 0.250" and over_folds(9.57e-5, 3.6e-5) == "9.57e-05 ± 3.6e-05"
