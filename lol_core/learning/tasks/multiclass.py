"""One of several classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.errors import TaskError
from lol_core.learning.bootstrap import Resampled, mean_of
from lol_core.learning.link import Link
from lol_core.learning.metrics import Metric, Scores, score_classes
from lol_core.learning.tasks.base import Task, check_varied, names_of, register
from lol_core.learning.tasks.classes import SURE, class_name, class_probabilities

MAX_CLASSES = 50


@register
@dataclass(frozen=True)
class Multiclass(Task):
    """One target. Predictions are probabilities, (B, classes). class_weights: of each class; empty without weights."""

    kind = "multiclass"
    link = Link.LOG
    headline = Metric.ACCURACY
    ranked = Metric.ACCURACY
    judged = (Metric.ACCURACY,)
    further = (Metric.AUC, Metric.LOG_LOSS)
    probabilities = exclusive = True

    classes: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()

    @classmethod
    def suits(cls, values: pd.Series) -> bool:
        return not pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)

    @classmethod
    def of(cls, labels: pd.DataFrame) -> Self:
        targets = names_of(labels)
        if len(targets) > 1:
            raise TaskError(f"A multi-class task has one target; found {len(targets)}. Train one model for each.")
        check_varied(labels)
        classes = tuple(sorted({class_name(value) for value in labels[targets[0]]}))
        if len(classes) > MAX_CLASSES:
            raise TaskError(
                f"{targets[0]!r} has {len(classes)} distinct values; at most {MAX_CLASSES} classes can be told apart."
                " It may be a name rather than a class."
            )
        if len(classes) == len(labels):
            raise TaskError(
                f"{targets[0]!r} has another text for each LoRA, such as {classes[0]!r}: no class has two of them, so"
                " there is nothing to learn. Numbers are written with a point and without a unit: 0.5."
            )
        return cls(targets, classes)

    def _fitted(self, labels: pd.DataFrame, class_weights: bool) -> Self:
        if not class_weights:
            return self
        counts = self._names(labels).value_counts()
        weights = (len(labels) / (len(self.classes) * float(counts.get(name, 1))) for name in self.classes)
        return replace(self, class_weights=tuple(weights))

    def _names(self, labels: pd.DataFrame) -> pd.Series:
        return labels[self.targets[0]].map(class_name)

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"p({name})" for name in self.classes)

    def encode(self, labels: pd.DataFrame) -> Tensor:
        """Class indices (B,)."""
        place = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([place[name] for name in self._names(labels)])

    def answers(self, encoded: Tensor) -> Tensor:
        """A probability of SURE for the class, the rest shared by the others."""
        logit = math.log(SURE / (1 - SURE)) + math.log(len(self.classes) - 1)
        return logit * torch.nn.functional.one_hot(encoded, len(self.classes)).float()

    def loss(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Cross-entropy."""
        weights = outputs.new_tensor(self.class_weights) if self.class_weights else None
        return torch.nn.functional.cross_entropy(outputs, encoded, weight=weights)

    def decode(self, outputs: Tensor) -> np.ndarray:
        return outputs.detach().double().cpu().softmax(1).numpy()

    def frame(self, predictions: np.ndarray, ids: Sequence[str]) -> pd.DataFrame:
        """The predicted class, then the probability of each."""
        table = super().frame(predictions, ids)
        table.insert(0, self.targets[0], [self.classes[i] for i in predictions.argmax(1)])
        return table

    def score(self, truth: pd.DataFrame, predicted: np.ndarray) -> Scores:
        return Scores.over({self.targets[0]: score_classes(self._names(truth).to_numpy(), predicted, self.classes)})

    def quick_score(self, outputs: Tensor, encoded: Tensor) -> float:
        return float((outputs.argmax(1) == encoded).float().mean())

    def resampled(self, metric: str, truth: pd.DataFrame, predicted: np.ndarray) -> Resampled:
        classes = np.array(self.classes)[predicted.argmax(1)]
        return mean_of((self._names(truth).to_numpy() == classes)[:, None])

    def confusion(self, target: str, truth: pd.Series, values: pd.DataFrame) -> pd.DataFrame:
        table = pd.crosstab(truth.map(class_name), values[target])
        unknown = sorted(set(table.index) - set(self.classes))  # of another collection, say
        return (
            table.reindex([*self.classes, *unknown], fill_value=0)
            .reindex(columns=self.classes, fill_value=0)
            .rename_axis(columns=None)
        )

    def numbers(self, encoded: Tensor) -> np.ndarray:
        return torch.nn.functional.one_hot(encoded, len(self.classes)).double().numpy()

    @property
    def wishes(self) -> list[str]:
        return [self.wish(output, 1) for output in range(self.outputs)]

    def wished(self, name: str, value: str) -> tuple[int, float] | None:
        known = name == self.targets[0] and value in self.classes
        return (self.classes.index(value), 1.0) if known else None

    def wish(self, output: int, value: float) -> str:
        return f"{self.targets[0]}={self.classes[output]}"

    def reading(self, output: int) -> str:
        return f"p({self.wish(output, 1)})"

    def another(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A class that it is not."""
        output = torch.multinomial(1 - labels, 1, generator=generator)[:, 0]
        return output, torch.ones(len(labels), dtype=torch.float64)

    def tabular(
        self, constant: bool, X: np.ndarray, labels: pd.DataFrame, X_test: np.ndarray, *, seed: int
    ) -> np.ndarray:
        return class_probabilities(constant, X, self._names(labels), X_test, classes=list(self.classes), seed=seed)
