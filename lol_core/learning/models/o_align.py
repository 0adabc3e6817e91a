"""MLP + O-Align: the factors rotated onto templates before an MLP (section 3.2, equation 3). Invariant under O(r), not
under GL(r).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import O
from lol_core.errors import ModelError
from lol_core.learning.models.base import LoLModel, ModelConfig, flat_memory, flat_places
from lol_core.learning.models.modulewise import product
from lol_core.learning.models.registry import register


def procrustes(U: Tensor, V: Tensor, template_U: Tensor, template_V: Tensor) -> Tensor:
    """Q ∈ O(r) that minimises ‖UQ − 𝐔‖² + ‖VQ − 𝐕‖² (equation 3): (…, r, r)."""
    return orthogonal_factor(U.mT @ template_U + V.mT @ template_V)


def orthogonal_factor(M: Tensor) -> Tensor:
    """The orthogonal matrix nearest to M = A Σ Bᵀ, A Bᵀ: (…, r, r). Raises ModelError where M is not finite."""
    if not M.isfinite().all():
        raise ModelError(
            "Factors are turned onto a template by their products with it, which are not all finite in"
            f" {M.dtype}: the weights are too large."
        )
    A, _, Bh = torch.linalg.svd(M)
    return A @ Bh


@register("o_align")
class OAlign(LoLModel):
    title = "MLP + O-Align"
    symmetry = O
    any_rank = False

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        for g, ((n, m), indices) in enumerate(spec.groups):
            self.register_buffer(f"template_U_{g}", torch.zeros(len(indices), n, spec.rank))
            self.register_buffer(f"template_V_{g}", torch.zeros(len(indices), m, spec.rank))

    def n_features(self) -> int:
        return self.spec.parameters

    @torch.no_grad()
    def prepare(self, sample: Batch, generator: torch.Generator) -> None:
        """The templates are the factors of one training LoRA chosen at random, as in the paper's experiments."""
        super().prepare(sample, generator)
        chosen = self.normalized(sample[torch.randint(len(sample), (1,), generator=generator)])
        for g in range(len(self.spec.groups)):
            self.get_buffer(f"template_U_{g}").copy_(chosen.U[g][0])
            self.get_buffer(f"template_V_{g}").copy_(chosen.V[g][0])

    def features(self, batch: Batch) -> Tensor:
        flat = flat_memory(batch)
        for g, (places, *sides) in enumerate(zip(flat_places(batch.spec), batch.U, batch.V, strict=True)):
            templates = self.get_buffer(f"template_U_{g}"), self.get_buffer(f"template_V_{g}")
            Q = orthogonal_factor(product(sides[0].mT, templates[0]) + product(sides[1].mT, templates[1]))
            for side, factors in enumerate(sides):
                for place in places:
                    turned = Q[:, place.modules, :, : place.rank]
                    product(factors[:, place.modules], turned, out=place.within(flat, side))
        return flat
