"""One or many yes/no attributes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.errors import TaskError
from lol_core.learning.bootstrap import Resampled, mean_of
from lol_core.learning.link import Link
from lol_core.learning.metrics import Metric, Scores, score_attribute
from lol_core.learning.tasks.base import Task, as_number, check_varied, each_target, finite, names_of, register
from lol_core.learning.tasks.classes import SURE, class_probabilities


@register
@dataclass(frozen=True)
class Binary(Task):
    """Labels are 0 and 1. Predictions are probabilities, (B, targets). class_weights: of a positive, for each target;
    empty without weighting.
    """

    kind = "binary"
    link = Link.LOGIT
    headline = Metric.ACCURACY
    ranked = Metric.ACCURACY
    judged = (Metric.ACCURACY,)
    further = (Metric.AUC, Metric.LOG_LOSS)
    probabilities = True

    class_weights: tuple[float, ...] = ()

    @classmethod
    def suits(cls, values: pd.Series) -> bool:
        return pd.api.types.is_bool_dtype(values) or (
            pd.api.types.is_numeric_dtype(values) and set(values.unique()) <= {0, 1}
        )

    @classmethod
    def usable(cls, labels: pd.DataFrame) -> pd.Series:
        return finite(labels)

    @classmethod
    def of(cls, labels: pd.DataFrame) -> Self:
        check_varied(labels)
        for target in names_of(labels):
            distinct = labels[target].unique().tolist()
            if not set(distinct) <= {0, 1}:
                raise TaskError(f"{target!r} holds {sorted(distinct)[:5]}; a yes/no task needs 0 and 1.")
        return cls(names_of(labels))

    def _fitted(self, labels: pd.DataFrame, class_weights: bool) -> Self:
        if not class_weights:
            return self
        positive = labels.astype(float).mean()
        return replace(self, class_weights=tuple(((1 - positive) / positive).astype(float)))

    def encode(self, labels: pd.DataFrame) -> Tensor:
        """(B, targets), 0 or 1."""
        return torch.tensor(labels[list(self.targets)].to_numpy(np.float64), dtype=torch.float32)

    def answers(self, encoded: Tensor) -> Tensor:
        """Probabilities of SURE and 1 − SURE."""
        return math.log(SURE / (1 - SURE)) * (2 * encoded - 1)

    def loss(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Binary cross-entropy."""
        weights = outputs.new_tensor(self.class_weights) if self.class_weights else None
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, encoded.to(outputs), pos_weight=weights)

    def decode(self, outputs: Tensor) -> np.ndarray:
        return outputs.detach().double().cpu().sigmoid().numpy()

    def score(self, truth: pd.DataFrame, predicted: np.ndarray) -> Scores:
        return Scores.over(
            {
                target: score_attribute(truth[target].to_numpy(np.float64), predicted[:, i])
                for i, target in enumerate(self.targets)
            }
        )

    def quick_score(self, outputs: Tensor, encoded: Tensor) -> float:
        return float(((outputs > 0) == (encoded > 0.5)).float().mean())

    def resampled(self, metric: str, truth: pd.DataFrame, predicted: np.ndarray) -> Resampled:
        y = truth[list(self.targets)].to_numpy(np.float64)
        return mean_of((predicted > 0.5) == (y > 0.5))

    def numbers(self, encoded: Tensor) -> np.ndarray:
        return encoded.double().numpy()

    def confusion(self, target: str, truth: pd.Series, values: pd.DataFrame) -> pd.DataFrame:
        names = {0: "no", 1: "yes"}
        answers = (values[target] > 0.5).astype(int).map(names)
        counts = pd.crosstab(truth.astype(int).map(names), answers)
        order = list(names.values())  # both, where all are one
        return counts.reindex(index=order, columns=order, fill_value=0).rename_axis(columns=None)

    @property
    def wishes(self) -> list[str]:
        return [self.wish(output, value) for output in range(self.outputs) for value in (1, 0)]

    def wished(self, name: str, value: str) -> tuple[int, float] | None:
        number = as_number(value)
        return (self.targets.index(name), number) if name in self.targets and number in (0, 1) else None

    def reading(self, output: int) -> str:
        return f"p({self.targets[output]})"

    def another(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A label turned to what it is not."""
        output = torch.randint(labels.shape[1], (len(labels),), generator=generator)
        return output, 1 - 2 * labels.gather(1, output[:, None])[:, 0]

    def tabular(
        self, constant: bool, X: np.ndarray, labels: pd.DataFrame, X_test: np.ndarray, *, seed: int
    ) -> np.ndarray:
        def column(target: str) -> np.ndarray:
            y = labels[target].astype(int).astype(str)
            return class_probabilities(constant, X, y, X_test, classes=["0", "1"], seed=seed)[:, 1]

        return each_target(self.targets, column)
