"""A factor that is stored as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from lol_core.core.groups import Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation, check_element, wide
from lol_core.core.parametrisation.low_rank import LowRank


@dataclass(frozen=True)
class Whole(Parametrisation):
    """A matrix or convolution that is stored as it is, as a factor of a Kronecker product may be; nothing acts on
    it.
    """

    weight: Tensor

    kind = Kind.LINEAR

    @property
    def weight_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # read-only: it follows from the slots
        return tuple(self.weight.shape)

    @property
    def slots(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    @property
    def group(self) -> Product:
        return Product(())

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        n, m = self.weight.shape[0], prod(self.weight.shape[1:])
        return n, m, min(n, m)

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        return self

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        return torch.eye(self.pair_shape[2], dtype=wide(self.weight).dtype)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        flat = wide(self.weight).flatten(1)
        n, m = flat.shape
        return (torch.eye(n).to(flat), flat.T) if n <= m else (flat, torch.eye(m).to(flat))

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return LowRank.of_weight(self.weight_shape, U, V)

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, weight=self.weight * factor)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.weight.to(dtype)
