"""MLP + Dense: the multiplied-out U Vᵀ of every module (section 3.2). Invariant under GL(r), universal, and large: Σ
n·m inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel
from lol_core.learning.models.registry import register


@register("dense")
class Dense(LoLModel):
    title = "MLP + Dense"
    symmetry = GL
    any_rank = True

    def n_features(self) -> int:
        return sum(module.n * module.m for module in self.spec.modules)

    def features(self, batch: Batch) -> Tensor:
        return torch.cat([(U @ V.mT).flatten(1) for U, V in zip(batch.U, batch.V, strict=True)], 1)
