"""Size apart from direction, as TuckerNet has it, for models that read the two together: GL-net, W2T and MVProbe. Ours,
and in none of the published models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.layers import Head, squared_norm


class Apart(StrEnum):
    """What is added to a model."""

    UNIT_NORM = "unit norm"
    """Every ΔW is divided by its norm before anything reads it."""
    LOG_SIZES = "log sizes"
    """log ‖ΔW‖ of every module goes to an MLP of its own, added to the outputs."""
    LINEAR_SKIP = "linear skip"
    """All that the heads read goes to the outputs linearly too."""


@dataclass(frozen=True)
class ApartConfig(ModelConfig):
    """apart: what is added to the model as published."""

    apart: frozenset[Apart] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without `apart` where nothing is added: earlier descriptions name none."""
        rest = {name: value for name, value in super().to_dict().items() if name != "apart"}
        return rest | ({"apart": sorted(self.apart)} if self.apart else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return super().from_dict({**data, "apart": frozenset(map(Apart, data.get("apart", ())))})


class BranchedHead(nn.Module):
    """The model's own head, an MLP of the sizes and a linear map, whose outputs are added; the last two give a constant
    at the start.

    Features: those of the own head, then the sizes. `latent`: the own head's, the MLP's, and what the linear map adds.
    """

    def __init__(self, own: nn.Module, features: int, sizes: int, outputs: int, *, config: ApartConfig):
        super().__init__()
        self.own: Any = own
        self.of_sizes: Any = Head(sizes, outputs, config.width, 1, dropout=config.dropout) if sizes else None
        self.parts = [features, sizes]
        skips = Apart.LINEAR_SKIP in config.apart
        self.linear = nn.Linear(features + sizes, outputs, bias=False) if skips else None
        self.widths = [config.width, config.width if sizes else 0, outputs if skips else 0]
        for last in (self.linear, *([] if self.of_sizes is None else self.of_sizes.out)):
            if isinstance(last, nn.Linear):
                nn.init.zeros_(last.weight)

    def latent(self, features: Tensor) -> Tensor:
        own, sizes = features.split(self.parts, 1)
        latent = [self.own.latent(own)]
        latent += [] if self.of_sizes is None else [self.of_sizes.latent(sizes)]
        latent += [] if self.linear is None else [self.linear(features)]
        return torch.cat(latent, 1)

    def out(self, latent: Tensor) -> Tensor:
        own, of_sizes, linear = latent.split(self.widths, 1)
        outputs: Tensor = self.own.out(own)
        if self.of_sizes is not None:
            outputs = outputs + self.of_sizes.out(of_sizes)
        return outputs if self.linear is None else outputs + linear


class ApartModel(LoLModel):
    """A model to which `Apart` can be added."""

    Config = ApartConfig
    config: ApartConfig

    def __init__(self, spec: WeightSpec, outputs: int, config: ApartConfig):
        super().__init__(spec, outputs, config)
        sizes = len(spec.modules) if Apart.LOG_SIZES in config.apart else 0
        if sizes or Apart.LINEAR_SKIP in config.apart:
            features = self.n_features() + spec.magnitudes
            self.head = BranchedHead(self.head, features, sizes, outputs, config=config)
        if sizes:
            self.register_buffer("size_mean", torch.zeros(sizes))
            self.register_buffer("size_std", torch.ones(sizes))

    @torch.no_grad()
    def prepare(self, sample: Batch, generator: torch.Generator) -> None:
        super().prepare(sample, generator)
        if Apart.LOG_SIZES in self.config.apart:
            sizes = log_sizes(sample)
            self.get_buffer("size_mean").copy_(sizes.mean(0))
            self.get_buffer("size_std").copy_(sizes.std(0, correction=0).clamp(min=1e-6))

    def normalized(self, batch: Batch) -> Batch:
        batch = super().normalized(batch)
        return of_unit_norm(batch) if Apart.UNIT_NORM in self.config.apart else batch

    def described(self, batch: Batch) -> Tensor:
        described = super().described(batch)
        if Apart.LOG_SIZES not in self.config.apart:
            return described
        sizes = (log_sizes(batch) - self.get_buffer("size_mean")) / self.get_buffer("size_std")
        return torch.cat([described, sizes.to(described)], 1)


def log_sizes(batch: Batch) -> Tensor:
    """log ‖ΔW‖ of every module, in the order of the groups: (B, L). A ΔW of zero counts as the smallest float."""
    squares = torch.cat([squared_norm(U, V) for U, V in zip(batch.U, batch.V, strict=True)], 1)
    return squares.clamp(min=torch.finfo(torch.float32).tiny ** 2).log() / 2


def of_unit_norm(batch: Batch) -> Batch:
    """Every ΔW divided by its Frobenius norm, half of it on either side; one of zero as it is."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for U, V in zip(batch.U, batch.V, strict=True):
        squares = squared_norm(U, V)[..., None, None]
        scale = torch.where(squares > 0, squares, 1.0).pow(-0.25)
        for side, factor in zip(sides, (U, V), strict=True):
            side.append(factor * scale.to(factor))
    return replace(batch, U=tuple(sides[0]), V=tuple(sides[1]))
