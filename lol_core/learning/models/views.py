"""Probe views: few learned probe vectors seen through ΔW u, ΔWᵀ u, ΔW ΔWᵀ u and ΔWᵀ ΔW u of every module. A variant
of MVProbe (`mvprobe`), which has many probes of one module and standardises what they answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.modulewise import grams, left_product
from lol_core.learning.models.registry import register

PROBES = 8
ENCODING = 8


def _random(modules: int, rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(modules, rows, columns).mul_(columns**-0.5))


class Views(nn.Module):
    """The four views of L modules of one shape, (B, L, 4, PROBES · ENCODING): each probe's response, seen by a shared
    encoder of its view.

    The second-order views are divided by ‖ΔW‖, so that all four grow like ΔW.
    """

    def __init__(self, modules: int, n: int, m: int):
        super().__init__()
        self.probes_n, self.probes_m = (nn.ParameterList(_random(modules, PROBES, k) for _ in range(2)) for k in (n, m))
        self.encoders_n, self.encoders_m = (
            nn.ParameterList(_random(modules, ENCODING, k) for _ in range(2)) for k in (n, m)
        )

    def forward(self, U: Tensor, V: Tensor) -> Tensor:
        gram_U, gram_V = grams(U, V)  # in float64, since κ(R)² stands in them
        norm = (gram_U * gram_V).sum((-1, -2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        gram_U, gram_V = (gram_U / norm).to(U), (gram_V / norm).to(U)
        sizes = [ENCODING, ENCODING, PROBES, PROBES]
        encoded_U, encoded_U2, probed_U, probed_U2 = left_product(
            torch.cat([*self.encoders_n, *self.probes_n], 1), U
        ).split(sizes, 2)
        encoded_V, encoded_V2, probed_V, probed_V2 = left_product(
            torch.cat([*self.encoders_m, *self.probes_m], 1), V
        ).split(sizes, 2)
        views = [
            encoded_U @ probed_V.mT,
            encoded_V @ probed_U.mT,
            encoded_U2 @ gram_V @ probed_U2.mT,
            encoded_V2 @ gram_U @ probed_V2.mT,
        ]
        return torch.stack([view.flatten(2) for view in views], 2)


@register("views")
class ProbeViews(LoLModel):
    title = "Probe views"
    symmetry = GL
    any_rank = True
    learnt_features = True

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        self.views = nn.ModuleList(Views(len(indices), n, m) for (n, m), indices in spec.groups)

    def n_features(self) -> int:
        return len(self.spec.modules) * 4 * PROBES * ENCODING

    def features(self, batch: Batch) -> Tensor:
        return torch.cat([views(U, V) for views, U, V in zip(self.views, batch.U, batch.V, strict=True)], 1).flatten(1)
