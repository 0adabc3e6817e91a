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
BLOCK = 2**18
"""Entries of ΔW that exist at a time: a megabyte, which stays in the processor's cache."""


def kurtosis(U: Tensor, V: Tensor) -> Tensor:
    """Of the entries of each ΔW = U Vᵀ: fourth central moment over the squared variance, (B, L); 0 of a constant."""
    (*lead, n, _), m = U.shape, V.shape[-2]
    U, V = (factor / factor.abs().amax((-1, -2), keepdim=True).clamp(min=TINY) for factor in (U, V))
    mean = ((U.sum(-2) * V.sum(-2)).sum(-1) / (n * m))[..., None, None]
    modules = max(1, BLOCK // (n * m))
    parts = []
    for left, right, centre in zip(*(of.flatten(0, 1).split(modules) for of in (U, V, mean)), strict=True):
        second, fourth = U.new_zeros(len(left)), U.new_zeros(len(left))
        for rows in left.split(max(1, BLOCK // (len(left) * m)), -2):
            squares = (rows @ right.mT - centre).square()
            second += squares.sum((-1, -2))
            fourth += squares.square().sum((-1, -2))
        parts.append(n * m * fourth / second.square().clamp(min=TINY))
    return torch.cat(parts).view(lead)


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
