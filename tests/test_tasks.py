"""What bad labels get: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lol_core.collections.zoo import Zoo
from lol_core.errors import CheckpointError, TaskError
from lol_core.insight.plots import confusion_heatmap
from lol_core.learning.config import TrainingConfig
from lol_core.learning.crossvalidation import crossvalidate
from lol_core.learning.evaluation import (
    bootstrap_interval,
    control_scores,
    paired_differences,
    score,
)
from lol_core.learning.metrics import Scores, score_classes
from lol_core.learning.tasks import (
    TASKS,
    Binary,
    Multiclass,
    Regression,
    Task,
    kind_of,
    make_task,
    register,
    task_from_dict,
)
from lol_core.learning.training import plan, train
from lol_core.learning.verdict import Outcome, judge


@pytest.fixture
def labels() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "loss": rng.normal(2, 0.5, 40),
            "accuracy": rng.uniform(0, 1, 40),
            "smile": rng.integers(0, 2, 40),
            "hat": rng.integers(0, 2, 40).astype(float),
            "style": rng.choice(["ink", "oil", "pixel"], 40),
            "constant": 3.0,
            "mostly_missing": [1.0, 2.0, *[np.nan] * 38],
            "infinite": [np.inf] * 35 + [1.0, 2.0, 3.0, 4.0, 5.0],
            "huge": rng.uniform(1, 2, 40) * 1e300,
            "tiny": rng.uniform(1, 2, 40) * 1e-300,
            "comma": [f"{i},5" for i in range(40)],
            "comment": [f"free text {i}" for i in range(40)],
        },
        index=[f"l{i}" for i in range(40)],
    )


def test_kinds_are_found(labels: pd.DataFrame) -> None:
    kinds = {str(column): kind_of(labels[column]) for column in labels}
    assert kinds["loss"] is Regression and kinds["smile"] is kinds["hat"] is Binary and kinds["style"] is Multiclass


def test_a_task_of_ones_own_is_asked_first_and_missed_where_it_is_not_registered(
    labels: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Counts(Regression):
        kind = "counts"

        @classmethod
        def suits(cls, values: pd.Series) -> bool:
            return pd.api.types.is_integer_dtype(values) and not Binary.suits(values)

    counted = labels.assign(count=range(40))
    assert kind_of(counted["count"]) is Regression
    monkeypatch.setitem(TASKS, "counts", Counts)
    assert kind_of(counted["count"]) is Counts and kind_of(labels["smile"]) is Binary
    task = make_task(counted, ["count"])[0]
    assert task_from_dict(task.to_dict()) == task
    monkeypatch.delitem(TASKS, "counts")
    with pytest.raises(CheckpointError, match="There is no task 'counts'; known are .*LOL_MODELS"):
        task_from_dict(task.to_dict())


def test_an_error_in_a_task_of_ones_own_is_told_with_its_place(
    labels: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lol_core.learning.tasks.base.TASKS", dict(TASKS))

    @register
    @dataclass(frozen=True)
    class Faulty(Regression):
        kind = "faulty"

        @classmethod
        def suits(cls, values: pd.Series) -> bool:
            return bool(values.nothing)

        def loss(self, outputs: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("no LoRAs")

    with pytest.raises(TaskError, match=r"The task 'faulty': `suits` ended in an error at .*test_tasks\.py, line \d+"):
        Faulty.suits(labels["loss"])
    task = Faulty.of(labels[["loss"]])
    with pytest.raises(TaskError, match=r"`loss` ended in an error at .* \(ZeroDivisionError: no LoRAs\)"):
        task.loss(torch.zeros(1), torch.zeros(1))
    assert task.numbers(task.fitted(labels).encode(labels)).shape == (len(labels), 1), "what is inherited works"


def test_yes_and_no_with_gaps_are_yes_and_no(labels: pd.DataFrame) -> None:
    """As a table of True and False is joined to LoRAs of which some have no row."""
    labels = labels.assign(glasses=(labels["smile"] == 1).astype(object).where(labels.index != "l0"))
    assert labels["glasses"].dtype == object and kind_of(labels["glasses"]) is Binary
    task, ids = make_task(labels, ["glasses", "smile"])
    assert len(ids) == 39
    assert (task.encode(labels.loc[ids])[:, 0] == torch.tensor(labels["smile"].to_numpy()[1:])).all()


@pytest.mark.parametrize(
    ("targets", "kind", "reason"),
    [
        ([], None, "No target chosen"),
        (["gone"], None, "No label column 'gone'.*'loss'"),
        (["constant"], None, "'constant' is 3.0 for every LoRA"),
        (["mostly_missing"], None, "Only 2 of 40"),
        (["infinite"], None, "Only 5 of 40"),
        (["huge"], None, "'huge' reaches from .*e\\+300.*Give it in another unit"),
        (["tiny"], None, "'tiny' reaches from .*e-300.*Give it in another unit"),
        (["comma"], None, "'comma' has another text for each LoRA, such as '0,5'.*written with a point"),
        (["style"], Regression, "'style' holds text.*where numbers are needed"),
        (["loss"], Binary, "a yes/no task needs 0 and 1"),
        (["loss", "smile"], None, "different kinds"),
        (["style", "comment"], Multiclass, "one target"),
        (["smile"], Multiclass, None),
        (["loss"], Multiclass, "another text for each LoRA"),
    ],
)
def test_labels_that_cannot_be_learnt(
    labels: pd.DataFrame, targets: list[str], kind: type[Task] | None, reason: str | None
) -> None:
    if reason is None:
        assert type(make_task(labels, targets, kind)[0]) is Multiclass
        return
    with pytest.raises(TaskError, match=reason):
        make_task(labels, targets, kind)


def test_a_collection_without_labels_says_how_to_add_them() -> None:
    with pytest.raises(TaskError, match=r"no labels. Put a labels.csv"):
        make_task(pd.DataFrame(index=["a", "b"]), ["x"])


def test_too_many_classes_are_no_classes() -> None:
    labels = pd.DataFrame({"name": [f"n{i}" for i in range(60)]}, index=range(60))
    with pytest.raises(TaskError, match="60 distinct values"):
        make_task(labels, ["name"])


def test_missing_labels_leave_a_lora_out(labels: pd.DataFrame) -> None:
    labels.loc["l3", "loss"] = np.nan
    labels.loc["l4", "loss"] = -np.inf
    _, ids = make_task(labels, ["loss"])
    assert len(ids) == 38 and not {"l3", "l4"} & set(ids)


def test_regression_is_normalised_inside_and_reported_in_its_units(labels: pd.DataFrame) -> None:
    task, ids = make_task(labels, ["loss", "accuracy"])
    task = task.fitted(labels.loc[ids])
    encoded = task.encode(labels.loc[ids])
    assert encoded.mean(0).abs().max() < 1e-5 and (encoded.std(0, correction=0) - 1).abs().max() < 1e-5
    np.testing.assert_allclose(task.decode(encoded), labels[["loss", "accuracy"]], rtol=1e-4, atol=1e-5)
    metrics = score(task, labels, task.decode(encoded))
    assert metrics["r2"] == pytest.approx(1, abs=1e-6) and metrics["kendall_tau"] == pytest.approx(1, abs=1e-3)
    mean = score(task, labels, np.tile(labels[["loss", "accuracy"]].mean(), (40, 1)))
    assert (
        mean["normalized_mse"] == pytest.approx(1) and mean["r2"] == pytest.approx(0) and np.isnan(mean["kendall_tau"])
    )
    assert mean.by_target["loss"]["mse"] == pytest.approx(labels["loss"].var(ddof=0))


def test_labels_far_from_zero_keep_their_differences() -> None:
    """Seconds since 1970, of an hour: float32 knows them to two minutes."""
    labels = pd.DataFrame({"begun": 1.7e9 + np.arange(40.0)})
    task = make_task(labels, ["begun"])[0].fitted(labels)
    np.testing.assert_allclose(task.decode(task.encode(labels)), labels, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (1.0, 1e9)])
def test_a_control_does_not_depend_on_the_unit(labels: pd.DataFrame, scale: float, offset: float) -> None:
    """scikit-learn's trees take what differs by less than 1e-8, or by a billionth, for equal."""
    known, X = labels[["loss"]], labels[["loss"]].to_numpy()
    task = Regression.of(known)
    expected = task.tabular(False, X, known, X, seed=0)
    found = task.tabular(False, X, known * scale + offset, X, seed=0)
    np.testing.assert_allclose((found - offset) / scale, expected, rtol=1e-4)


def test_a_class_that_the_model_does_not_know_stays_in_the_confusion_matrix() -> None:
    truth = pd.Series(["ink", "oil", "wash"], index=list("abc"))
    values = pd.DataFrame({"style": ["ink", "ink", "oil"]}, index=truth.index)
    counts = Multiclass(("style",), ("ink", "oil")).confusion("style", truth, values)
    assert list(counts.index) == ["ink", "oil", "wash"] and list(counts.columns) == ["ink", "oil"]
    assert counts.to_numpy().sum() == 3 and counts.loc["wash", "oil"] == 1


def test_a_confusion_matrix_has_both_answers_and_draws_one_darker_than_none() -> None:
    truth = pd.Series([0, 1, 0], index=list("abc"))
    counts = Binary(("hat",)).confusion("hat", truth, pd.DataFrame({"hat": [0.1, 0.2, 0.3]}, index=truth.index))
    assert counts.to_dict() == {"no": {"no": 2, "yes": 1}, "yes": {"no": 0, "yes": 0}}
    assert confusion_heatmap(counts + 1).data[0].zmin == 0


def test_a_control_says_nothing_of_many_classes() -> None:
    """Warnings are errors here."""
    labels = pd.DataFrame({"style": [f"s{i % 15}" for i in range(20)]})
    task = make_task(labels, ["style"])[0]
    X = np.random.default_rng(0).normal(size=(20, 3))
    assert task.tabular(False, X, labels, X, seed=0).shape == (20, 15)


def test_class_weights_balance_the_loss() -> None:
    labels = pd.DataFrame({"y": [1] * 5 + [0] * 35})
    task = make_task(labels, ["y"])[0].fitted(labels, class_weights=True)
    assert isinstance(task, Binary) and task.class_weights == (7.0,)
    loss = task.loss(torch.zeros(40, 1), task.encode(labels))
    assert loss.item() == pytest.approx(np.log(2) * (5 * 7 + 35) / 40, rel=1e-5)
    styles = pd.DataFrame({"s": ["a"] * 30 + ["b"] * 10})
    weighted = make_task(styles, ["s"])[0].fitted(styles, class_weights=True)
    assert isinstance(weighted, Multiclass)
    assert weighted.class_weights == pytest.approx((40 / 60, 40 / 20))


def test_a_constant_training_part_is_refused(labels: pd.DataFrame) -> None:
    task, _ = make_task(labels, ["smile"])
    with pytest.raises(TaskError, match="same value for every LoRA of the training part"):
        task.fitted(labels[labels.smile == 1])


def test_tasks_survive_json(labels: pd.DataFrame) -> None:
    import json

    for targets in (["loss"], ["smile", "hat"], ["style"]):
        task = make_task(labels, targets)[0].fitted(labels)
        assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_tasks_and_scores_are_read_as_they_were_written_when_all_kinds_were_one_class() -> None:
    fields = {"targets": ["x"], "classes": [], "mean": [2.0], "std": [3.0], "class_weights": []}
    assert task_from_dict(fields | {"kind": "regression"}) == Regression(("x",), (2.0,), (3.0,))
    assert task_from_dict(fields | {"kind": "binary", "class_weights": [7.0]}) == Binary(("x",), (7.0,))
    old = Scores.from_dict({"accuracy": 0.75, "accuracy/a/b": 0.5, "accuracy/c": 1.0})
    assert dict(old) == {"accuracy": 0.75} and old.by_target == {"a/b": {"accuracy": 0.5}, "c": {"accuracy": 1.0}}
    assert Scores.from_dict(old.to_dict()) == old


def test_least_squares_and_known_answers_become_predictions_of_every_kind(labels: pd.DataFrame) -> None:
    for targets in (["loss", "accuracy"], ["smile", "hat"], ["style"]):
        task = make_task(labels, targets)[0].fitted(labels)
        encoded = task.encode(labels)
        for predicted in (task.from_numbers(task.numbers(encoded)), task.decode(task.answers(encoded))):
            assert predicted.shape == (40, len(task.columns))
            assert task.score(labels, predicted)[task.headline] == pytest.approx(1, abs=1e-5)
            assert isinstance(task, Regression) or ((predicted > 0) & (predicted < 1)).all()


def test_binary_and_multiclass_metrics(labels: pd.DataFrame) -> None:
    task = make_task(labels, ["smile", "hat"])[0]
    truth = labels[["smile", "hat"]].to_numpy(float)
    perfect = score(task, labels, truth * 0.98 + 0.01)
    assert perfect["accuracy"] == perfect["auc"] == perfect.by_target["hat"]["accuracy"] == 1
    assert score(task, labels, 1 - truth)["accuracy"] == 0
    task = make_task(labels, ["style"])[0]
    one_hot = task.encode(labels).reshape(-1, 1).eq(torch.arange(3)).double().numpy()
    assert score(task, labels, one_hot * 0.9 + 0.1 / 3)["accuracy"] == 1
    matrix = task.confusion("style", labels["style"], task.frame(one_hot, list(labels.index)))
    assert (np.diag(matrix) == labels["style"].value_counts().sort_index()).all() and matrix.to_numpy().sum() == 40


def test_the_bootstrap_interval_holds_the_score(labels: pd.DataFrame) -> None:
    task = make_task(labels, ["loss"])[0].fitted(labels)
    noisy = labels[["loss"]].to_numpy() + np.random.default_rng(0).normal(0, 0.2, (40, 1))
    low, high = bootstrap_interval(task, labels, noisy, seed=0)
    assert low < score(task, labels, noisy)["r2"] < high < 1


@pytest.mark.parametrize("largest", [0, 2000])
def test_a_resampled_score_is_that_of_the_drawn_loras(
    labels: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr("lol_core.learning.bootstrap.LARGEST_PAIRED", largest)
    labels = labels.assign(loss=labels["loss"].round(1))  # with ties
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 40, (5, 40))
    counts = np.stack([np.bincount(row, minlength=40) for row in drawn]).astype(float)
    for targets, width in ((["loss", "accuracy"], 2), (["smile", "hat"], 2), (["style"], 3)):
        task = make_task(labels, targets)[0].fitted(labels)
        predicted = rng.uniform(0.1, 1, (40, width)).round(1)
        if isinstance(task, Multiclass):
            predicted /= predicted.sum(1, keepdims=True)
        for metric in task.judged:
            expected = [score(task, labels.iloc[row], predicted[row])[metric] for row in drawn]
            np.testing.assert_allclose(task.resampled(metric, labels, predicted)(counts), expected, rtol=1e-9)


def test_a_difference_is_weighed_on_the_same_loras(labels: pd.DataFrame) -> None:
    """Two predictions with large errors in common differ surely by little: unpaired intervals would overlap."""
    task = make_task(labels, ["loss"])[0].fitted(labels)
    rng = np.random.default_rng(1)
    common = labels[["loss"]].to_numpy() + rng.normal(0, 0.3, (40, 1))
    worse = common + 0.1 * np.sign(common - labels[["loss"]].to_numpy())
    gap = paired_differences(task, labels, common, {"worse": worse}, seed=0)["worse"]["r2"]
    intervals = [bootstrap_interval(task, labels, predicted, seed=0) for predicted in (common, worse)]
    assert gap.low > 0 and intervals[0][0] < intervals[1][1]
    assert gap.value == pytest.approx(score(task, labels, common)["r2"] - score(task, labels, worse)["r2"])


@pytest.mark.parametrize(("count", "outcome"), [(5, Outcome.NOT_CLEAR), (6, Outcome.BETTER)])
def test_to_be_right_on_five_loras_proves_nothing(count: int, outcome: Outcome) -> None:
    labels = pd.DataFrame({"smile": [i % 2 for i in range(count)]})
    right = labels.to_numpy(np.float64)
    gaps = paired_differences(Binary(("smile",)), labels, right, {"constant": 1 - right}, seed=0)
    assert judge("accuracy", {name: gap["accuracy"] for name, gap in gaps.items()}).outcome is outcome


def test_a_better_score_in_one_metric_is_not_a_better_score_in_another(labels: pd.DataFrame) -> None:
    """A control that ranks perfectly in the wrong units has no R², and yet no model exceeds it in Kendall's τ."""
    task = make_task(labels, ["loss"])[0].fitted(labels)
    truth = labels[["loss"]].to_numpy()
    noisy = truth + np.random.default_rng(1).normal(0, 0.2, (40, 1))
    gaps = paired_differences(task, labels, noisy, {"ranks": 100 * truth}, seed=0)["ranks"]
    assert judge("r2", {"ranks": gaps["r2"]}).better
    assert judge("kendall_tau", {"ranks": gaps["kendall_tau"]}).outcome is Outcome.WORSE


def test_controls_see_what_they_are_given_and_no_more(labels: pd.DataFrame) -> None:
    task = make_task(labels, ["loss"])[0].fitted(labels)
    ids = list(labels.index)
    split = {"train": ids[:25], "validation": ids[25:30], "test": ids[30:]}
    tell_all = pd.DataFrame({"x": labels["loss"]})
    tell_nothing = pd.DataFrame({"x": np.zeros(40)}, index=ids)
    scores = control_scores(task, labels, split, {"leak": tell_all, "structure only": tell_nothing}, seed=0)
    assert scores["leak"]["r2"] > 0.7
    assert scores["structure only"]["r2"] <= 0.01 and scores["constant"]["r2"] <= 0
    for targets in (["smile"], ["style"]):
        kind = make_task(labels, targets)[0].fitted(labels)
        assert set(control_scores(kind, labels, split, {"structure only": tell_nothing}, seed=0)) == {
            "constant",
            "structure only",
        }


def test_probability_on_classes_that_no_test_lora_has_is_scored_too() -> None:
    probabilities = np.array([[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    scores = score_classes(np.array(["a", "a", "b", "c"]), probabilities, ("a", "b", "c", "d"))
    assert scores["accuracy"] == 0.75 and scores["auc"] == 1


def test_a_task_takes_no_other_ones_place() -> None:
    class Mine(Regression):
        pass

    with pytest.raises(TaskError, match="a task 'regression' already .* Set another `kind` in Mine"):
        register(Mine)
    assert TASKS["regression"] is Regression


def test_one_target_and_a_folder_may_be_text(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    config = TrainingConfig("svd", epochs=1)
    planned = plan(synthetic_zoo, "size", config)
    assert planned.task.targets == ("size",)
    assert train(synthetic_zoo, planned, config, str(tmp_path / "run")).folder == tmp_path / "run"
    assert crossvalidate(synthetic_zoo, "size", config, folds=2).truth.columns.tolist() == ["size"]
    with pytest.raises(TaskError, match="has no LoRA 'nobody'. Its ids are such as "):
        plan(synthetic_zoo, ["size"], config, ids=["nobody"])
