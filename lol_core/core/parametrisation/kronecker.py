"""LoKr: a Kronecker product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import ModelError
from lol_core.core.groups import GL, Product
from lol_core.core.header import Kind
from lol_core.core.parametrisation.base import Parametrisation, check_element, wide
from lol_core.core.parametrisation.low_rank import LowRank
from lol_core.core.parametrisation.tucker import Tucker
from lol_core.core.parametrisation.whole import Whole


@dataclass(frozen=True)
class Kronecker(Parametrisation):
    """LoKr: ΔW = W₁ ⊗ W₂; GL(1), and the groups of the factors that are products themselves (appendix E, KronA).

    first: W₁ (n₁, m₁), second: W₂ (n₂, m₂, …). Models read the pair (vec W₁, vec W₂), each of one column: the
    entries of ΔW in another order, so that inner products are those of ΔW among modules of the same factor shapes.
    """

    first: Whole | LowRank
    second: Whole | LowRank | Tucker

    kind = Kind.KRONECKER

    @property
    def weight_shape(self) -> tuple[int, ...]:  # type: ignore[override]  # read-only: it follows from the slots
        one, two = self.factor_shapes
        return (one[0] * two[0], one[1] * two[1], *two[2:])

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.first.weight_shape, self.second.weight_shape

    @property
    def slots(self) -> dict[str, Tensor]:
        parts = enumerate((self.first, self.second), 1)
        return {f"{name}{i}": slot for i, part in parts for name, slot in part.slots.items()}

    @property
    def group(self) -> Product:
        return Product(((GL, 1), *self.first.group.factors, *self.second.group.factors))

    @property
    def pair_shape(self) -> tuple[int, int, int]:
        return prod(self.first.weight_shape), prod(self.second.weight_shape), 1

    def act(self, R: Sequence[Tensor]) -> Self:
        check_element(R, self.group)
        c = R[0].reshape(1)  # of one dimension, so that its dtype counts beside that of a factor stored as it is
        turns, cut = R[1:], len(self.first.group.factors)
        return replace(
            self,
            first=self.first.act(turns[:cut]).scaled(c),
            second=self.second.act(turns[cut:]).scaled(1 / c),
        )

    def on_pair(self, R: Sequence[Tensor]) -> Tensor:
        """Of GL(1) alone: what moves a factor's own factors leaves the factor as it is."""
        return R[0]

    def pair(self) -> tuple[Tensor, Tensor]:
        W1, W2 = (part.delta(wide(next(iter(part.slots.values()))).dtype) for part in (self.first, self.second))
        return W1.reshape(-1, 1), W2.reshape(-1, 1)

    def with_pair(self, U: Tensor, V: Tensor) -> Kronecker:
        shapes = self.factor_shapes
        return Kronecker(Whole(U.reshape(shapes[0])), Whole(V.reshape(shapes[1])))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """The Kronecker products of the factors' own: k = k₁ k₂, where k of a factor stored whole is its smaller side.
        So k may be the full rank of ΔW, and U or V then as large as ΔW itself.
        """
        (U, V), (U2, V2) = ([wide(factor) for factor in part.low_rank()] for part in (self.first, self.second))
        return _kron(U, U2), _kron(V, V2)

    def inner(self, other: Parametrisation) -> float:
        """With a low-rank product tr(W₁ᵀ Σᵣ Uᵣ W₂ Vᵣᵀ), where Uᵣ: (n₁, n₂) and Vᵣ: (m₁, m₂) are the columns of its
        pair: a whole factor's own low-rank product may be of full rank.
        """
        if other.factor_shapes:
            return super().inner(other)
        W1, W2 = (part.delta(torch.float64).flatten(1) for part in (self.first, self.second))
        U, V = (factor.double() for factor in other.low_rank())
        if (len(U), len(V)) != (len(W1) * len(W2), W1.shape[1] * W2.shape[1]):
            raise ModelError(f"Updates of a weight {self.weight_shape} and of a weight {other.weight_shape}.")
        inputs = torch.einsum("kl,jlr->jkr", W2, V.reshape(W1.shape[1], W2.shape[1], -1))
        outputs = torch.einsum("ij,jkr->ikr", W1, inputs)
        return float((outputs * U.reshape(outputs.shape)).sum())

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, first=self.first.scaled(factor))

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return _kron(self.first.delta(dtype), self.second.delta(dtype))

    def singular_values(self) -> Tensor:
        one, two = (part.singular_values() for part in (self.first, self.second))
        return torch.outer(one, two).flatten().sort(descending=True).values

    def leading(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The singular triplets of a Kronecker product are the Kronecker products of those of its factors."""
        (P1, s1, Q1), (P2, s2, Q2) = (part.leading(count) for part in (self.first, self.second))
        products = torch.outer(s1, s2).flatten()
        values, order = products.sort(descending=True)
        i, j = order[:count] // len(s2), order[:count] % len(s2)
        P = torch.einsum("ak,bk->abk", P1[:, i], P2[:, j]).flatten(0, 1)
        Q = torch.einsum("ak,bk->abk", Q1[:, i], Q2[:, j]).flatten(0, 1)
        return P, values[:count], Q


def _kron(A: Tensor, B: Tensor) -> Tensor:
    """A (a, b) ⊗ B (c, d, …): (ac, bd, …)."""
    product = torch.einsum("ab,cd...->acbd...", A, B)
    return product.flatten(0, 1).flatten(1, 2)
