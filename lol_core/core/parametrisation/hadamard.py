"""LoHa: a product entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.groups import SCALING, Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation, check_element, wide
from lol_core.core.parametrisation.low_rank import LowRank
from lol_core.core.parametrisation.tucker import Tucker


@dataclass(frozen=True)
class Hadamard(Parametrisation):
    """LoHa: ΔW = ΔW₁ ∘ ΔW₂, entry by entry, of two low-rank products.

    Each product has its own group, and whatever scales one product along an axis of the weight cancels against the
    inverse in the other: GL(r₁) × GL(r₂) × scalings of the n rows × of the m columns, and with cores, whose products
    have two groups each, × scalings of the kernel's positions. In general position nothing else leaves ΔW alone but the
    exchange of the products, where their ranks are equal (the proof stands in docs/mathematics.md).
    """

    first: LowRank | Tucker
    second: LowRank | Tucker

    kind = Kind.HADAMARD

    def __post_init__(self) -> None:
        if self.first.weight_shape != self.second.weight_shape or type(self.first) is not type(self.second):
            raise LoRAFormatError(
                f"The two products do not fit together. Found weights {self.first.weight_shape} and"
                f" {self.second.weight_shape}."
            )

    @property
    def weight_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # read-only: it follows from the slots
        return self.first.weight_shape

    @property
    def slots(self) -> dict[str, Tensor]:
        return {f"{name}{i}": slot for i, part in enumerate(self._parts, 1) for name, slot in part.slots.items()}

    @property
    def _parts(self) -> tuple[LowRank | Tucker, LowRank | Tucker]:
        return self.first, self.second

    @property
    def _axes(self) -> list[int]:
        """Lengths of the axes along which a product can be scaled."""
        positions = [prod(self.first.core.shape[2:])] if isinstance(self.first, Tucker) else []
        return [len(self.first.U), len(self.first.V), *positions]

    @property
    def group(self) -> Product:
        scalings = tuple((SCALING, length) for length in self._axes)
        return Product(self.first.group.factors + self.second.group.factors + scalings)

    @property
    def orbit_dimension(self) -> int:
        """Less than the group's by one for each axis but the first: one axis times λ and another over λ is what λI and
        I/λ do as elements of the products' own groups.
        """
        return self.group.dimension - (len(self._axes) - 1)

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        (n, m, r), (_, _, r2) = (part.pair_shape for part in self._parts)
        return n, m, r * r2

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        half = len(self.first.group.factors)
        scalings = [torch.diagonal(scaling) for scaling in R[2 * half :]]
        return replace(
            self,
            first=_scaled_along(self.first.act(R[:half]), scalings),
            second=_scaled_along(self.second.act(R[half : 2 * half]), [1 / scaling for scaling in scalings]),
        )

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        """R₁ ⊗ R₂; scalings cancel within the rows of the pair."""
        half = len(self.first.group.factors)
        return torch.kron(self.first.on_pair(R[:half]), self.second.on_pair(R[half : 2 * half]))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """The row-wise Khatri–Rao products, of rank r₁ r₂."""
        (U, V), (U2, V2) = ([wide(factor) for factor in part.low_rank()] for part in self._parts)
        return torch.einsum("xa,xb->xab", U, U2).flatten(1), torch.einsum("xa,xb->xab", V, V2).flatten(1)

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return LowRank.of_weight(self.weight_shape, U, V)

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, first=self.first.scaled(factor))

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.first.delta(dtype) * self.second.delta(dtype)


def _scaled_along(part: LowRank | Tucker, scalings: Sequence[Tensor]) -> LowRank | Tucker:
    """A product scaled along the axes of its weight: outputs, inputs, and with a core the kernel's positions."""
    outputs, inputs, *positions = scalings
    part = replace(part, U=outputs[:, None] * part.U, V=inputs[:, None] * part.V)
    if isinstance(part, Tucker):
        part = replace(part, core=part.core * positions[0].reshape(part.core.shape[2:]))
    return part
