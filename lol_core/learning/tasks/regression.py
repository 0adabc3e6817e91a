"""One or many numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.errors import TaskError
from lol_core.learning.bootstrap import Resampled, concordance, explained, mean_over
from lol_core.learning.metrics import Metric, Scores, score_numbers
from lol_core.learning.tasks.base import TREES, Task, as_number, check_varied, each_target, finite, names_of, register
from lol_core.learning.tasks.binary import Binary

FAR = 1e4
"""Standard deviations from zero beyond which squares of numbers say too little of their differences."""
SMALL = 1e-4
"""The standard deviation below which the differences of some numbers come near 1e-8."""


@register
@dataclass(frozen=True)
class Regression(Task):
    """Targets are normalised by the training mean and std. Predictions are in the targets' units, (B, targets)."""

    kind = "regression"
    headline = Metric.R2
    ranked = Metric.KENDALL_TAU
    judged = (Metric.R2, Metric.KENDALL_TAU)
    further = (Metric.KENDALL_TAU, Metric.NORMALIZED_MSE)
    probabilities = False

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def suits(cls, values: pd.Series) -> bool:
        return pd.api.types.is_numeric_dtype(values) and not Binary.suits(values)

    @classmethod
    def usable(cls, labels: pd.DataFrame) -> pd.Series:
        return finite(labels)

    @classmethod
    def of(cls, labels: pd.DataFrame) -> Self:
        check_varied(labels)
        for target in names_of(labels):
            values = labels[target].to_numpy(np.float64)
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                variance = values.var()
            if not np.finfo(np.float64).tiny <= variance < math.inf:
                raise TaskError(
                    f"{target!r} reaches from {values.min():g} to {values.max():g}: the squares of such differences are"
                    " no numbers of 64 bits. Give it in another unit, or its logarithm."
                )
        return cls(names_of(labels))

    def _fitted(self, labels: pd.DataFrame, class_weights: bool) -> Self:
        return replace(self, mean=tuple(labels.mean().astype(float)), std=tuple(labels.std(ddof=0).astype(float)))

    @property
    def units(self) -> tuple[float, ...]:
        return self.std

    def encode(self, labels: pd.DataFrame) -> Tensor:
        """(B, targets), of mean 0 and variance 1 over the training LoRAs. The mean is taken off in 64 bits: 32 have no
        room for the seconds of a date.
        """
        values = labels[list(self.targets)].to_numpy(np.float64)
        return torch.tensor((values - np.array(self.mean)) / np.array(self.std), dtype=torch.float32)

    def answers(self, encoded: Tensor) -> Tensor:
        return encoded

    def loss(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Mean squared error."""
        return torch.nn.functional.mse_loss(outputs, encoded.to(outputs))

    def decode(self, outputs: Tensor) -> np.ndarray:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return (outputs.detach().double().cpu() * std + mean).numpy()

    def score(self, truth: pd.DataFrame, predicted: np.ndarray) -> Scores:
        return Scores.over(
            {
                target: score_numbers(truth[target].to_numpy(np.float64), predicted[:, i], self.std[i])
                for i, target in enumerate(self.targets)
            }
        )

    def quick_score(self, outputs: Tensor, encoded: Tensor) -> float:
        """R² of each target, averaged."""
        spread = (encoded - encoded.mean(0)).square().sum(0)
        return float((1 - (encoded - outputs).square().sum(0) / spread)[spread > 0].mean())

    def resampled(self, metric: str, truth: pd.DataFrame, predicted: np.ndarray) -> Resampled:
        y = truth[list(self.targets)].to_numpy(np.float64)
        if metric == Metric.R2:
            return explained(y, predicted)
        return mean_over([concordance(y[:, i], predicted[:, i]) for i in range(y.shape[1])])

    def numbers(self, encoded: Tensor) -> np.ndarray:
        return encoded.double().numpy()

    def span(self, output: int) -> tuple[float, float]:
        """Three standard deviations around the mean, of the training LoRAs."""
        mean, std = self.mean[output], self.std[output]
        return mean - 3 * std, mean + 3 * std

    @property
    def wishes(self) -> list[str]:
        return [f"{target}=NUMBER" for target in self.targets]

    def wished(self, name: str, value: str) -> tuple[int, float] | None:
        number = as_number(value)
        return (self.targets.index(name), number) if name in self.targets and math.isfinite(number) else None

    def reading(self, output: int) -> str:
        return self.targets[output]

    def signs(self, outputs: Tensor, output: int, value: float) -> Tensor:
        encoded = (value - self.mean[output]) / self.std[output]
        return torch.where(outputs[:, output] < encoded, 1.0, -1.0)

    def another(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A number up or down."""
        output = torch.randint(labels.shape[1], (len(labels),), generator=generator)
        return output, 1 - 2 * torch.randint(2, output.shape, generator=generator).double()

    def tabular(
        self, constant: bool, X: np.ndarray, labels: pd.DataFrame, X_test: np.ndarray, *, seed: int
    ) -> np.ndarray:
        from sklearn.dummy import DummyRegressor
        from sklearn.ensemble import RandomForestRegressor

        def column(target: str) -> np.ndarray:
            shift, unit = _plain_unit(y := labels[target].to_numpy(np.float64))
            model = DummyRegressor() if constant else RandomForestRegressor(TREES, random_state=seed)
            return shift + unit * np.asarray(model.fit(X, (y - shift) / unit).predict(X_test))

        return each_target(self.targets, column)


def _plain_unit(y: np.ndarray) -> tuple[float, float]:
    """Where to count numbers from, and in what unit, for a regression tree: it takes numbers for equal that differ by
    less than 1e-8, or by a billionth of what they are. Zero and one for others, of which it makes the trees it made.
    """
    mean, std = float(y.mean()), float(y.std())
    return mean if abs(mean) > FAR * std else 0.0, std if 0 < std < SMALL else 1.0
