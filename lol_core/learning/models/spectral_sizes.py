"""Spectral sizes: logarithms of norms and shares of the energy of every module, read linearly. A variant of the
statistics by which backdoors are detected (`spectral`), from singular values alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.registry import register
from lol_core.learning.models.svd import spectra

STATISTICS = 5
TINY = torch.finfo(torch.float32).tiny


def statistics(values: Tensor) -> Tensor:
    """Of singular values (…, r): log ‖ΔW‖ (Frobenius), log σ₁, the share σ₁² / Σσ² of the first, the entropy of these
    shares, log nuclear norm: (…, 5).
    """
    energy = values.square()
    share = energy / energy.sum(-1, keepdim=True).clamp(min=TINY)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    logs = [part.clamp(min=TINY).log() for part in (energy.sum(-1).sqrt(), values.amax(-1), values.sum(-1))]
    return torch.stack([logs[0], logs[1], share.amax(-1), entropy, logs[2]], -1)


@register("spectral_sizes")
class SpectralSizes(LoLModel):
    """Statistics standardised by the training LoRAs; no hidden layer: logistic or linear regression."""

    title = "Spectral sizes"
    symmetry = GL
    any_rank = True
    kept_features = True
    searched = ({"normalize": False},)
    linear = True

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        self.register_buffer("mean", torch.zeros(self.n_features()))
        self.register_buffer("std", torch.ones(self.n_features()))

    def n_features(self) -> int:
        return len(self.spec.modules) * STATISTICS

    @torch.no_grad()
    def prepare(self, sample: Batch, generator: torch.Generator) -> None:
        super().prepare(sample, generator)
        values = self._statistics(self.normalized(sample))
        self.get_buffer("mean").copy_(values.mean(0))
        self.get_buffer("std").copy_(values.std(0, correction=0).clamp(min=1e-6))

    def features(self, batch: Batch) -> Tensor:
        return (self._statistics(batch) - self.get_buffer("mean")) / self.get_buffer("std")

    def _statistics(self, batch: Batch) -> Tensor:
        return statistics(spectra(batch, self.spec.rank)).flatten(1)
