"""The common case: a pair of factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Self

from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.groups import GL, Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation, check_element, inverse_transposed


@dataclass(frozen=True)
class LowRank(Parametrisation):
    """ΔW = U Vᵀ with U: (n, r), V: (m, r); the group is GL(r) (section 2).

    kind: linear; conv, a convolution flattened to (n, m) = (out, in·k·k) (section 3.3.1); or embedding, whose
    weight has a row for each token.
    """

    U: Tensor
    V: Tensor
    weight_shape: tuple[int, ...] = ()
    kind: Kind = Kind.LINEAR

    def __post_init__(self) -> None:
        U, V = self.U, self.V
        if U.ndim != 2 or V.ndim != 2 or U.shape[1] != V.shape[1]:
            raise LoRAFormatError(
                f"The factors do not fit together. Found U {tuple(U.shape)} and V {tuple(V.shape)}; expected (n, r) and"
                " (m, r)."
            )
        if not self.weight_shape:
            object.__setattr__(self, "weight_shape", (U.shape[0], V.shape[0]))
            return
        outputs = accumulate(self.weight_shape, mul)
        if prod(self.weight_shape) != U.shape[0] * V.shape[0] or U.shape[0] not in outputs:
            raise LoRAFormatError(
                f"The factors do not fit their weight. Found U {tuple(U.shape)} and V {tuple(V.shape)} for a weight"
                f" {self.weight_shape}."
            )

    @classmethod
    def of_weight(cls, weight_shape: tuple[int, ...], U: Tensor, V: Tensor) -> LowRank:
        """A pair for a weight of this shape, a convolution's where it has more than two dimensions."""
        return cls(U, V, weight_shape, Kind.CONV if len(weight_shape) > 2 else Kind.LINEAR)

    @property
    def slots(self) -> dict[str, Tensor]:
        return {"U": self.U, "V": self.V}

    @property
    def group(self) -> Product:
        return Product(((GL, self.U.shape[1]),))

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        return self.U.shape[0], self.V.shape[0], self.U.shape[1]

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        return replace(self, U=self.U.to(R[0].dtype) @ R[0], V=inverse_transposed(R[0], self.V))

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        return R[0]

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.U, self.V

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, U=self.U * factor)

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return replace(self, U=U, V=V)
