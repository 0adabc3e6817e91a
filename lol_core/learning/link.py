"""How numbers that least squares predict become outputs of a model, which a task decodes."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

EDGE = 0.02
"""Numbers of least squares are cut to [EDGE, 1 − EDGE] before they count as probabilities."""


class Link(IntEnum):
    IDENTITY = 0
    """Numbers are outputs."""
    LOGIT = 1
    """Each number is a probability."""
    LOG = 2
    """Numbers are probabilities of which one holds."""

    def numbers(self, answers: Tensor) -> Tensor:
        """What is fitted: of outputs that decode to labels (`Task.answers`), 0 or 1 where they are probabilities."""
        if self is Link.LOGIT:
            return (answers > 0).to(answers)
        if self is Link.LOG:
            return torch.nn.functional.one_hot(answers.argmax(1), answers.shape[1]).to(answers)
        return answers

    def outputs(self, numbers: Tensor) -> Tensor:
        if self is Link.IDENTITY:
            return numbers
        share = numbers.clamp(EDGE, 1 - EDGE)
        return share.logit() if self is Link.LOGIT else share.log()
