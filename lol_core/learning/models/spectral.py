"""Spectral statistics and a linear classifier: how backdoors in adapters are detected from their weights (arXiv
2602.15195, no code of the authors found). Of all modules: the paper takes a layer that it does not name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.learning.models.modulewise import grams
from lol_core.learning.models.registry import register
from lol_core.learning.models.spectral_sizes import SpectralSizes
from lol_core.learning.models.svd import spectra

TINY = torch.finfo(torch.float32).tiny
BLOCK = 2**24
"""Entries of ΔW that exist at a time."""
PASSES = 20
"""Multiplications of a Gram matrix that take as long as an entry of ΔW does, made and raised to its fourth power."""
ROUNDING = 1e-12
"""Share of ‖ΔW‖² below which what is left without the mean is rounding."""


def kurtosis(U: Tensor, V: Tensor) -> Tensor:
    """Of the entries of each ΔW = U Vᵀ: fourth central moment over the squared variance, (B, L); 0 of a constant."""
    n, m, dtype = U.shape[-2], V.shape[-2], U.dtype
    U, V = (factor.double() / factor.abs().amax((-1, -2), keepdim=True).clamp(min=TINY) for factor in (U, V))
    mean = ((U.sum(-2) * V.sum(-2)).sum(-1) / (n * m))[..., None, None]
    whole = _sum_of_squares(U, V)
    U, V = torch.cat([U, -mean.expand(*U.shape[:-1], 1)], -1), torch.cat([V, torch.ones_like(V[..., :1])], -1)
    second, pairs = _sum_of_squares(U, V), U.shape[-1] * (U.shape[-1] + 1) // 2
    if (n + m) * pairs**2 < PASSES * n * m:
        fourth = _sum_of_squares(_pairs(U), _pairs(V))
    else:
        fourth = torch.zeros_like(second)
        for rows in U.to(dtype).split(max(1, BLOCK // (second.numel() * m)), -2):
            fourth += (rows @ V.to(dtype).mT).square().square().sum((-1, -2))
    return torch.where(second > ROUNDING * whole, n * m * fourth / second.square(), 0).to(dtype)


def _sum_of_squares(U: Tensor, V: Tensor) -> Tensor:
    """‖U Vᵀ‖² = ⟨UᵀU, VᵀV⟩, (B, L)."""
    left, right = grams(U, V)
    return (left * right).sum((-1, -2))


def _pairs(factor: Tensor) -> Tensor:
    """Products of its columns i ≤ j, (…, n, r) → (…, n, r (r + 1) / 2), those of i < j by √2: of U and of V they are
    the factors of the entries' squares.
    """
    i, j = torch.triu_indices(factor.shape[-1], factor.shape[-1])
    return factor[..., i] * factor[..., j] * torch.where(i == j, 1.0, 2**0.5).to(factor)


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
