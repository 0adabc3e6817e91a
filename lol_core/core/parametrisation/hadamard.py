"""LoHa: a product entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    Each product has its own group; and a scaling of the rows (or, for products of one layout, of the columns) of
    the one cancels against the inverse scaling of the other: GL(r₁) × GL(r₂) × scalings of n × scalings of m.
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
    def group(self) -> Product:
        rows, columns = len(self.first.U), len(self.first.V)
        return Product(self.first.group.factors + self.second.group.factors + ((SCALING, rows), (SCALING, columns)))

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        (n, m, r), (_, _, r2) = (part.pair_shape for part in self._parts)
        return n, m, r * r2

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        *turns, rows, columns = R
        half = len(self.first.group.factors)
        first, second = self.first.act(turns[:half]), self.second.act(turns[half:])
        D, E = torch.diagonal(rows)[:, None], torch.diagonal(columns)[:, None]
        return replace(
            self,
            first=replace(first, U=D * first.U, V=E * first.V),
            second=replace(second, U=second.U / D, V=second.V / E),
        )

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
