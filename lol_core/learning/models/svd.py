"""MLP + SVD: the singular values of every U Vᵀ (section 3.2). Invariant under GL(r), not expressive."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.core.geometry import singular_values, singular_values_of_grams
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel
from lol_core.learning.models.modulewise import grams
from lol_core.learning.models.registry import register


def spectra(batch: Batch, count: int) -> Tensor:
    """The `count` largest singular values of every module, descending, in the order of the groups: (B, L, count).

    Values beyond `count` are dropped, missing ones are zero (section 5.4).
    """
    parts = []
    for values in _singular_values(batch):
        parts.append(torch.nn.functional.pad(values[..., :count], (0, max(0, count - values.shape[-1]))))
    return torch.cat(parts, 1)


def _singular_values(batch: Batch) -> Iterator[Tensor]:
    """`singular_values` of each group; of float32 on a processor by Gram matrices, which are faster and more exact, but
    whose roots have no gradient at zero.
    """
    factors = [*batch.U, *batch.V]
    learning = torch.is_grad_enabled() and any(of.requires_grad for of in factors)
    if batch.dtype != torch.float32 or batch.device.type != "cpu" or learning:
        yield from map(singular_values, batch.U, batch.V)
        return
    squares = grams(*(of.detach() for of in factors))
    half = len(batch.U)
    for U, V, G_U, G_V in zip(batch.U, batch.V, squares[:half], squares[half:], strict=True):
        yield singular_values_of_grams(G_U, G_V).float()[..., : min(*U.shape[-2:], V.shape[-2])]


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
