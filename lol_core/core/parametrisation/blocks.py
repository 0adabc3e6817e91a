"""MergedLinear, grouped convolutions, BD-LoRA: a pair for each block of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.groups import GL, Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import check_element, inverse_transposed
from lol_core.core.parametrisation.low_rank import LowRank


class Place(NamedTuple):
    """Where a block stands in the flattened weight, and which columns of U and V are its pair's."""

    rows: slice
    columns: slice
    ranks: slice


@dataclass(frozen=True)
class Blocks(LowRank):
    """ΔW[rows, columns] = U_g V_gᵀ for each of e blocks, no two of which meet, and zero elsewhere; GL(r_g) for each.

    U: (n, Σ r_g) and V: (m, Σ r_g) hold the pairs side by side, each in its block's rows and columns, and zeros
    elsewhere, which are not stored: U is block-diagonal where blocks are one above the other (the parts of a merged
    projection, the groups of a convolution), V where they are side by side.
    """

    kind: Kind = Kind.BLOCKS
    places: tuple[Place, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = [0, *(place.ranks.stop for place in self.places)]
        if [place.ranks.start for place in self.places] != ends[:-1] or ends[-1] != self.U.shape[1]:
            ranks = ", ".join(f"{place.ranks.start}:{place.ranks.stop}" for place in self.places)
            raise LoRAFormatError(
                f"The blocks do not fit their factors. Found the columns {ranks} of U {tuple(self.U.shape)}; expected"
                " each column in one block, in order."
            )

    @property
    def slots(self) -> dict[str, Tensor]:
        slots: dict[str, Tensor] = {}
        for i, (rows, columns, ranks) in enumerate(self.places, 1):
            slots |= {f"U{i}": self.U[rows, ranks], f"V{i}": self.V[columns, ranks]}
        return slots

    @property
    def group(self) -> Product:
        return Product(tuple((GL, place.ranks.stop - place.ranks.start) for place in self.places))

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        whole = self.on_pair(R)
        return replace(self, U=self.U.to(whole.dtype) @ whole, V=inverse_transposed(whole, self.V))

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        return torch.block_diag(*R)

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return LowRank.of_weight(self.weight_shape, U, V)
