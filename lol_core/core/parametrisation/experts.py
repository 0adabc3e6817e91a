"""A stack of weights with a pair each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.groups import GL, Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation, check_element, inverse_transposed, wide
from lol_core.core.parametrisation.low_rank import LowRank


@dataclass(frozen=True)
class Experts(Parametrisation):
    """A stack of E weights with a pair each, as mixtures of experts have: ΔW[e] = U[e] V[e]ᵀ; GL(r) for each
    expert.

    U: (E, n, r), V: (E, m, r). Flattened to (E·n) × m, ΔW has the rank E·r.
    """

    U: Tensor
    V: Tensor

    kind = Kind.EXPERTS

    def __post_init__(self) -> None:
        U, V = self.U, self.V
        if U.ndim != 3 or V.ndim != 3 or U.shape[0] != V.shape[0] or U.shape[2] != V.shape[2]:
            raise LoRAFormatError(
                f"The factors do not fit together. Found U {tuple(U.shape)} and V {tuple(V.shape)}; expected (E, n, r)"
                " and (E, m, r)."
            )

    @property
    def weight_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # read-only: it follows from the slots
        return (*self.U.shape[:2], self.V.shape[1])

    @property
    def slots(self) -> dict[str, Tensor]:
        return {"U": self.U, "V": self.V}

    @property
    def group(self) -> Product:
        return Product(((GL, self.U.shape[2]),) * len(self.U))

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        E, n, r = self.U.shape
        return E * n, self.V.shape[1], E * r

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        stacked = torch.stack(list(R))
        return replace(self, U=self.U.to(stacked.dtype) @ stacked, V=inverse_transposed(stacked, self.V))

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        return torch.block_diag(*R)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        E, n, r = self.U.shape
        U = wide(self.U)
        blocks = torch.zeros(E, n, E, r, dtype=U.dtype, device=U.device)
        blocks[range(E), :, range(E)] = U
        return blocks.reshape(E * n, E * r), wide(self.V).permute(1, 0, 2).reshape(-1, E * r)

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return LowRank.of_weight(self.weight_shape, U, V)

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, U=self.U * factor)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.U.to(dtype) @ self.V.to(dtype).mT

    def inner(self, other: Parametrisation) -> float:
        if isinstance(other, Experts) and other.weight_shape == self.weight_shape:
            U, V, U2, V2 = (t.double() for t in (self.U, self.V, other.U, other.V))
            return float(((U.mT @ U2) * (V.mT @ V2)).sum())
        return super().inner(other)
