"""GL-net: equivariant layers, then invariant products, then an MLP (section 3.3). Invariant under GL(r), universal,
O((n + m) r).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.core.symmetry import Stage
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.layers import EquivariantLinear, EquivariantNonlinearity, InvariantProducts
from lol_core.learning.models.registry import register


@dataclass(frozen=True)
class GLNetConfig(ModelConfig):
    """equivariant_width: w, to which the first equivariant layer brings n and m; equivariant_layers: how many; sigma:
    the nonlinearity between them (equation 6); mean_products: the mean of each product in place of its w² entries
    (appendix D.1.1).
    """

    equivariant_width: int = 16
    equivariant_layers: int = 1
    sigma: str = "relu_sign"
    mean_products: bool = False


@register("gl_net")
class GLNet(LoLModel):
    """The first equivariant layer brings every module to (w, r), w = `equivariant_width`; from there all L modules are
    one stack (B, L, w, r).
    """

    Config = GLNetConfig
    config: GLNetConfig
    title = "GL-net"
    symmetry = GL
    any_rank = True
    learnt_features = True

    def __init__(self, spec: WeightSpec, outputs: int, config: GLNetConfig):
        super().__init__(spec, outputs, config)
        width, total = config.equivariant_width, len(spec.modules)
        self.first = nn.ModuleList(
            EquivariantLinear(len(indices), n, m, width, width) for (n, m), indices in spec.groups
        )
        self.further = nn.ModuleList(
            EquivariantLinear(total, width, width, width, width) for _ in range(config.equivariant_layers - 1)
        )
        self.nonlinearity = EquivariantNonlinearity(config.sigma)
        self.products = InvariantProducts(config.mean_products)

    def n_features(self) -> int:
        return len(self.spec.modules) * (1 if self.config.mean_products else self.config.equivariant_width**2)

    def stages(self, batch: Batch) -> list[Stage]:
        """The equivariant part, step by step; R passes through every stage unchanged. All groups are stacked: (B, L, w,
        r).
        """
        pairs = [layer(U, V) for layer, U, V in zip(self.first, batch.U, batch.V, strict=True)]
        found = [Stage("linear 1", torch.cat([u for u, _ in pairs], 1), torch.cat([v for _, v in pairs], 1))]
        for i, layer in enumerate(self.further, 1):
            found.append(Stage(f"σ {i}", *self.nonlinearity(found[-1].U, found[-1].V)))
            found.append(Stage(f"linear {i + 1}", *layer(found[-1].U, found[-1].V)))
        return found

    def features(self, batch: Batch) -> Tensor:
        last = self.stages(batch)[-1]
        return self.products(last.U, last.V)
