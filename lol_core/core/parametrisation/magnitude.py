"""DoRA's magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.groups import Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation


@dataclass(frozen=True)
class Magnitude(Parametrisation):
    """DoRA's magnitude around any parametrisation (appendix E, equation 39): the fine-tuned weight is
    m ∘ (W + ΔW) / ‖W + ΔW‖ along `axis` of the weight. It depends on ΔW alone, so the group is that of `of`.

    vector: (weight_shape[axis],).
    """

    of: Parametrisation
    vector: Tensor
    axis: int = 0

    def __post_init__(self) -> None:
        expected = self.of.weight_shape[self.axis]
        if tuple(self.vector.shape) != (expected,):
            raise LoRAFormatError(
                f"The DoRA magnitude has the shape {tuple(self.vector.shape)}; expected ({expected},), one for each"
                f" {'output' if self.axis == 0 else 'input'}."
            )

    @property
    def kind(self) -> Kind:  # type: ignore[override]  # read-only: that of what it is around
        return self.of.kind

    @property
    def weight_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # read-only: that of what it is around
        return self.of.weight_shape

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.of.factor_shapes

    @property
    def slots(self) -> dict[str, Tensor]:
        return {**self.of.slots, "magnitude": self.vector}

    @property
    def group(self) -> Product:
        return self.of.group

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        return self.of.pair_shape

    def act(self, R: Sequence[Tensor]) -> Self:
        return replace(self, of=self.of.act(R))

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        return self.of.on_pair(R)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.of.low_rank()

    def pair(self) -> tuple[Tensor, Tensor]:
        return self.of.pair()

    def with_pair(self, U: Tensor, V: Tensor) -> Magnitude:
        return replace(self, of=self.of.with_pair(U, V))

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, of=self.of.scaled(factor))

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.of.delta(dtype)

    def singular_values(self) -> Tensor:
        return self.of.singular_values()

    def leading(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.of.leading(count)

    def merged(self, weight: Tensor) -> Tensor:
        """m ∘ W′ / ‖W′‖ for W′ = W + ΔW, in the weight's shape."""
        others = [d for d in range(weight.ndim) if d != self.axis]
        shape = [-1 if d == self.axis else 1 for d in range(weight.ndim)]
        size = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        return weight / size * self.vector.to(weight).reshape(shape)
