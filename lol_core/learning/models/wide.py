"""A linear layer of very many inputs and few outputs, as the head's first layer is where a model has large features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lol_core.learning.models.modulewise import Products

PART = 2**22
"""Numbers of a weight that are one parameter. Memory of this size is kept and used again by the allocator; a gradient
in one piece would be fresh memory at every step, which takes longer than computing it.
"""
MOST = 4096
"""Parameters that a weight is about divided into at most."""


class WideLinear(nn.Module):
    """y = x Wᵀ + b, as `nn.Linear`, and under its names in a state_dict: weight (outputs, inputs), bias (outputs,).

    W is kept by inputs, (inputs, outputs), in several parameters: the products of a step with a batch of few rows then
    read and write it in the order in which it lies. parts: how many inputs each parameter reads; in even pieces when
    None. The input is one tensor (B, inputs), or a list of tensors or `Products` with these numbers of columns, which
    are then never copied together.
    """

    def __init__(self, inputs: int, outputs: int, parts: Sequence[int] | None = None):
        super().__init__()
        each = max(1, PART // outputs, inputs // MOST)
        self.parts = list(parts) if parts else [min(each, inputs - at) for at in range(0, inputs, each)]
        if sum(self.parts) != inputs:
            raise ValueError(f"The parts {self.parts} do not make {inputs} inputs.")
        as_linear = nn.Linear(inputs, outputs)  # begins as nn.Linear does
        for i, part in enumerate(as_linear.weight.detach().split(self.parts, 1)):
            self.register_parameter(f"part_{i}", nn.Parameter(part.T.contiguous()))
        self.bias = as_linear.bias

    @property
    def weights(self) -> list[Tensor]:
        return [self.get_parameter(f"part_{i}") for i in range(len(self.parts))]

    def forward(self, x: Tensor | Sequence[Tensor | Products]) -> Tensor:
        columns = x.split(self.parts, 1) if isinstance(x, Tensor) else x
        first, *others = (part @ weight for part, weight in zip(columns, self.weights, strict=True))
        return sum(others, first + self.bias)

    def extra_repr(self) -> str:
        return f"{sum(self.parts)} in {len(self.parts)} parts → {len(self.bias)}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = torch.cat(self.weights).T
        destination[prefix + "weight"] = weight if keep_vars else weight.detach()
        destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        state = dict(state_dict)
        weight = state.pop(prefix + "weight", None)
        expected = (len(self.bias), sum(self.parts))
        missing, errors = args[2], args[4]
        if weight is None:
            missing.append(prefix + "weight")
        elif tuple(weight.shape) != expected:
            errors.append(f"{prefix}weight is {tuple(weight.shape)}; expected {expected}.")
        else:
            with torch.no_grad():
                for own, part in zip(self.weights, weight.split(self.parts, 1), strict=True):
                    own.copy_(part.T)
        bias = state.pop(prefix + "bias", None)
        if bias is None:
            missing.append(prefix + "bias")
        else:
            with torch.no_grad():
                self.bias.copy_(bias)
