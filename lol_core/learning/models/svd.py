"""MLP + SVD: the singular values of every U Vᵀ (section 3.2). Invariant under GL(r), not expressive."""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.core.geometry import singular_values
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel
from lol_core.learning.models.registry import register


def spectra(batch: Batch, count: int) -> Tensor:
    """The `count` largest singular values of every module, descending, in the order of the groups: (B, L, count).

    Values beyond `count` are dropped, missing ones are zero (section 5.4).
    """
    parts = []
    for U, V in zip(batch.U, batch.V, strict=True):
        values = singular_values(U, V)[..., :count]
        parts.append(torch.nn.functional.pad(values, (0, count - values.shape[-1])))
    return torch.cat(parts, 1)


@register("svd")
class SVD(LoLModel):
    """Takes any rank: values beyond the rank it was made for are dropped, missing ones are zero (section 5.4)."""

    title = "MLP + SVD"
    symmetry = GL
    any_rank = True

    def n_features(self) -> int:
        return len(self.spec.modules) * self.spec.rank

    def features(self, batch: Batch) -> Tensor:
        return spectra(batch, self.spec.rank).flatten(1)
