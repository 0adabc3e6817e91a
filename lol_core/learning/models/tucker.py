"""TuckerNet: what varies most among the invariants of first and second order of ΔW's direction, read linearly, and an
MLP over its sizes. Our own model.

With D = ΔW / ‖ΔW‖ of a module and Φ, Ψ the leading left and right singular directions of the training LoRAs' D (a
Tucker decomposition, HOSVD), its invariants are Φᵀ D Ψ, Φᵀ D Dᵀ Φ and Ψᵀ Dᵀ D Ψ. The prediction is linear in those that
vary most, plus an MLP of the logarithms of ‖ΔW‖ and of the singular values. All of it is a function of ΔW alone, hence
the same for (U, V) and (UR, VR⁻ᵀ).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.geometry import triangular
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.directions import leading_directions
from lol_core.learning.models.layers import Head
from lol_core.learning.models.modulewise import left_product
from lol_core.learning.models.registry import register

BASIS = 48
"""Directions kept on each side of a module."""
KEPT = 512
"""Invariants of a module that the linear part reads: those that vary most over the training LoRAs."""
INPUT_DROPOUT = 0.5
LOW_WEIGHT = 0.1
"""The weight of the directions that a search tries beside 1."""
SMALLEST = 1e-4
"""Singular values below this share of ‖ΔW‖ count as this share: what is smaller is rounding, or the padding of a
smaller rank.
"""


class Part(StrEnum):
    """What an ablation may leave out."""

    SECOND_ORDER = "second order"
    FIRST_ORDER = "first order"
    SIZES = "sizes"
    UNIT_NORM = "unit norm"
    TRAINING_BASIS = "training basis"
    LINEAR_READING = "linear reading"


@dataclass(frozen=True)
class TuckerConfig(ModelConfig):
    """direction_weight: by what the directions are multiplied; less makes their reading slower to fit. parts: all but
    those that an ablation leaves out.
    """

    direction_weight: float = 1.0
    parts: frozenset[Part] = frozenset(Part)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"parts": sorted(self.parts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        without = {Part(data["without"])} if data.get("without") else set()
        parts = frozenset(map(Part, data.get("parts", Part))) - without
        return cls(**cls.known(data) | {"parts": parts})


class SeparateHead(nn.Module):
    """Linear in everything, plus an MLP of the sizes alone. `latent`: the linear part's value for each output, then the
    MLP's last hidden layer.
    """

    def __init__(self, directions: int, sizes: int, outputs: int, config: ModelConfig):
        super().__init__()
        self.sizes, self.outputs = sizes, outputs
        self.drop = nn.Dropout(INPUT_DROPOUT)
        self.linear = nn.Linear(directions + sizes, outputs)
        nn.init.zeros_(self.linear.weight)
        self.of_sizes = Head(sizes, outputs, config.width // 2, config.depth, dropout=config.dropout) if sizes else None
        if self.of_sizes is not None:
            last = self.of_sizes.out[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)

    def latent(self, features: Tensor) -> Tensor:
        linear = self.linear(self.drop(features))
        return (
            linear
            if self.of_sizes is None
            else torch.cat([linear, self.of_sizes.latent(features[:, -self.sizes :])], 1)
        )

    def out(self, latent: Tensor) -> Tensor:
        linear = latent[:, : self.outputs]
        return linear if self.of_sizes is None else linear + self.of_sizes.out(latent[:, self.outputs :])


@register("tucker")
class TuckerNet(LoLModel):
    Config = TuckerConfig
    config: TuckerConfig
    title = "TuckerNet"
    symmetry = GL
    any_rank = True
    kept_features = True
    searched = ({"normalize": False}, {"normalize": False, "direction_weight": LOW_WEIGHT})

    def __init__(self, spec: WeightSpec, outputs: int, config: TuckerConfig):
        super().__init__(spec, outputs, config)
        for g, ((n, m), indices) in enumerate(spec.groups):
            for side, size in (("left", n), ("right", m)):
                eye = torch.zeros(size, self._width(size)).fill_diagonal_(1)
                self.register_buffer(f"{side}_{g}", eye.repeat(len(indices), 1, 1))
            self.register_buffer(f"chosen_{g}", torch.arange(self._kept(n, m)).repeat(len(indices), 1))
            self.register_buffer(f"center_{g}", torch.zeros(len(indices), self._kept(n, m)))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("size_mean", torch.zeros(self._sizes))
        self.register_buffer("size_std", torch.ones(self._sizes))

    def make_head(self, features: int, outputs: int) -> nn.Module:
        if Part.LINEAR_READING not in self.config.parts:
            return Head(features, outputs, self.config.width // 2, self.config.depth, dropout=self.config.dropout)
        directions = self.n_features() - self._sizes
        return SeparateHead(directions, features - directions, outputs, self.config)

    def n_features(self) -> int:
        return sum(len(indices) * self._kept(n, m) for (n, m), indices in self.spec.groups) + self._sizes

    @property
    def _sizes(self) -> int:
        return 0 if Part.SIZES not in self.config.parts else len(self.spec.modules) * (self.spec.rank + 1)

    @staticmethod
    def _width(size: int) -> int:
        return min(BASIS, size)

    def _kept(self, n: int, m: int) -> int:
        a, b = self._width(n), self._width(m)
        first, second = a * b, (a * (a + 1) + b * (b + 1)) // 2
        parts = self.config.parts
        return min(KEPT, first * (Part.FIRST_ORDER in parts) + second * (Part.SECOND_ORDER in parts))

    @torch.no_grad()
    def prepare(self, sample: Batch, generator: torch.Generator) -> None:
        """Bases, the choice of invariants and their scales, all from training LoRAs and without their labels."""
        super().prepare(sample, generator)
        batch = self.normalized(sample)
        variances, spectra = [], []
        for g, (U, V) in enumerate(zip(batch.U, batch.V, strict=True)):
            R_U, R_V, values = _small(U, V)
            spectra.append(self._sizes_of(values))
            scale = self._scale(values)[..., None, None]
            for side, factor, other in (("left", U, R_V), ("right", V, R_U)):
                basis = self.get_buffer(f"{side}_{g}")
                columns = (factor @ other.mT / scale).permute(1, 2, 0, 3).flatten(2).double()
                if Part.TRAINING_BASIS not in self.config.parts:
                    columns = torch.randn(columns.shape, generator=generator, dtype=columns.dtype)
                basis.copy_(leading_directions(columns, basis.shape[-1]))
            invariants = self._invariants(g, U, V, R_U, R_V=R_V, values=values)
            chosen = self.get_buffer(f"chosen_{g}")
            chosen.copy_(invariants.var(0, correction=0).topk(chosen.shape[1], dim=1).indices.sort(1).values)
            kept = invariants.gather(2, chosen.expand(len(invariants), -1, -1))
            self.get_buffer(f"center_{g}").copy_(kept.mean(0))
            variances.append(kept.var(0, correction=0).flatten())
        self.get_buffer("spread").copy_(torch.cat(variances).mean().sqrt().clamp(min=1e-12))
        if self._sizes:
            sizes = torch.cat(spectra, 1)
            self.get_buffer("size_mean").copy_(sizes.mean(0))
            self.get_buffer("size_std").copy_(sizes.std(0, correction=0).clamp(min=1e-6))

    def features(self, batch: Batch) -> Tensor:
        parts, spectra = [], []
        for g, (U, V) in enumerate(zip(batch.U, batch.V, strict=True)):
            R_U, R_V, values = _small(U, V)
            spectra.append(self._sizes_of(values))
            invariants = self._invariants(g, U, V, R_U, R_V=R_V, values=values)
            kept = invariants.gather(2, self.get_buffer(f"chosen_{g}").expand(len(invariants), -1, -1))
            parts.append(
                (
                    self.config.direction_weight * (kept - self.get_buffer(f"center_{g}")) / self.get_buffer("spread")
                ).flatten(1)
            )
        if self._sizes:
            parts.append((torch.cat(spectra, 1) - self.get_buffer("size_mean")) / self.get_buffer("size_std"))
        return torch.cat(parts, 1)

    def _scale(self, values: Tensor) -> Tensor:
        """‖ΔW‖ of each module, by which it is divided: (B, L)."""
        norm = values.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        return torch.ones_like(norm) if Part.UNIT_NORM not in self.config.parts else norm

    def _invariants(self, g: int, U: Tensor, V: Tensor, R_U: Tensor, *, R_V: Tensor, values: Tensor) -> Tensor:
        """Φᵀ D Ψ, Φᵀ D Dᵀ Φ and Ψᵀ Dᵀ D Ψ of D = ΔW / ‖ΔW‖, the symmetric ones by their upper triangles (off the
        diagonal times √2): (B, L, k).
        """
        scale = self._scale(values)[..., None, None]
        left = left_product(self.get_buffer(f"left_{g}").mT, U)
        right = left_product(self.get_buffer(f"right_{g}").mT, V)
        parts = [] if Part.FIRST_ORDER not in self.config.parts else [(left @ right.mT / scale).flatten(2)]
        if Part.SECOND_ORDER in self.config.parts:
            parts += [_symmetric(left @ R_V.mT / scale), _symmetric(right @ R_U.mT / scale)]
        return torch.cat(parts, 2)

    def _sizes_of(self, values: Tensor) -> Tensor:
        """log ‖ΔW‖ and log σ_k / ‖ΔW‖ from the singular values of a group's modules: (B, L, r) → (B, L (rank + 1))."""
        values = values[..., : self.spec.rank]
        norm = values.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        values = torch.nn.functional.pad(values, (0, self.spec.rank - values.shape[-1]))
        return torch.cat([norm.log(), (values / norm).clamp(min=SMALLEST).log()], -1).flatten(1)


def _small(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R_U and R_V of the QR of both factors, and the singular values of U Vᵀ, which are those of R_U R_Vᵀ."""
    R_U, R_V = (triangular(factor) for factor in (U, V))
    return R_U, R_V, torch.linalg.svdvals(R_U @ R_V.mT)


def _symmetric(half: Tensor) -> Tensor:
    """The upper triangle of H Hᵀ for H (…, w, r): (…, w (w + 1) / 2), off the diagonal times √2, so that norms are
    kept.
    """
    width = half.shape[-2]
    i, j = torch.triu_indices(width, width, device=half.device)
    weight = torch.where(i == j, 1.0, 2**0.5).to(half)
    return (half @ half.mT)[..., i, j] * weight
