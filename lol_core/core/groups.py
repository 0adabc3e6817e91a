"""The groups that act on factors: how to draw an element, and how to tell one.

A `Group` is a family with a member for every rank: GL is GL(1), GL(2), …; a `Product` fixes the ranks. GL, O,
PERMUTATION and SCALING are the ones that models are held to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor


class Group(ABC):
    """Invertible r × r matrices, for every r. `key`: its name in commands and files; `title`: its name for people."""

    key: ClassVar[str]
    title: ClassVar[str]
    conditioned: ClassVar[bool]
    """Whether its elements have condition numbers above 1, so that `condition` counts."""

    def sample(
        self,
        r: int,
        *,
        condition: float = 10.0,
        count: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Random elements: (count …, r, r), with condition number κ(R) = `condition` where κ can differ from 1.

        Raises ValueError for a condition number below 1.
        """
        if condition < 1:
            raise ValueError(f"A condition number is at least 1; found {condition}.")
        return self._draw((*count, r), 0.5 * torch.log(torch.tensor(condition, dtype=dtype)), generator)

    @abstractmethod
    def _draw(self, shape: tuple[int, ...], half: Tensor, random: torch.Generator | None) -> Tensor:
        """Random elements, (*shape, r) for a shape that ends in r, in the dtype of half: ½ ln κ."""

    @abstractmethod
    def contains(self, R: Tensor, tolerance: float = 1e-6) -> bool:
        """Whether every matrix of R: (…, r, r) is an element, up to `tolerance` in its entries."""

    @abstractmethod
    def includes(self, other: Group) -> bool:
        """Whether `other` is a subgroup: what is invariant under this group is so under `other`."""

    @abstractmethod
    def dimension(self, r: int) -> int:
        """The dimension of the group of that rank as a manifold."""

    def __repr__(self) -> str:
        return self.title

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def _finite(R: Tensor) -> bool:
    return R.ndim >= 2 and R.shape[-1] == R.shape[-2] and bool(torch.isfinite(R).all())


class Orthogonal(Group):
    """O(r). Drawn from the Haar measure."""

    key, title, conditioned = "o", "O(r)", False

    def _draw(self, shape: tuple[int, ...], half: Tensor, random: torch.Generator | None) -> Tensor:
        Q, R = torch.linalg.qr(torch.randn(*shape, shape[-1], generator=random, dtype=half.dtype))
        return Q * torch.diagonal(R, dim1=-2, dim2=-1).sign().unsqueeze(-2)

    def contains(self, R: Tensor, tolerance: float = 1e-6) -> bool:
        return _finite(R) and bool(((R.mT @ R - torch.eye(R.shape[-1]).to(R)).abs() <= tolerance).all())

    def includes(self, other: Group) -> bool:
        return other in (O, PERMUTATION)

    def dimension(self, r: int) -> int:
        return r * (r - 1) // 2


class GeneralLinear(Group):
    """GL(r). R = Q₁ diag(s) Q₂ᵀ with Haar Q₁, Q₂ and singular values s evenly spaced in logarithm from √κ to 1/√κ.

    For r = 1, where κ is always 1, R is ±κ^(u/2) with u uniform in [−1, 1].
    """

    key, title, conditioned = "gl", "GL(r)", True

    def _draw(self, shape: tuple[int, ...], half: Tensor, random: torch.Generator | None) -> Tensor:
        left, right = (O._draw(shape, half, random) for _ in range(2))
        if shape[-1] == 1:
            return left * torch.exp(half * (2 * torch.rand(*shape, 1, generator=random, dtype=half.dtype) - 1))
        values = torch.exp(torch.linspace(1, -1, shape[-1], dtype=half.dtype) * half)
        return left * values @ right.mT

    def contains(self, R: Tensor, tolerance: float = 1e-6) -> bool:
        return _finite(R) and bool((torch.linalg.matrix_rank(R) == R.shape[-1]).all())

    def includes(self, other: Group) -> bool:
        return True

    def dimension(self, r: int) -> int:
        return r * r


class Permutation(Group):
    """Permutation matrices, uniform."""

    key, title, conditioned = "permutation", "permutations", False

    def _draw(self, shape: tuple[int, ...], half: Tensor, random: torch.Generator | None) -> Tensor:
        return torch.eye(shape[-1], dtype=half.dtype)[torch.rand(*shape, generator=random).argsort(-1)]

    def contains(self, R: Tensor, tolerance: float = 1e-6) -> bool:
        if not O.contains(R, tolerance):
            return False
        return bool((torch.minimum(R.abs(), (R - 1).abs()) <= tolerance).all())

    def includes(self, other: Group) -> bool:
        return other == PERMUTATION

    def dimension(self, r: int) -> int:
        return 0


class Scaling(Group):
    """Invertible diagonal matrices, with random signs; their sizes are those of the singular values of GL, in random
    order.
    """

    key, title, conditioned = "scaling", "scalings", True

    def _draw(self, shape: tuple[int, ...], half: Tensor, random: torch.Generator | None) -> Tensor:
        signs = torch.randint(0, 2, shape, generator=random).to(half.dtype) * 2 - 1
        if shape[-1] > 1:
            exponents = torch.linspace(1, -1, shape[-1], dtype=half.dtype)
        else:
            exponents = 2 * torch.rand(shape, generator=random, dtype=half.dtype) - 1
        order = torch.rand(shape, generator=random).argsort(-1)
        return torch.diag_embed(signs * torch.exp(exponents * half).expand(shape).gather(-1, order))

    def contains(self, R: Tensor, tolerance: float = 1e-6) -> bool:
        off = R - torch.diag_embed(torch.diagonal(R, dim1=-2, dim2=-1))
        return GL.contains(R) and bool((off.abs() <= tolerance).all())

    def includes(self, other: Group) -> bool:
        return other == SCALING

    def dimension(self, r: int) -> int:
        return r


GL, O, PERMUTATION, SCALING = GeneralLinear(), Orthogonal(), Permutation(), Scaling()  # noqa: E741 (the group's name)
GROUPS: tuple[Group, ...] = (GL, O, PERMUTATION, SCALING)
"""Those that models and invariance studies are held to, the largest first."""


def named(key: str) -> Group:
    """The group of that key. Raises ValueError naming those there are."""
    for group in GROUPS:
        if group.key == key:
            return group
    raise ValueError(f"There is no group {key!r}. Choose one of {', '.join(group.key for group in GROUPS)}.")


@dataclass(frozen=True)
class Product:
    """A product of groups of fixed ranks, such as GL(4) × GL(4): its elements are tuples of matrices, one a factor."""

    factors: tuple[tuple[Group, int], ...]

    @property
    def title(self) -> str:
        return _product(_sized(group, r) for group, r in self.factors)

    @property
    def family(self) -> str:
        """The title without the lengths of scalings, which differ from module to module."""
        return _product(group.title if group == SCALING else _sized(group, r) for group, r in self.factors)

    @property
    def dimension(self) -> int:
        """The dimension of the group as a manifold."""
        return sum(group.dimension(r) for group, r in self.factors)

    def sample(
        self,
        *,
        condition: float = 10.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> tuple[Tensor, ...]:
        """A random element: for each factor (r, r)."""
        return tuple(
            group.sample(r, condition=condition, generator=generator, dtype=dtype) for group, r in self.factors
        )

    def contains(self, R: Sequence[Tensor], tolerance: float = 1e-6) -> bool:
        return len(R) == len(self.factors) and all(
            matrix.shape[-2:] == (r, r) and group.contains(matrix, tolerance)
            for matrix, (group, r) in zip(R, self.factors, strict=True)
        )

    def __str__(self) -> str:
        return self.title


def _product(titles: Iterable[str]) -> str:
    """Those in a row that are the same are counted where they are more than three, as those of experts."""
    parts = []
    for title, same in groupby(titles):
        count = len(list(same))
        parts += [title] * count if count <= 3 else [f"{title}^{count}"]
    return " × ".join(parts) or "{1}"


def _sized(group: Group, r: int) -> str:
    return f"scalings of {r}" if group == SCALING else group.title.replace("(r)", f"({r})")
