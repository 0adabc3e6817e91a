"""What is known of an adapted module without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Kind(StrEnum):
    """How a module stores its update ΔW; the parametrisation of that name in `core/parametrisation.py`."""

    LINEAR = "linear"
    CONV = "conv"
    EMBEDDING = "embedding"
    BLOCKS = "blocks"
    TUCKER = "tucker"
    HADAMARD = "hadamard"
    KRONECKER = "kronecker"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class ModuleHeader:
    """One adapted module as models see it: a pair U (n, rank), V (m, rank), and what the pair says of ΔW.

    weight_shape: shape of the base weight, (n, m) when empty. factor_shapes: for a Kronecker product, whose pair is
    (vec W₁, vec W₂), the shapes of W₁ and W₂; empty where U Vᵀ is ΔW itself. magnitude: length of the DoRA magnitude, 0
    without one; magnitude_axis: the axis of the weight along which it runs. kind is None only in checkpoints written
    before kinds were recorded. In the specification of a model, rank is the largest.
    """

    name: str
    n: int
    m: int
    rank: int
    magnitude: int = 0
    kind: Kind | None = Kind.LINEAR
    weight_shape: tuple[int, ...] = ()
    factor_shapes: tuple[tuple[int, ...], ...] = ()
    magnitude_axis: int | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """Outputs and inputs of the weight: (n, m), save of a Kronecker product, whose pair has others."""
        return (self.weight_shape[0], prod(self.weight_shape[1:])) if self.factor_shapes else (self.n, self.m)

    @property
    def update(self) -> ModuleHeader:
        """What two modules must have in common for their pairs to be comparable: all but the rank, and but the way in
        which the same U Vᵀ is stored.
        """
        kind = Kind.KRONECKER if self.factor_shapes else Kind.LINEAR
        return replace(self, rank=0, kind=kind, weight_shape=())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModuleHeader:
        """From JSON, also as checkpoints held it before kinds were recorded (name, n, m, rank, magnitude)."""
        kind = Kind(data["kind"]) if data.get("kind") else None
        shapes = tuple(tuple(shape) for shape in data.get("factor_shapes", ()))
        weight_shape = tuple(data.get("weight_shape", ()))
        return cls(**{**data, "kind": kind, "factor_shapes": shapes, "weight_shape": weight_shape})

    def misfit(self, own: ModuleHeader) -> str | None:
        """Why a module cannot be read where this one is expected, None when it can."""
        if (own.n, own.m) != (self.n, self.m):
            return f"{self.name} is {own.n} × {own.m}; expected {self.n} × {self.m}: another base model."
        if self.kind is not None and own.factor_shapes != self.factor_shapes:
            actual, expected = (_stored(module) for module in (own, self))
            return f"{self.name} is stored as {actual}; expected {expected}."
        if own.magnitude != self.magnitude or (self.kind is not None and own.magnitude_axis != self.magnitude_axis):
            how = "has another" if own.magnitude and self.magnitude else "has a" if own.magnitude else "lacks a"
            return f"{self.name} {how} DoRA magnitude, unlike the LoRAs the model knows."
        return None


def _stored(module: ModuleHeader) -> str:
    if not module.factor_shapes:
        return "a product U Vᵀ"
    return "a Kronecker product of " + " and ".join(" × ".join(map(str, shape)) for shape in module.factor_shapes)


class HasHeaders(Protocol):
    """A LoRA, or what an index knows of one."""

    @property
    def headers(self) -> Sequence[ModuleHeader]: ...


class ByIdentity(Generic[T]):
    """A key for what thousands of LoRAs share as one object, such as their headers: equal to a key of the same object,
    and hashed without looking into it.
    """

    __slots__ = ("of",)

    def __init__(self, of: T):
        self.of = of

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.of is other.of


def distinct_headers(members: Iterable[HasHeaders]) -> list[Sequence[ModuleHeader]]:
    """The headers of LoRAs, those that several share once."""
    return [key.of for key in dict.fromkeys(ByIdentity(member.headers) for member in members)]
