"""What is wished of a LoRA: a label that a model should read from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from lol_core.errors import TaskError
from lol_core.learning.tasks import Task


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
        name, _, value = text.partition("=")
        wished = task.wished(name, value)
        if wished is None:
            raise TaskError(f"{text!r} is no wish for this model. It can be {', '.join(task.wishes)}.")
        return cls(task, *wished)

    @property
    def name(self) -> str:
        return self.task.wish(self.output, self.value)

    @property
    def reading(self) -> str:
        """What `read` reads: the probability of a label or of a class, or a number."""
        return self.task.reading(self.output)

    def signs(self, outputs: Tensor) -> Tensor:
        """Whether each LoRA's output should grow (1) or fall (−1): (B, outputs) → (B,)."""
        return self.task.signs(outputs, self.output, self.value)

    def margin(self, outputs: Tensor) -> Tensor:
        """What grows with the output: a logit, a number, or a class's log-odds against the others: (B,)."""
        own = outputs[:, self.output]
        if not self.task.exclusive:
            return own
        others = [i for i in range(outputs.shape[1]) if i != self.output]
        return own - outputs[:, others].logsumexp(1)

    def read(self, predictions: np.ndarray) -> np.ndarray:
        """What predictions (B, outputs) say of it, see `reading`: (B,)."""
        return predictions[:, self.output]

    def numbers(self, labels: pd.DataFrame) -> np.ndarray:
        """The label of each LoRA as a number: (N,)."""
        return self.task.numbers(self.task.encode(labels))[:, self.output]


def unmet(task: Task, prediction: np.ndarray) -> str:
    """The first wish for a label or a class that is not so already by a prediction: (outputs,)."""
    for wish in task.wishes:
        goal = Goal.parse(task, wish)
        if abs(goal.value - prediction[goal.output]) > 0.5:
            return wish
    return task.wishes[0]
