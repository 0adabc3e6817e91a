"""Spectral statistics and a linear classifier: how backdoors in adapters are detected from their weights (arXiv
2602.15195, no code of the authors found). Of all modules: the paper takes a layer that it does not name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.learning.models.registry import register
from lol_core.learning.models.spectral_sizes import SpectralSizes
from lol_core.learning.models.svd import spectra

TINY = torch.finfo(torch.float32).tiny
BLOCK = 2**24
"""Entries of ΔW that exist at a time."""


def kurtosis(U: Tensor, V: Tensor) -> Tensor:
    """Of the entries of each ΔW = U Vᵀ: fourth central moment over the squared variance, (B, L); 0 of a constant."""
    (B, L, n, _), m = U.shape, V.shape[-2]
    U, V = (factor / factor.abs().amax((-1, -2), keepdim=True).clamp(min=TINY) for factor in (U, V))
    mean = ((U.sum(-2) * V.sum(-2)).sum(-1) / (n * m))[..., None, None]
    second, fourth = U.new_zeros(B, L), U.new_zeros(B, L)
    for rows in U.split(max(1, BLOCK // (B * L * m)), -2):
        squares = (rows @ V.mT - mean).square()
        second += squares.sum((-1, -2))
        fourth += squares.square().sum((-1, -2))
    return n * m * fourth / second.square().clamp(min=TINY)


def statistics(values: Tensor) -> Tensor:
    """Of singular values (…, r): σ₁, ‖ΔW‖ (Frobenius), σ₁ / Σσ and the entropy of σ / Σσ: (…, 4)."""
    share = values / values.sum(-1, keepdim=True).clamp(min=TINY)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.stack([values.amax(-1), values.norm(dim=-1), share.amax(-1), entropy], -1)


@register("spectral")
class Spectral(SpectralSizes):
    """σ₁, norm, energy concentration, entropy and kurtosis of every module, standardised by the training LoRAs;
    logistic or linear regression. The regulariser is not stated; weight decay is searched.
    """

    title = "Spectral statistics"
    searched = ({"normalize": False, "dropout": 0.0},)

    def _statistics(self, batch: Batch) -> Tensor:
        of_entries = torch.cat([kurtosis(U, V) for U, V in zip(batch.U, batch.V, strict=True)], 1)
        return torch.cat([statistics(spectra(batch, self.spec.rank)), of_entries[..., None]], -1).flatten(1)
