"""What an adapted module stores, which group acts on it, and what ΔW it stands for (paper, sections 2, 3.3.1,
appendix E).

Each parametrisation holds named slots, of any float dtype and on any device (also meta, where only shapes are
known). No scale: that belongs to the module (`core/lora.py`). A weight of shape (n, d₁, d₂, …) is flattened to n ×
m with m = d₁·d₂·…, and ΔW = U Vᵀ with U: (n, k), V: (m, k) is its exact low-rank form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Self

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError, ModelError
from lol_core.core.groups import GL, SCALING, Product
from lol_core.core.header import Kind


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

    def with_pair(self, U: Tensor, V: Tensor) -> Parametrisation:
        """A parametrisation of the same weight that stores this pair."""
        return LowRank(U, V, self.weight_shape, Kind.CONV if len(self.weight_shape) > 2 else Kind.LINEAR)

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
        (Q_U, R_U), (Q_V, R_V) = (torch.linalg.qr(factor.double()) for factor in self.low_rank())
        left, values, right = torch.linalg.svd(R_U @ R_V.T, full_matrices=False)
        return Q_U @ left[:, :count], values[:count], Q_V @ right[:count].T

    def inner(self, other: Parametrisation) -> float:
        """⟨ΔW, ΔW′⟩ = tr(ΔWᵀ ΔW′), in float64 and without an n × m matrix: O((n + m) k k′).

        Raises ModelError when they are no updates of the same weight.
        """
        alike = self.factor_shapes == other.factor_shapes
        (U, V), (U2, V2) = (p.pair() if alike else p.low_rank() for p in (self, other))
        if (len(U), len(V)) != (len(U2), len(V2)):
            raise ModelError(f"Updates of a weight {self.weight_shape} and of a weight {other.weight_shape}.")
        return float(((U.double().T @ U2.double()) * (V.double().T @ V2.double())).sum())


def _wide(tensor: Tensor) -> Tensor:
    """At least float32, in which 16-bit and 8-bit numbers multiply without loss worth the name."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _check(R: Sequence[Tensor], group: Product) -> None:
    if [tuple(r.shape[-2:]) for r in R] != [(k, k) for _, k in group.factors]:
        shapes = ", ".join(str(tuple(r.shape)) for r in R)
        raise ModelError(f"The group is {group}; found matrices of the shapes {shapes}.")


def _inverse_transposed(R: Tensor, V: Tensor) -> Tensor:
    """V R⁻ᵀ."""
    return torch.linalg.solve(R, V.to(R.dtype).mT).mT


def _kron(A: Tensor, B: Tensor) -> Tensor:
    """A (a, b) ⊗ B (c, d, …): (ac, bd, …)."""
    product = torch.einsum("ab,cd...->acbd...", A, B)
    return product.flatten(0, 1).flatten(1, 2)


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
        outputs = accumulate(self.weight_shape, mul)
        if prod(self.weight_shape) != U.shape[0] * V.shape[0] or U.shape[0] not in outputs:
            raise LoRAFormatError(
                f"The factors do not fit their weight. Found U {tuple(U.shape)} and V {tuple(V.shape)} for a weight"
                f" {self.weight_shape}."
            )

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
        _check(R, self.group)
        return replace(self, U=self.U.to(R[0].dtype) @ R[0], V=_inverse_transposed(R[0], self.V))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.U, self.V

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, U=self.U * factor)

    def with_pair(self, U: Tensor, V: Tensor) -> LowRank:
        return replace(self, U=U, V=V)


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
        _check(R, self.group)
        core = torch.einsum("xa,ab...->xb...", torch.linalg.inv(R[0]), self.core.to(R[0].dtype))
        core = torch.einsum("ab...,yb->ay...", core, torch.linalg.inv(R[1]))
        return replace(self, U=self.U.to(R[0].dtype) @ R[0], core=core, V=self.V.to(R[1].dtype) @ R[1])

    def low_rank(self) -> tuple[Tensor, Tensor]:
        right = torch.einsum("ab...,ib->i...a", _wide(self.core), _wide(self.V))
        return _wide(self.U), right.reshape(-1, self.U.shape[1])

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, U=self.U * factor)


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
        _check(R, self.group)
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
        (U, V), (U2, V2) = ([_wide(factor) for factor in part.low_rank()] for part in self._parts)
        return torch.einsum("xa,xb->xab", U, U2).flatten(1), torch.einsum("xa,xb->xab", V, V2).flatten(1)

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, first=self.first.scaled(factor))

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.first.delta(dtype) * self.second.delta(dtype)


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
        _check(R, self.group)
        return self

    def low_rank(self) -> tuple[Tensor, Tensor]:
        flat = _wide(self.weight).flatten(1)
        n, m = flat.shape
        return (torch.eye(n).to(flat), flat.T) if n <= m else (flat, torch.eye(m).to(flat))

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, weight=self.weight * factor)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.weight.to(dtype)


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
        _check(R, self.group)
        c, turns, cut = R[0].reshape(()), R[1:], len(self.first.group.factors)
        return replace(
            self,
            first=self.first.act(turns[:cut]).scaled(c),
            second=self.second.act(turns[cut:]).scaled(1 / c),
        )

    def pair(self) -> tuple[Tensor, Tensor]:
        W1, W2 = (part.delta(_wide(next(iter(part.slots.values()))).dtype) for part in (self.first, self.second))
        return W1.reshape(-1, 1), W2.reshape(-1, 1)

    def with_pair(self, U: Tensor, V: Tensor) -> Kronecker:
        shapes = self.factor_shapes
        return Kronecker(Whole(U.reshape(shapes[0])), Whole(V.reshape(shapes[1])))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        (U, V), (U2, V2) = ([_wide(factor) for factor in part.low_rank()] for part in (self.first, self.second))
        return _kron(U, U2), _kron(V, V2)

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
        _check(R, self.group)
        stacked = torch.stack(list(R))
        return replace(self, U=self.U.to(stacked.dtype) @ stacked, V=_inverse_transposed(stacked, self.V))

    def low_rank(self) -> tuple[Tensor, Tensor]:
        E, n, r = self.U.shape
        U = _wide(self.U)
        blocks = torch.zeros(E, n, E, r, dtype=U.dtype, device=U.device)
        blocks[range(E), :, range(E)] = U
        return blocks.reshape(E * n, E * r), _wide(self.V).permute(1, 0, 2).reshape(-1, E * r)

    def scaled(self, factor: Tensor | float) -> Self:
        return replace(self, U=self.U * factor)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.U.to(dtype) @ self.V.to(dtype).mT

    def inner(self, other: Parametrisation) -> float:
        if isinstance(other, Experts) and other.weight_shape == self.weight_shape:
            U, V, U2, V2 = (t.double() for t in (self.U, self.V, other.U, other.V))
            return float(((U.mT @ U2) * (V.mT @ V2)).sum())
        return super().inner(other)


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
