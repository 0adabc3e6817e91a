"""A convolution with a core between its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.groups import GL, Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation, check_element, wide
from lol_core.core.parametrisation.low_rank import LowRank


@dataclass(frozen=True)
class Tucker(Parametrisation):
    """A convolution with a core (LoCon's `lora_mid`): ΔW[o, i, …] = Σ U[o, a] core[a, b, …] V[i, b]; GL(r₁) ×
    GL(r₂).

    U: (out, r₁), core: (r₁, r₂, k, …), V: (in, r₂).
    """

    U: Tensor
    core: Tensor
    V: Tensor

    kind = Kind.TUCKER

    def __post_init__(self) -> None:
        if self.core.ndim < 2 or self.core.shape[:2] != (self.U.shape[-1], self.V.shape[-1]) or self.U.ndim != 2:
            raise LoRAFormatError(
                f"The factors do not fit together. Found U {tuple(self.U.shape)}, core {tuple(self.core.shape)} and"
                f" V {tuple(self.V.shape)}; expected (out, r₁), (r₁, r₂, …) and (in, r₂)."
            )

    @property
    def weight_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # read-only: it follows from the slots
        return (self.U.shape[0], self.V.shape[0], *self.core.shape[2:])

    @property
    def slots(self) -> dict[str, Tensor]:
        return {"U": self.U, "core": self.core, "V": self.V}

    @property
    def group(self) -> Product:
        return Product(((GL, self.U.shape[1]), (GL, self.V.shape[1])))

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        return self.U.shape[0], prod(self.weight_shape[1:]), self.U.shape[1]

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        core = torch.einsum("xa,ab...->xb...", torch.linalg.inv(R[0]), self.core.to(R[0].dtype))
        core = torch.einsum("ab...,yb->ay...", core, torch.linalg.inv(R[1]))
        return replace(self, U=self.U.to(R[0].dtype) @ R[0], core=core, V=self.V.to(R[1].dtype) @ R[1])

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        """R₂ cancels in the product of the core and V."""
        return R[0]

    def low_rank(self) -> tuple[Tensor, Tensor]:
        right = torch.einsum("ab...,ib->i...a", wide(self.core), wide(self.V))
        return wide(self.U), right.reshape(-1, self.U.shape[1])

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return LowRank.of_weight(self.weight_shape, U, V)

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, U=self.U * factor)
