"""Nearest spectra: the singular values of each module's ΔW, and the nearest known LoRA in each. A variant of DSiRe
(`dsire`) that is GL-invariant.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL, Group
from lol_core.core.progress import SILENT, Reporter
from lol_core.learning.link import Link
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.registry import register
from lol_core.learning.models.svd import spectra


@register("nearest_spectra")
class NearestSpectra(LoLModel):
    """Each module votes with the answer of its nearest training LoRA; the prediction is their mean. Nothing is
    fitted.
    """

    title = "Nearest spectra"
    symmetry: ClassVar[Group | None] = GL
    any_rank = True
    memorizes = True
    remembered = ("known", "answers")
    gives_away = "the spectra"
    searched = ({"normalize": False},)
    voters: ClassVar[int] = 1
    """Of each module."""

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        self.known: Tensor
        self.answers: Tensor
        self.register_buffer("known", torch.zeros(0, self.voters * len(spec.modules), spec.rank))
        self.register_buffer("answers", torch.zeros(0, outputs))

    def make_head(self, features: int, outputs: int) -> nn.Module:
        return nn.Identity()

    def n_features(self) -> int:
        return self.voters * len(self.spec.modules) * self.spec.rank

    @torch.no_grad()
    def memorize(
        self, batch: Batch, answers: Tensor, *, link: Link = Link.IDENTITY, reporter: Reporter = SILENT
    ) -> None:
        self.known = self.spectra(self.normalized(batch))
        self.answers = answers.to(self.answers)

    def spectra(self, batch: Batch) -> Tensor:
        """What votes, one row a voter: (B, voters · L, rank)."""
        return spectra(batch, self.spec.rank)

    def features(self, batch: Batch) -> Tensor:
        return self.spectra(batch).flatten(1)

    def embed(self, batch: Batch) -> Tensor:
        """All that vote, side by side: (B, voters · L · rank)."""
        self.check_input(batch)
        return self.features(self.normalized(batch))

    def forward(self, batch: Batch) -> Tensor:
        spectra = self.embed(batch).unflatten(1, self.known.shape[1:])
        if not len(self.known):
            return spectra.new_zeros(len(spectra), self.answers.shape[1])
        nearest = torch.cdist(spectra.transpose(0, 1), self.known.to(spectra).transpose(0, 1)).argmin(-1)  # (L, B)
        return self.answers.to(spectra)[nearest].mean(0)
