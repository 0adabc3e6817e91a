"""A LoRA as mathematics: per adapted module a pair (U, V), a scale, and nothing about files.

ΔW = s · U Vᵀ with U: (n, r), V: (m, r), in the paper's letters; n is the module's output and m its input dimension. In
PEFT's letters U = B and V = Aᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.header import Kind, ModuleHeader


@dataclass(frozen=True)
class LoRALayer:
    """One adapted module.

    U: (n, r) and V: (m, r) hold the numbers as the file stores them (any float dtype); `scale` is kept apart from them.
    alpha: the value in the file or its configuration, None if there is none.
    weight_shape: shape of the base weight that ΔW is added to; convolutions are flattened to (n, m) = (out, in·k·k)
    (paper 3.3.1). magnitude: DoRA's vector (appendix E), along the axis of the weight named by `magnitude_axis` ("n":
    one per output, "m": one per input). kind "kronecker": LoKr, whose ΔW = s · W₁ ⊗ W₂. U and V are vec(W₁) and
    vec(W₂), so r = 1 and the symmetry group is GL(1) (appendix E, KronA); `factor_shapes` holds the shapes of W₁ and
    W₂.
    """

    name: str
    U: Tensor
    V: Tensor
    scale: float = 1.0
    alpha: float | None = None
    kind: Kind = Kind.LINEAR
    weight_shape: tuple[int, ...] = ()
    magnitude: Tensor | None = None
    magnitude_axis: Literal["n", "m"] = "n"
    factor_shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        if self.U.ndim != 2 or self.V.ndim != 2 or self.U.shape[1] != self.V.shape[1]:
            raise LoRAFormatError(
                f"{self.name}: the factors do not fit together. Found U {tuple(self.U.shape)} and V"
                f" {tuple(self.V.shape)}; expected (n, r) and (m, r)."
            )
        if not self.weight_shape:
            object.__setattr__(self, "weight_shape", (self.n, self.m))

    @property
    def n(self) -> int:
        return self.U.shape[0]

    @property
    def m(self) -> int:
        return self.V.shape[0]

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @property
    def dtype(self) -> str:
        return str(self.U.dtype).removeprefix("torch.")

    @property
    def header(self) -> ModuleHeader:
        length = 0 if self.magnitude is None else self.magnitude.numel()
        axis = None if self.magnitude is None else 0 if self.magnitude_axis == "n" else 1
        factors = self.factor_shapes or ()
        return ModuleHeader(
            self.name, self.n, self.m, self.rank, length, self.kind, self.weight_shape, factors, magnitude_axis=axis
        )

    @property
    def parameters(self) -> int:
        return self.U.numel() + self.V.numel() + (0 if self.magnitude is None else self.magnitude.numel())

    def folded(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(U, V) with √|s| in each factor and the sign of s in U, so that U Vᵀ is the whole update (for "kronecker",
        its rearrangement).
        """
        root = abs(self.scale) ** 0.5
        return self.U.to(dtype) * (root if self.scale >= 0 else -root), self.V.to(dtype) * root

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW in the shape of the base weight. Forms the n × m matrix: for looking at one module, not for learning."""
        if self.factor_shapes is not None:
            first, second = (
                t.reshape(shape)
                for t, shape in zip((self.U.to(dtype), self.V.to(dtype)), self.factor_shapes, strict=True)
            )
            first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
            return self.scale * torch.kron(first, second).reshape(self.weight_shape)
        U, V = self.folded(dtype)
        return (U @ V.T).reshape(self.weight_shape)

    def merge(self, weight: Tensor) -> Tensor:
        """The fine-tuned weight: W + ΔW, or for DoRA m ∘ (W + ΔW)/‖W + ΔW‖ along the magnitude's axis (equation 39)."""
        merged = weight + self.delta(weight.dtype).to(weight.device)
        if self.magnitude is None:
            return merged
        axis = 0 if self.magnitude_axis == "n" else 1
        others = [d for d in range(merged.ndim) if d != axis]
        shape = [-1 if d == axis else 1 for d in range(merged.ndim)]
        return (
            merged
            / torch.linalg.vector_norm(merged, dim=others, keepdim=True)
            * self.magnitude.to(weight).reshape(shape)
        )

    def act(self, R: Tensor) -> LoRALayer:
        """(UR, VR⁻ᵀ), the same function (paper, section 2). R: (r, r), invertible; computed in R's dtype."""
        U, V = self.U.to(R.dtype), self.V.to(R.dtype)
        return replace(self, U=U @ R, V=torch.linalg.solve(R, V.T).T)


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

    def __getitem__(self, name: str) -> LoRALayer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

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

    def act(self, R: Mapping[str, Tensor]) -> LoRA:
        """R ⋆ (U, V) with one R: (r, r) for each module name (equation 2)."""
        return replace(self, layers=tuple(layer.act(R[layer.name]) for layer in self.layers))

    def check_finite(self) -> None:
        """Raises LoRAFormatError when a factor holds NaN or infinity."""
        bad = [
            layer.name
            for layer in self.layers
            if not (torch.isfinite(layer.U.float()).all() and torch.isfinite(layer.V.float()).all())
        ]
        if bad:
            raise LoRAFormatError(
                f"{len(bad)} of {len(self.layers)} modules hold NaN or infinite weights, first {bad[0]}. The fine-tune"
                " diverged."
            )


def flattened(weight_shape: tuple[int, ...]) -> tuple[int, int]:
    """(n, m) of a base weight: all dimensions but the first are flattened."""
    return weight_shape[0], prod(weight_shape[1:])
