"""A LoRA as mathematics: per adapted module a parametrisation of ΔW and a scale, and nothing about files.

ΔW = s · U Vᵀ with U: (n, r), V: (m, r), in the paper's letters; n is the module's output and m its input dimension. In
PEFT's letters U = B and V = Aᵀ.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.header import Kind, ModuleHeader
from lol_core.core.naming import common_name, common_names
from lol_core.core.parametrisation import LowRank, Magnitude, Parametrisation
from lol_core.core.stacks import SMALL, stacked


def bounds(numbers: Tensor) -> tuple[float, float]:
    """The least and the largest number, both NaN where one is; 0 where there is none."""
    if not numbers.numel():
        return 0.0, 0.0
    if numbers.ndim > 1 and numbers.mT.is_contiguous():
        numbers = numbers.mT  # in the order in which they lie in memory
    least, largest = (numbers if numbers.dtype.itemsize > 1 else numbers.float()).aminmax()
    return least.item(), largest.item()


@dataclass(frozen=True)
class LoRALayer:
    """One adapted module: its ΔW is `scale` times that of its parametrisation, whose slots hold the numbers as the file
    stores them (any float dtype).

    alpha: the value in the file or its configuration, None if there is none.
    """

    name: str
    parametrisation: Parametrisation
    scale: float = 1.0
    alpha: float | None = None

    @classmethod
    def pair(
        cls,
        name: str,
        U: Tensor,
        V: Tensor,
        *,
        scale: float = 1.0,
        alpha: float | None = None,
        weight_shape: tuple[int, ...] = (),
        kind: Kind = Kind.LINEAR,
    ) -> LoRALayer:
        """The common case, a low-rank pair U: (n, r), V: (m, r). Raises LoRAFormatError when they do not fit."""
        try:
            return cls(name, LowRank(U, V, weight_shape, kind), scale, alpha)
        except LoRAFormatError as error:
            raise LoRAFormatError(f"{name}: {error}") from error

    def __repr__(self) -> str:
        shape = f"{type(self.parametrisation).__name__} {self.n} × {self.m}, rank {self.rank}"
        return f"LoRALayer({self.name!r}: {shape}, scale {self.scale:g}, {self.dtype})"

    @cached_property
    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.parametrisation.pair()

    @property
    def U(self) -> Tensor:
        """(n, rank), the left factor that models read; see `Parametrisation.pair`."""
        return self._pair[0]

    @property
    def V(self) -> Tensor:
        """(m, rank), the right one."""
        return self._pair[1]

    @property
    def n(self) -> int:
        return self.parametrisation.pair_shape[0]

    @property
    def m(self) -> int:
        return self.parametrisation.pair_shape[1]

    @property
    def rank(self) -> int:
        return self.parametrisation.pair_shape[2]

    @property
    def kind(self) -> Kind:
        return self.parametrisation.kind

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.parametrisation.weight_shape

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.parametrisation.factor_shapes

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's magnitude, None without one."""
        return self.parametrisation.vector if isinstance(self.parametrisation, Magnitude) else None

    @property
    def magnitude_axis(self) -> int | None:
        """The axis of the weight along which the magnitude runs."""
        return self.parametrisation.axis if isinstance(self.parametrisation, Magnitude) else None

    @property
    def dtype(self) -> str:
        return str(next(iter(self.parametrisation.slots.values())).dtype).removeprefix("torch.")

    @property
    def header(self) -> ModuleHeader:
        n, m, rank = self.parametrisation.pair_shape
        return ModuleHeader(
            self.name,
            n,
            m,
            rank,
            magnitude=0 if self.magnitude is None else self.magnitude.numel(),
            kind=self.kind,
            weight_shape=self.weight_shape,
            factor_shapes=self.factor_shapes,
            magnitude_axis=self.magnitude_axis,
        )

    @property
    def parameters(self) -> int:
        """Numbers stored."""
        return self.parametrisation.parameters

    def folded(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(U, V) with √|s| in each factor and the sign of s in U, so that U Vᵀ is the whole update (for a Kronecker
        product its entries in another order).
        """
        root = abs(self.scale) ** 0.5
        return self.U.to(dtype) * (root if self.scale >= 0 else -root), self.V.to(dtype) * root

    def with_pair(self, U: Tensor, V: Tensor) -> LoRALayer:
        """The same module with another pair in place of its own; the scale stays."""
        return replace(self, parametrisation=self.parametrisation.with_pair(U, V))

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW in the shape of the base weight. Forms the n × m matrix: for looking at one module, not for learning."""
        return self.scale * self.parametrisation.delta(dtype)

    def merge(self, weight: Tensor) -> Tensor:
        """The fine-tuned weight: W + ΔW, or for DoRA m ∘ (W + ΔW)/‖W + ΔW‖ along the magnitude's axis (equation 39)."""
        merged = weight + self.delta(weight.dtype).to(weight.device)
        return self.parametrisation.merged(merged) if isinstance(self.parametrisation, Magnitude) else merged

    def act(self, R: Tensor | Sequence[Tensor]) -> LoRALayer:
        """The same function with other factors: (UR, VR⁻ᵀ) for a low-rank pair (paper, section 2).

        R: an element of the parametrisation's group, a tuple of matrices, or one matrix where the group has one factor;
        computed in R's dtype. Raises ModelError when it is of another shape.
        """
        element = (R,) if isinstance(R, Tensor) else tuple(R)
        return replace(self, parametrisation=self.parametrisation.act(element))


@dataclass(frozen=True)
class LoRA:
    """All adapted modules of one fine-tune, with what its file says about itself.

    metadata: header and configuration entries as found, which may be wrong or absent; extras: tensors in the file that
    are no part of a low-rank pair.
    """

    layers: tuple[LoRALayer, ...]
    dialect: str = "unknown"
    base_model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        of = f" of {self.base_model}" if self.base_model else ""
        return f"LoRA({self.dialect}{of}: {len(self.layers)} modules, ranks {ranks or 'none'})"

    @cached_property
    def _by_name(self) -> dict[str, LoRALayer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def by_common_name(self) -> dict[str, LoRALayer]:
        """The modules by the names that LoRAs of several programs have in common."""
        return dict(zip(common_names(self.names), self.layers, strict=True))

    def get(self, name: str) -> LoRALayer | None:
        """The module of that name, or that another program calls so; None without one."""
        return self._by_name.get(name) or self.by_common_name.get(common_name(name))

    def __getitem__(self, name: str) -> LoRALayer:
        """As `get`. Raises KeyError where it gives none."""
        if (layer := self.get(name)) is None:
            raise KeyError(name)
        return layer

    @property
    def headers(self) -> tuple[ModuleHeader, ...]:
        return tuple(layer.header for layer in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks, ascending."""
        return tuple(sorted({layer.rank for layer in self.layers}))

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({layer.dtype for layer in self.layers}))

    def act(self, R: Mapping[str, Tensor | Sequence[Tensor]]) -> LoRA:
        """R ⋆ (U, V) with one element of its group for each module name (equation 2)."""
        return replace(self, layers=tuple(layer.act(R[layer.name]) for layer in self.layers))

    @cached_property
    def _slots(self) -> tuple[Tensor, ...]:
        return tuple([slot for layer in self.layers for slot in layer.parametrisation.slots.values()])

    @cached_property
    def _ranges(self) -> dict[tuple[int, int], tuple[float, float]]:
        """The range when it was looked up last: of which object, after how many writes to its slots."""
        return {}

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest number of all slots, both NaN where one is; 0 where there is none. Looked up again
        once PyTorch has written to a slot; what NumPy writes there is seen by `check_finite` alone.
        """
        try:
            state = id(self), sum(slot._version for slot in self._slots)
        except RuntimeError:  # inference tensors, of which PyTorch counts no writes
            return _range(self._slots)
        if state not in self._ranges:
            self._ranges.clear()
            self._ranges[state] = _range(self._slots)
        return self._ranges[state]

    def check_finite(self) -> None:
        """Raises LoRAFormatError when a factor holds NaN or infinity."""
        self._ranges.clear()
        if not all(map(math.isfinite, self.range)):
            bad = [layer.name for layer in self.layers if not all(map(_finite, layer.parametrisation.slots.values()))]
            raise LoRAFormatError(
                f"{len(bad)} of {len(self.layers)} modules hold NaN or infinite weights, first {bad[0]}. The fine-tune"
                " diverged."
            )


def _finite(slots: Tensor) -> bool:
    """Told from the least and the largest number, at a twentieth of the time of `isfinite` on each."""
    return all(math.isfinite(bound) for bound in bounds(slots))


def _range(slots: Iterable[Tensor]) -> tuple[float, float]:
    alike: dict[tuple[object, ...], list[Tensor]] = defaultdict(list)
    for slot in slots:
        alike[slot.shape, slot.stride(), slot.dtype, slot.device].append(slot)
    parts = (stacked(same) if same[0].numel() < SMALL else same for same in alike.values())
    ends = [end for numbers in chain.from_iterable(parts) for end in bounds(numbers)]
    return (math.nan, math.nan) if any(map(math.isnan, ends)) else (min(ends, default=0.0), max(ends, default=0.0))
