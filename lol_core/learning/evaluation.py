"""How good predictions are, and how good they would be without the weights: metrics, intervals and controls."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, mannwhitneyu, spearmanr
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from lol_core.collections.entry import Entry
from lol_core.core.batch import Batch
from lol_core.core.geometry import singular_values
from lol_core.learning.bootstrap import difference, interval, resampled_score
from lol_core.learning.tasks import Task, class_name
from lol_core.learning.verdict import METRIC_TITLES, Difference

__all__ = [
    "HEADLINE",
    "JUDGED",
    "METRIC_TITLES",
    "Metrics",
    "bootstrap_interval",
    "calibration",
    "confusion",
    "control_predictions",
    "control_scores",
    "error_slices",
    "norm_features",
    "paired_differences",
    "quick_score",
    "score",
    "structure_features",
]

Metrics = dict[str, float]
HEADLINE = {"regression": "r2", "binary": "accuracy", "multiclass": "accuracy"}
"""The metric a score is judged by first."""
JUDGED = {"regression": ("r2", "kendall_tau"), "binary": ("accuracy",), "multiclass": ("accuracy",)}
"""The metrics by which a model is compared with its controls."""
TREES = 100
"""Trees of the random forests that the controls fit."""


def score(task: Task, truth: pd.DataFrame, predicted: np.ndarray) -> Metrics:
    """Metrics of predictions as `Task.decode` gives them. Targets are averaged; `accuracy/NAME` and the like hold
    each target where there are several.

    A metric that the data do not define (AUC with one class, rank correlation of a constant) is NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task.kind == "multiclass":
            return _score_classes(task, truth, predicted)
        per_target = {}
        for i, target in enumerate(task.targets):
            y, p = truth[target].to_numpy(np.float64), predicted[:, i]
            per_target[target] = _score_numbers(y, p, task.std[i]) if task.kind == "regression" else _score_binary(y, p)
        found = {
            name: float(np.nanmean([scores[name] for scores in per_target.values()]))
            for name in next(iter(per_target.values()))
        }
    if len(task.targets) > 1:
        found |= {f"{name}/{target}": value for target, scores in per_target.items() for name, value in scores.items()}
    return found


def _score_numbers(y: np.ndarray, p: np.ndarray, std: float) -> Metrics:
    mse = float(sk.mean_squared_error(y, p))
    varied = np.ptp(p) > 0 and np.ptp(y) > 0
    return {
        "mse": mse,
        "normalized_mse": mse / std**2,
        "r2": float(sk.r2_score(y, p)),
        "kendall_tau": float(kendalltau(p, y).statistic) if varied else math.nan,
        "spearman": float(spearmanr(p, y).statistic) if varied else math.nan,
    }


def _score_binary(y: np.ndarray, p: np.ndarray) -> Metrics:
    both = len(set(y)) == 2
    return {
        "accuracy": float(sk.accuracy_score(y, p > 0.5)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(y, p > 0.5)),
        "auc": float(sk.roc_auc_score(y, p)) if both else math.nan,
        "log_loss": float(sk.log_loss(y, p, labels=[0, 1])),
    }


def _score_classes(task: Task, truth: pd.DataFrame, predicted: np.ndarray) -> Metrics:
    y = truth[task.targets[0]].map(class_name).to_numpy()
    labels = np.array(task.classes)[predicted.argmax(1)]
    present = [i for i, name in enumerate(task.classes) if name in set(y)]
    p = predicted[:, present] / predicted[:, present].sum(1, keepdims=True).clip(1e-12)
    names = [task.classes[i] for i in present]
    if len(names) == 2:
        auc = float(sk.roc_auc_score(y == names[1], p[:, 1]))
    elif len(names) > 2:
        auc = float(sk.roc_auc_score(y, p, multi_class="ovr", labels=names))
    else:
        auc = math.nan
    return {
        "accuracy": float(sk.accuracy_score(y, labels)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(y, labels)),
        "auc": auc,
        "log_loss": float(sk.log_loss(y, predicted, labels=list(task.classes))),
    }


def confusion(task: Task, truth: pd.DataFrame, predicted: np.ndarray) -> pd.DataFrame:
    """Confusion matrix of a multi-class task, true classes in rows."""
    y = truth[task.targets[0]].map(class_name)
    labels = np.array(task.classes)[predicted.argmax(1)]
    return pd.DataFrame(
        sk.confusion_matrix(y, labels, labels=list(task.classes)), index=list(task.classes), columns=list(task.classes)
    )


def bootstrap_interval(
    task: Task, truth: pd.DataFrame, predicted: np.ndarray, seed: int, draws: int = 500, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the headline metric over resampled test LoRAs."""
    value = resampled_score(task, HEADLINE[task.kind], truth, predicted)
    return interval(value, len(truth), seed=seed, draws=draws, level=level)


def paired_differences(
    task: Task, truth: pd.DataFrame, predicted: np.ndarray, controls: Mapping[str, np.ndarray], seed: int
) -> dict[str, dict[str, Difference]]:
    """Control → metric of JUDGED → by how much predictions exceed the control's, by a paired bootstrap over the LoRAs
    of `truth`.
    """
    found: dict[str, dict[str, Difference]] = {name: {} for name in controls}
    for metric in JUDGED[task.kind]:
        ours = resampled_score(task, metric, truth, predicted)
        for name, values in controls.items():
            theirs = resampled_score(task, metric, truth, values)
            found[name][metric] = difference(ours, theirs, len(truth), seed=seed)
    return found


def quick_score(task: Task, outputs: torch.Tensor, encoded: torch.Tensor) -> float:
    """The headline metric of raw outputs against encoded labels (see `Task.encode`), for a curve over epochs. R² is
    that of each target, averaged.
    """
    if task.kind == "multiclass":
        return float((outputs.argmax(1) == encoded).float().mean())
    if task.kind == "binary":
        return float(((outputs > 0) == (encoded > 0.5)).float().mean())
    spread = (encoded - encoded.mean(0)).square().sum(0)
    return float((1 - (encoded - outputs).square().sum(0) / spread)[spread > 0].mean())


def calibration(predicted: pd.Series, true: pd.Series, bins: int = 10) -> pd.DataFrame:
    """Predictions in up to `bins` bins of equal number: mean prediction, mean truth, standard error of the latter,
    and count, a row for each bin.

    For yes/no labels the truth is 0 or 1, so its mean is the observed frequency.
    """
    known = pd.DataFrame({"predicted": predicted, "true": true.astype(float)}).dropna()
    parts = pd.qcut(known["predicted"].rank(method="first"), min(bins, max(1, len(known) // 5)), labels=False)
    groups = known.groupby(parts)
    found = groups.agg(predicted=("predicted", "mean"), true=("true", "mean"), LoRAs=("true", "size"))
    found["standard error"] = groups["true"].std(ddof=1) / np.sqrt(found["LoRAs"])
    return found.reset_index(drop=True)


def error_slices(errors: pd.Series, labels: pd.DataFrame, smallest: int = 5) -> pd.DataFrame:
    """Where a model is worst: parts of the LoRAs with one value of one column (numbers: a quarter of their range of
    ranks), the largest mean absolute error first.

    Columns: column, value, LoRAs, mean error, ratio (to the mean of all), p (rank-sum test of the part against the
    rest, not corrected for their number). Parts of fewer than `smallest` LoRAs, and the whole, are left out.
    """
    errors = errors.abs().dropna()
    rows = []
    for column in labels.columns:
        values = labels[column].reindex(errors.index)
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 6:
            values = pd.qcut(values.astype(float), 4, duplicates="drop").map(
                lambda part: f"{part.left:.4g} to {part.right:.4g}"
            )
        elif values.nunique() > max(2, len(values) / 4):
            continue
        for value, inside in errors.groupby(values.astype(object), observed=True):
            outside = errors.drop(inside.index)
            if len(inside) >= smallest and len(outside):
                p = float(mannwhitneyu(inside, outside).pvalue)
                rows.append(
                    (column, str(value), len(inside), inside.mean(), inside.mean() / max(errors.mean(), 1e-30), p)
                )
    table = pd.DataFrame(rows, columns=["column", "value", "LoRAs", "mean error", "ratio", "p"])
    return table.sort_values("ratio", ascending=False, ignore_index=True)


def structure_features(entries: Sequence[Entry]) -> np.ndarray:
    """What a file shows without its weights: size, parameters, and per module name its presence, rank and alpha.
    (B, k).
    """
    names = sorted({module.name for entry in entries for module in entry.headers})
    place = {name: 3 * i for i, name in enumerate(names)}
    features = np.zeros((len(entries), 2 + 3 * len(names)))
    for b, entry in enumerate(entries):
        features[b, :2] = entry.size, entry.parameters
        for module, alpha in zip(entry.headers, entry.alphas, strict=True):
            features[b, 2 + place[module.name] : 5 + place[module.name]] = (
                1,
                module.rank,
                -1 if alpha is None else alpha,
            )
    return features


def norm_features(batch: Batch) -> np.ndarray:
    """log ‖ΔW‖ of every module: (B, L). Zero updates count as the smallest positive float."""
    norms = torch.cat(
        [singular_values(U.double(), V.double()).norm(dim=-1) for U, V in zip(batch.U, batch.V, strict=True)], 1
    )
    return norms.clamp(min=torch.finfo(torch.float32).tiny).log().cpu().numpy()


def control_predictions(
    task: Task,
    labels: pd.DataFrame,
    known: Sequence[str],
    test: Sequence[str],
    features: dict[str, pd.DataFrame],
    seed: int,
) -> dict[str, np.ndarray]:
    """What a constant, and a random forest on each table of `features`, fitted to the `known` LoRAs, predict of the
    `test` LoRAs, as `Task.decode` does.

    The tables are indexed by LoRA.
    """
    found = {}
    for name, table in {"constant": pd.DataFrame(0.0, index=labels.index, columns=["0"]), **features}.items():
        X, X_test = table.loc[list(known)].to_numpy(), table.loc[list(test)].to_numpy()
        columns = []
        for target in task.targets:
            y = labels.loc[list(known), target]
            if task.kind == "regression":
                model: Any = DummyRegressor() if name == "constant" else RandomForestRegressor(TREES, random_state=seed)
                columns.append(model.fit(X, y.astype(float)).predict(X_test))
                continue
            classes = list(task.classes) if task.kind == "multiclass" else ["0", "1"]
            model = (
                DummyClassifier(strategy="prior")
                if name == "constant"
                else RandomForestClassifier(TREES, random_state=seed)
            )
            model.fit(X, y.map(class_name) if task.kind == "multiclass" else y.astype(int).astype(str))
            probabilities = np.zeros((len(test), len(classes)))
            probabilities[:, [classes.index(c) for c in model.classes_]] = model.predict_proba(X_test)
            columns.append(probabilities if task.kind == "multiclass" else probabilities[:, 1])
        found[name] = columns[0] if task.kind == "multiclass" else np.stack(columns, 1)
    return found


def control_scores(
    task: Task, labels: pd.DataFrame, split: dict[str, list[str]], features: dict[str, pd.DataFrame], seed: int
) -> dict[str, Metrics]:
    """Test scores of what must be beaten (see `control_predictions`), fitted on training and validation LoRAs
    together.
    """
    predicted = control_predictions(task, labels, split["train"] + split["validation"], split["test"], features, seed)
    return {name: score(task, labels.loc[split["test"]], values) for name, values in predicted.items()}
