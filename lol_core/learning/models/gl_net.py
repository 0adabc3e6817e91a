"""GL-net: equivariant layers, then invariant products, then an MLP (section 3.3). Invariant under GL(r), universal,
O((n + m) r).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.core.symmetry import Stage
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.layers import EquivariantLinear, EquivariantNonlinearity, InvariantProducts


class GLNet(LoLModel):
    """The first equivariant layer brings every module to (w, r), w = `equivariant_width`; from there all L modules are
    one stack (B, L, w, r).
    """

    title = "GL-net"
    symmetry = GL
    any_rank = True

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
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
