"""MVProbe and ProbeX: what many learned vectors answer of one module's ΔW, seen through ΔW u, ΔW ΔWᵀ u, ΔWᵀ u and
ΔWᵀ ΔW u, or the first of them alone (arXiv 2605.23410, after ProbeX, CVPR 2025). Ported from probex.py of
github.com/AI-hew-math/MVProbe; exactly, from the factors, without ΔW.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.learning.models.apart import ApartConfig, ApartModel
from lol_core.learning.models.registry import register
from lol_core.learning.models.wide import WideLinear


@dataclass(frozen=True)
class ProbeConfig(ApartConfig):
    """place: of the one module that is read, from the first (0) to the last (1); the authors try every layer. width: of
    the representation.
    """

    width: int = 512
    probes: int = 128
    encoding: int = 128
    place: float = 0.5


class Branch(nn.Module):
    """Answers of one view, encoded: ReLU(W S), S (d, probes) standardised by its own mean and deviation over all
    entries. S = left · C with C of r rows, so that neither ΔW nor S is formed.
    """

    def __init__(self, d: int, other: int, config: ProbeConfig, second: bool, *, standardise: bool):
        super().__init__()
        bound = config.probes**-0.5
        seen = d if second else other
        self.probes = nn.Parameter(torch.empty(seen, config.probes).uniform_(-bound, bound))
        self.encoder = nn.Linear(d, config.encoding, bias=False)
        self.second, self.standardise = second, standardise

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """left (B, d, r) and right (B, d′, r) of X = left rightᵀ: X P, or X Xᵀ P. → (B, encoding · probes)."""
        answers = self._core(left, right)
        encoded = self.encoder.weight @ left @ answers.to(left)
        if self.standardise:
            mean, std = moments(left, answers)
            ones = self.encoder.weight.sum(1)[:, None]
            encoded = (encoded - mean.to(left) * ones) / (std.to(left) + 1e-8)
        return encoded.relu().mT.flatten(1)

    def _core(self, left: Tensor, right: Tensor) -> Tensor:
        """C: (B, r, probes), in float64, since κ(R)² stands in it."""
        probes = self.probes.double()
        if not self.second:
            return right.double().mT @ probes
        return (right.double().mT @ right.double()) @ (left.double().mT @ probes)


def moments(left: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation of all entries of left · core, (B, 1, 1) each."""
    count = left.shape[-2] * core.shape[-1]
    wide = left.double()
    total = (wide.sum(-2) * core.sum(-1)).sum(-1)
    squares = ((wide.mT @ wide) * (core @ core.mT)).sum((-1, -2))
    mean = total / count
    variance = (squares - count * mean.square()) / max(1, count - 1)
    variance = variance.clamp(min=torch.finfo(variance.dtype).tiny)  # the root of 0 has no gradient
    return mean[:, None, None], variance.sqrt()[:, None, None]


class Representation(nn.Module):
    """One linear layer to the representation and one to the outputs, nothing between them."""

    def __init__(self, features: int, outputs: int, width: int):
        super().__init__()
        self.latent = WideLinear(features, width)
        self.out = nn.Linear(width, outputs)


@register("mvprobe")
class MVProbe(ApartModel):
    """Sees a module up to its size: X and c X (c > 0) look the same."""

    Config = ProbeConfig
    config: ProbeConfig
    title = "MVProbe"
    symmetry = GL
    any_rank = True
    learnt_features = True
    branches = 4
    standardise = True
    searched = ({"normalize": False},)

    def __init__(self, spec: WeightSpec, outputs: int, config: ProbeConfig):
        super().__init__(spec, outputs, config)
        index = round(config.place * (len(spec.modules) - 1))
        self.group, self.inside = next(
            (g, indices.index(index)) for g, (_, indices) in enumerate(spec.groups) if index in indices
        )
        n, m = spec.groups[self.group][0]
        kinds = [(n, m, False), (n, m, True), (m, n, False), (m, n, True)][: self.branches]
        self.views = nn.ModuleList(
            Branch(d, other, config, second, standardise=self.standardise) for d, other, second in kinds
        )

    def make_head(self, features: int, outputs: int) -> nn.Module:
        return Representation(features, outputs, self.config.width)

    def n_features(self) -> int:
        return self.branches * self.config.probes * self.config.encoding

    def features(self, batch: Batch) -> Tensor:
        U, V = batch.U[self.group][:, self.inside], batch.V[self.group][:, self.inside]
        pairs = [(U, V), (U, V), (V, U), (V, U)][: self.branches]
        return torch.cat([view(*pair) for view, pair in zip(self.views, pairs, strict=True)], 1)


@register("probex")
class ProbeX(MVProbe):
    """The first view alone, not standardised, so that it sees sizes (CVPR 2025, arXiv 2410.13569)."""

    title = "ProbeX"
    branches = 1
    standardise = False
