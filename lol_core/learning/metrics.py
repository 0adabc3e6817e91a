"""Metrics of predictions, and scores by them: the mean over the targets, and each target's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from lol_core.collections.durable import null_is_nan


class Metric(StrEnum):
    """Under the names that files and tables give them."""

    MSE = "mse"
    NORMALIZED_MSE = "normalized_mse"
    R2 = "r2"
    KENDALL_TAU = "kendall_tau"
    SPEARMAN = "spearman"
    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"
    AUC = "auc"
    LOG_LOSS = "log_loss"


METRIC_TITLES: Mapping[str, str] = {
    Metric.MSE: "MSE",
    Metric.NORMALIZED_MSE: "MSE (normalised)",
    Metric.R2: "R²",
    Metric.KENDALL_TAU: "Kendall τ",
    Metric.SPEARMAN: "Spearman ρ",
    Metric.ACCURACY: "accuracy",
    Metric.BALANCED_ACCURACY: "balanced accuracy",
    Metric.AUC: "AUC",
    Metric.LOG_LOSS: "log loss",
}


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """Metric → score, averaged over the targets; by_target: target → metric → score, where there are several.

    A metric that the data do not define (AUC with one class, rank correlation of a constant) is NaN.
    """

    mean: dict[str, float]
    by_target: dict[str, dict[str, float]] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> float:
        return self.mean[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.mean)

    def __len__(self) -> int:
        return len(self.mean)

    @classmethod
    def over(cls, by_target: dict[str, dict[str, float]]) -> Scores:
        """Scores of one or many targets."""
        each = list(by_target.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing but NaN is NaN
            mean = {metric: float(np.nanmean([scores[metric] for scores in each])) for metric in each[0]}
        return cls(mean, by_target if len(each) > 1 else {})

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "by_target": self.by_target}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """From JSON, also as checkpoints held it before targets had a place of their own ("accuracy/TARGET")."""
        if set(data) == {"mean", "by_target"}:
            each = {target: null_is_nan(scores) for target, scores in data["by_target"].items()}
            return cls(null_is_nan(data["mean"]), each)
        mean: dict[str, float] = {}
        by_target: dict[str, dict[str, float]] = {}
        for name, value in data.items():
            metric, _, target = name.partition("/")
            if target:
                by_target.setdefault(target, {})[metric] = value
            else:
                mean[metric] = value
        return cls(mean, by_target)


def score_numbers(y: np.ndarray, predicted: np.ndarray, std: float) -> dict[str, float]:
    """Of one target, (B,) each. std: of the training labels, by which the normalised error is divided."""
    from scipy.stats import kendalltau, spearmanr
    from sklearn import metrics

    error = float(metrics.mean_squared_error(y, predicted))
    varied = np.ptp(predicted) > 0 and np.ptp(y) > 0
    return {
        Metric.MSE: error,
        Metric.NORMALIZED_MSE: error / std**2,
        Metric.R2: float(metrics.r2_score(y, predicted)) if len(y) > 1 else math.nan,
        Metric.KENDALL_TAU: float(kendalltau(predicted, y).statistic) if varied else math.nan,
        Metric.SPEARMAN: float(spearmanr(predicted, y).statistic) if varied else math.nan,
    }


def score_attribute(y: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Of one yes/no target: y 0 or 1, (B,)."""
    from sklearn import metrics

    return {
        Metric.ACCURACY: float(np.mean(y == (probability > 0.5))),
        Metric.BALANCED_ACCURACY: _balanced(y, probability > 0.5),
        Metric.AUC: float(metrics.roc_auc_score(y, probability)) if len(set(y)) == 2 else math.nan,
        Metric.LOG_LOSS: float(metrics.log_loss(y, probability, labels=[0, 1])),
    }


def score_classes(y: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """Of one target with several classes: y names (B,), probabilities (B, classes)."""
    from sklearn import metrics

    labels = np.array(classes)[probabilities.argmax(1)]
    present = [i for i, name in enumerate(classes) if name in set(y)]
    p = probabilities[:, present] + 1e-12  # all of a LoRA's probability may be on classes that are not here
    p = p / p.sum(1, keepdims=True)
    names = [classes[i] for i in present]
    if len(names) == 2:
        auc = float(metrics.roc_auc_score(y == names[1], p[:, 1]))
    elif len(names) > 2:
        auc = float(metrics.roc_auc_score(y, p, multi_class="ovr", labels=names))
    else:
        auc = math.nan
    return {
        Metric.ACCURACY: float(np.mean(y == labels)),
        Metric.BALANCED_ACCURACY: _balanced(y, labels),
        Metric.AUC: auc,
        Metric.LOG_LOSS: float(metrics.log_loss(y, probabilities, labels=list(classes))),
    }


def _balanced(y: np.ndarray, labels: np.ndarray) -> float:
    """Recall averaged over the classes there are."""
    return float(np.mean([np.mean(labels[y == name] == name) for name in np.unique(y)]))
