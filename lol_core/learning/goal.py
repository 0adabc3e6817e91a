"""What is wished of a LoRA: a label that a model should read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.errors import TaskError
from lol_core.learning.tasks import Binary, Multiclass, Regression, Task


@dataclass(frozen=True)
class Goal:
    """A wished change: one output of a task, and the value it should have (a yes/no label 0 or 1; a number; for classes
    1, the class itself being the output).
    """

    task: Task
    output: int
    value: float

    @classmethod
    def parse(cls, task: Task, text: str) -> Goal:
        """Such as Smiling=1, clip_score=2, class=dog. Raises TaskError, which says what can be wished."""
        name, _, wish = text.partition("=")
        if isinstance(task, Multiclass) and name == task.targets[0] and wish in task.classes:
            return cls(task, task.classes.index(wish), 1.0)
        if not isinstance(task, Multiclass) and name in task.targets:
            try:
                value = float(wish)
            except ValueError:
                value = math.nan
            if value in (0, 1) if isinstance(task, Binary) else math.isfinite(value):
                return cls(task, task.targets.index(name), value)
        raise TaskError(f"{text!r} is no wish for this model. It can be {', '.join(wishes_of(task))}.")

    @property
    def name(self) -> str:
        if isinstance(self.task, Multiclass):
            return f"{self.task.targets[0]}={self.task.classes[self.output]}"
        return f"{self.task.targets[self.output]}={self.value:g}"

    @property
    def reading(self) -> str:
        """What `read` reads: the probability of a label or of a class, or a number."""
        if isinstance(self.task, Regression):
            return self.task.targets[self.output]
        return f"p({self.name if isinstance(self.task, Multiclass) else self.task.targets[self.output]})"

    def signs(self, outputs: Tensor) -> Tensor:
        """Whether each LoRA's output should grow (1) or fall (−1): (B, outputs) → (B,)."""
        if isinstance(self.task, Regression):
            encoded = (self.value - self.task.mean[self.output]) / self.task.std[self.output]
            return torch.where(outputs[:, self.output] < encoded, 1.0, -1.0)
        return torch.full((len(outputs),), 1.0 if self.value == 1 else -1.0)

    def margin(self, outputs: Tensor) -> Tensor:
        """What grows with the output: a logit, a number, or a class's log-odds against the others: (B,)."""
        own = outputs[:, self.output]
        if not isinstance(self.task, Multiclass):
            return own
        others = [i for i in range(outputs.shape[1]) if i != self.output]
        return own - outputs[:, others].logsumexp(1)

    def read(self, predictions: np.ndarray) -> np.ndarray:
        """What predictions (B, outputs) say of it, see `reading`: (B,)."""
        return predictions[:, self.output]

    def numbers(self, labels: pd.DataFrame) -> np.ndarray:
        """The label of each LoRA as a number: (N,)."""
        encoded = self.task.encode(labels)
        if isinstance(self.task, Multiclass):
            return (encoded == self.output).double().numpy()
        return encoded[:, self.output].double().numpy()


def wishes_of(task: Task) -> list[str]:
    """What can be wished of a model, as `Goal.parse` takes it."""
    if isinstance(task, Multiclass):
        return [f"{task.targets[0]}={name}" for name in task.classes]
    if isinstance(task, Binary):
        return [f"{target}={value}" for target in task.targets for value in (1, 0)]
    return [f"{target}=NUMBER" for target in task.targets]


def unmet(task: Task, prediction: np.ndarray) -> str:
    """The first wish for a label or a class that is not so already by a prediction: (outputs,)."""
    for wish in wishes_of(task):
        goal = Goal.parse(task, wish)
        if abs(goal.value - prediction[goal.output]) > 0.5:
            return wish
    return wishes_of(task)[0]
