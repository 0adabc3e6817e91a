"""DSiRe: the singular values of each module, and the nearest known LoRA in each (Dataset Size Recovery from LoRA
Weights, arXiv 2406.19395).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.registry import register
from lol_core.learning.models.svd import spectra


@register("dsire")
class DSiRe(LoLModel):
    """Each module votes with the answer of its nearest training LoRA; the prediction is their mean. Nothing is
    fitted.
    """

    title = "DSiRe"
    symmetry = GL
    any_rank = True
    memorizes = True
    searched = ({"normalize": False},)

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        self.known: Tensor
        self.answers: Tensor
        self.register_buffer("known", torch.zeros(0, len(spec.modules), spec.rank))
        self.register_buffer("answers", torch.zeros(0, outputs))

    def make_head(self, features: int, outputs: int) -> nn.Module:
        return nn.Identity()

    def n_features(self) -> int:
        return len(self.spec.modules) * self.spec.rank

    @torch.no_grad()
    def memorize(self, batch: Batch, answers: Tensor) -> None:
        self.known, self.answers = spectra(self.normalized(batch), self.spec.rank), answers.to(self.answers)

    def features(self, batch: Batch) -> Tensor:
        return spectra(batch, self.spec.rank).flatten(1)

    def embed(self, batch: Batch) -> Tensor:
        """The singular values of all modules: (B, L · rank)."""
        self.check_input(batch)
        return self.features(self.normalized(batch))

    def forward(self, batch: Batch) -> Tensor:
        spectra = self.embed(batch).unflatten(1, self.known.shape[1:])
        if not len(self.known):
            return spectra.new_zeros(len(spectra), self.answers.shape[1])
        nearest = torch.cdist(spectra.transpose(0, 1), self.known.to(spectra).transpose(0, 1)).argmin(-1)  # (L, B)
        return self.answers.to(spectra)[nearest].mean(0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """How many LoRAs are known is not part of the specification, so the buffers take the size of what is
        loaded.
        """
        for name in ("known", "answers"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)
