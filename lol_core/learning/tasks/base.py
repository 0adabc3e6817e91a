"""What every task can do: check and encode labels, judge predictions, and be answered by a control."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from lol_core.errors import TaskError
from lol_core.learning.bootstrap import Resampled
from lol_core.learning.link import Link
from lol_core.learning.metrics import Metric, Scores
from lol_core.learning.own import tell_errors

TREES = 100
"""Trees of the random forests that the controls fit."""

TASKS: dict[str, type[Task]] = {}
"""Kind → task."""


T = TypeVar("T", bound="type[Task]")


def register(task: T) -> T:
    """Make a task known by its `kind`. Raises TaskError when another one has it."""
    known = TASKS.get(task.kind)
    if known is not None and (known.__module__, known.__qualname__) != (task.__module__, task.__qualname__):
        raise TaskError(
            f"There is a task {task.kind!r} already ({known.__name__}). Set another `kind` in {task.__name__}."
        )
    methods = [name for name, of in vars(Task).items() if inspect.isfunction(of) or isinstance(of, classmethod)]
    tell_errors(task, methods, f"The task {task.kind!r}", TaskError)
    TASKS[task.kind] = task
    return task


@dataclass(frozen=True)
class Task(ABC):
    """What is predicted: one or many columns of labels. Predictions are (B, width), as `decode` gives them.

    headline: the metric a score is judged by first; ranked: by which models and controls are compared over folds;
    judged: by which a verdict is given, the headline first; further: what a table of scores shows beside the headline.
    probabilities: whether predictions are such, not numbers; exclusive: whether each LoRA has one of the outputs.
    """

    kind: ClassVar[str]
    headline: ClassVar[Metric]
    ranked: ClassVar[Metric]
    judged: ClassVar[tuple[Metric, ...]]
    further: ClassVar[tuple[Metric, ...]]
    probabilities: ClassVar[bool]
    exclusive: ClassVar[bool] = False
    link: ClassVar[Link] = Link.IDENTITY
    """What makes outputs of numbers to which least squares was fitted."""

    targets: tuple[str, ...]

    @classmethod
    @abstractmethod
    def suits(cls, values: pd.Series) -> bool:
        """Whether labels without gaps are of this kind."""

    @classmethod
    def usable(cls, labels: pd.DataFrame) -> pd.Series:
        """Which LoRAs have labels that can be learnt: a boolean for each row."""
        return labels.notna().all(axis=1)

    @classmethod
    @abstractmethod
    def of(cls, labels: pd.DataFrame) -> Self:
        """The task of predicting all columns of usable labels. Raises TaskError when they cannot be learnt."""

    def fitted(self, labels: pd.DataFrame, class_weights: bool = False) -> Self:
        """The task with what is taken from the training labels: means and stds, or class weights on request. Raises
        TaskError when the training part holds one value only.
        """
        values = labels[list(self.targets)]
        if constant := [target for target in self.targets if values[target].nunique() < 2]:
            raise TaskError(
                f"{constant[0]!r} has the same value for every LoRA of the training part, so there is nothing to learn."
                " Choose another target or seed."
            )
        return self._fitted(values, class_weights)

    @abstractmethod
    def _fitted(self, labels: pd.DataFrame, class_weights: bool) -> Self: ...

    @property
    def outputs(self) -> int:
        """Outputs of a model."""
        return len(self.targets)

    @property
    def units(self) -> tuple[float, ...]:
        """One unit of each output in the user's terms."""
        return (1.0,) * self.outputs

    @property
    def columns(self) -> tuple[str, ...]:
        """What each column of a prediction is."""
        return self.targets

    @abstractmethod
    def encode(self, labels: pd.DataFrame) -> Tensor:
        """Labels as the loss takes them."""

    @abstractmethod
    def answers(self, encoded: Tensor) -> Tensor:
        """Outputs (B, outputs) that `decode` turns into these labels."""

    @abstractmethod
    def loss(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """Averaged over LoRAs and targets."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> np.ndarray:
        """Outputs in the user's terms."""

    def frame(self, predictions: np.ndarray, ids: Sequence[str]) -> pd.DataFrame:
        """Predictions as a table indexed by LoRA."""
        return pd.DataFrame(predictions, index=list(ids), columns=list(self.columns))

    @abstractmethod
    def score(self, truth: pd.DataFrame, predicted: np.ndarray) -> Scores:
        """Predictions against labels, by every metric of this kind."""

    @abstractmethod
    def quick_score(self, outputs: Tensor, encoded: Tensor) -> float:
        """The headline metric of raw outputs, for a curve over epochs."""

    @abstractmethod
    def resampled(self, metric: str, truth: pd.DataFrame, predicted: np.ndarray) -> Resampled:
        """A metric of `judged` as a function of how often each LoRA counts. 0 where it is not defined."""

    @abstractmethod
    def numbers(self, encoded: Tensor) -> np.ndarray:
        """Encoded labels as numbers to which least squares may be fitted: (B, outputs)."""

    def from_numbers(self, values: np.ndarray) -> np.ndarray:
        """What least squares predict of `numbers`, as predictions."""
        return self.decode(self.link.outputs(torch.from_numpy(values)))

    def confusion(self, target: str, truth: pd.Series, values: pd.DataFrame) -> pd.DataFrame:
        """Counts of true answers in rows, predicted ones in columns; of numbers none. values: see `frame`."""
        return pd.DataFrame()

    def span(self, output: int) -> tuple[float, float]:
        """Between which values predictions of one output mostly lie: those of a probability."""
        return 0.0, 1.0

    @property
    @abstractmethod
    def wishes(self) -> list[str]:
        """What can be wished of a label: NAME=VALUE."""

    @abstractmethod
    def wished(self, name: str, value: str) -> tuple[int, float] | None:
        """The output that NAME=VALUE is about, and the value that it should have; None where that is no wish."""

    def wish(self, output: int, value: float) -> str:
        """That which `wished` takes."""
        return f"{self.targets[output]}={value:g}"

    @abstractmethod
    def reading(self, output: int) -> str:
        """What a column of predictions is beside a wish."""

    def signs(self, outputs: Tensor, output: int, value: float) -> Tensor:
        """Whether an output should grow (1) or fall (−1) to come to a value: (B, outputs) → (B,). A probability to 1 or
        to 0.
        """
        return outputs.new_full((len(outputs),), 2.0 * value - 1)

    @abstractmethod
    def another(self, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """A change for each LoRA, drawn: which output, (B,), and whether it should grow (1) or fall (−1), (B,). labels:
        their `numbers`, (B, outputs).
        """

    @abstractmethod
    def tabular(
        self, constant: bool, X: np.ndarray, labels: pd.DataFrame, X_test: np.ndarray, *, seed: int
    ) -> np.ndarray:
        """Predictions of a constant, or of a random forest, fitted to features (N, k) and labels."""

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind} | asdict(self)


def each_target(targets: Sequence[str], make: Callable[[str], np.ndarray]) -> np.ndarray:
    """Columns of predictions, one for each target: (B, targets)."""
    return np.stack([make(target) for target in targets], 1)


def as_number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def names_of(labels: pd.DataFrame) -> tuple[str, ...]:
    return tuple(map(str, labels.columns))


def check_varied(labels: pd.DataFrame) -> None:
    """Raises TaskError for a column of one value."""
    for target in names_of(labels):
        distinct = labels[target].unique().tolist()
        if len(distinct) < 2:
            raise TaskError(
                f"{target!r} is {distinct[0]!r} for every LoRA: there is nothing to predict. Choose another target."
            )


def finite(labels: pd.DataFrame) -> pd.Series:
    """Which rows hold numbers in every column. Raises TaskError for a column of text."""
    for target in names_of(labels):
        present = labels[target].dropna().infer_objects()
        if not pd.api.types.is_numeric_dtype(present) and not pd.api.types.is_bool_dtype(present):
            example = present.iloc[0] if len(present) else "nothing"
            raise TaskError(
                f"{target!r} holds text (such as {example!r}) where numbers are needed. Choose a multi-class task,"
                " or another column."
            )
    values = labels.astype(np.float64).to_numpy()
    return pd.Series(np.isfinite(values).all(axis=1), index=labels.index)
