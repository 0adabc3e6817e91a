"""What every parametrisation offers: named slots, the group that acts on them, and the ΔW they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import ModelError
from lol_core.core.groups import Product
from lol_core.core.header import Kind
from lol_core.core.svd import svd_of_product


class Parametrisation(ABC):
    """One adapted module's factors. `weight_shape`: shape of the base weight that ΔW is added to."""

    kind: Kind
    weight_shape: tuple[int, ...]

    @property
    @abstractmethod
    def slots(self) -> dict[str, Tensor]:
        """The stored tensors by name."""

    @property
    @abstractmethod
    def group(self) -> Product:
        """The group under which ΔW stays as it is."""

    @abstractmethod
    def act(self, R: Sequence[Tensor]) -> Self:
        """The factors moved by an element of `group`, computed in R's dtype: other numbers, the same ΔW.

        Raises ModelError when R is no element's shape.
        """

    @abstractmethod
    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        """The S (rank, rank) by which an element of `group` moves what models stack: act(R).pair() is (U S, V S⁻ᵀ) for
        pair() = (U, V). So what is GL-invariant of the pair is invariant under `group`.
        """

    @abstractmethod
    def low_rank(self) -> tuple[Tensor, Tensor]:
        """U: (n, k) and V: (m, k) with U Vᵀ = ΔW, flattened, exactly. 16-bit slots are multiplied in float32."""

    @abstractmethod
    def scaled(self, factor: Tensor | float) -> Self:
        """The parametrisation of factor · ΔW."""

    @property
    @abstractmethod
    def pair_shape(self) -> tuple[int, int, int]:
        """(n, m, rank) of `pair`, known without multiplying anything."""

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Empty where `pair` multiplies to ΔW itself."""
        return ()

    def pair(self) -> tuple[Tensor, Tensor]:
        """What models stack: U: (n, rank) and V: (m, rank), whose product is ΔW or holds the same entries
        elsewhere.
        """
        return self.low_rank()

    @abstractmethod
    def with_pair(self, U: Tensor, V: Tensor) -> Parametrisation:
        """A parametrisation of the same weight that stores this pair."""

    @property
    def orbit_dimension(self) -> int:
        """The dimension of the orbit of these slots under the group: of the numbers stored, how many say nothing of ΔW
        (for slots in general position).
        """
        return self.group.dimension

    @property
    def parameters(self) -> int:
        """Numbers stored."""
        return sum(slot.numel() for slot in self.slots.values())

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW in the shape of the base weight. Forms the n × m matrix: for looking at one module, not for learning."""
        U, V = self.low_rank()
        return (U.to(dtype) @ V.to(dtype).T).reshape(self.weight_shape)

    def singular_values(self) -> Tensor:
        """The singular values of ΔW, flattened, descending, in float64: (min(n, m, k),)."""
        R_U, R_V = (torch.linalg.qr(factor.double(), mode="r").R for factor in self.low_rank())
        return torch.linalg.svdvals(R_U @ R_V.T)

    def leading(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `count` leading singular triplets of ΔW in float64: P (n, k), σ (k,) descending, Q (m, k), k ≤ count."""
        P, values, Q = svd_of_product(*(factor.double() for factor in self.low_rank()))
        return P[:, :count], values[:count], Q[:, :count]

    def inner(self, other: Parametrisation) -> float:
        """⟨ΔW, ΔW′⟩ = tr(ΔWᵀ ΔW′), in float64 and without an n × m matrix: O((n + m) k k′).

        Raises ModelError when they are no updates of the same weight.
        """
        if other.factor_shapes and not self.factor_shapes:
            return other.inner(self)
        alike = self.factor_shapes == other.factor_shapes
        (U, V), (U2, V2) = (p.pair() if alike else p.low_rank() for p in (self, other))
        if (len(U), len(V)) != (len(U2), len(V2)):
            raise ModelError(f"Updates of a weight {self.weight_shape} and of a weight {other.weight_shape}.")
        return float(((U.double().T @ U2.double()) * (V.double().T @ V2.double())).sum())


def wide(tensor: Tensor) -> Tensor:
    """At least float32, in which 16-bit and 8-bit numbers multiply without loss worth the name."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def check_element(R: Sequence[Tensor], group: Product) -> None:
    if [tuple(r.shape[-2:]) for r in R] != [(k, k) for _, k in group.factors]:
        shapes = ", ".join(str(tuple(r.shape)) for r in R)
        raise ModelError(f"The group is {group}; found matrices of the shapes {shapes}.")


def inverse_transposed(R: Tensor, V: Tensor) -> Tensor:
    """V R⁻ᵀ."""
    return torch.linalg.solve(R, V.to(R.dtype).mT).mT
