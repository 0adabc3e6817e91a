"""DSiRe: the singular values of A, of B and of BA of each module, and the nearest known LoRA in each (Dataset Size
Recovery from LoRA Weights, arXiv 2406.19395). Ported from dsire.py of github.com/MoSalama98/DSiRe.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.core.geometry import triangular
from lol_core.core.groups import O
from lol_core.learning.models.nearest_spectra import NearestSpectra
from lol_core.learning.models.registry import register
from lol_core.learning.models.svd import spectra


@register("dsire")
class DSiRe(NearestSpectra):
    """Each matrix votes with the answer of its nearest training LoRA (Euclidean); of classes the one with most votes
    wins, which is where the mean of the answers is largest. Numbers are not asked in the paper; they are the mean.

    Their one minimum and maximum over all matrices, by which everything is scaled, changes no nearest neighbour. The
    spectra of A and B change under GL(r) and not under O(r).
    """

    title = "DSiRe"
    symmetry = O
    voters = 3

    def spectra(self, batch: Batch) -> Tensor:
        factors = []
        for side in (batch.V, batch.U):  # A, B
            values = [torch.linalg.svdvals(triangular(factor))[..., : self.spec.rank] for factor in side]
            missing = [self.spec.rank - each.shape[-1] for each in values]
            padded = [torch.nn.functional.pad(each, (0, k)) for each, k in zip(values, missing, strict=True)]
            factors.append(torch.cat(padded, 1))
        return torch.cat([*factors, spectra(batch, self.spec.rank)], 1)
