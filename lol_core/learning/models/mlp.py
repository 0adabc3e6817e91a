"""MLP: the flattened factors (section 3.2). No symmetry."""

from __future__ import annotations

from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.learning.models.base import LoLModel, flat_factors
from lol_core.learning.models.registry import register


@register("mlp")
class MLP(LoLModel):
    title = "MLP"
    symmetry = None
    any_rank = False

    def n_features(self) -> int:
        return self.spec.parameters

    def features(self, batch: Batch) -> Tensor:
        return flat_factors(batch)
