"""GL-net: equivariant layers, then invariant products, then an MLP (section 3.3). Invariant under GL(r),
O((n + m) r). Universal (theorem 2) at equivariant widths of n and m; narrower, it is blind to whatever lies in the
kernels of Φ and Ψ.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.core.symmetry import Stage
from lol_core.learning.models.apart import ApartConfig, ApartModel, of_unit_norm
from lol_core.learning.models.directions import leading_basis
from lol_core.learning.models.heads import PerModuleHead, TransformerHead
from lol_core.learning.models.layers import (
    EquivariantDropout,
    EquivariantLinear,
    EquivariantNonlinearity,
    GLNorm,
    Head,
    InvariantProducts,
    Start,
)
from lol_core.learning.models.modulewise import Products
from lol_core.learning.models.registry import register
from lol_core.learning.models.wide import PART, WideLinear


class Reading(StrEnum):
    """What reads the products."""

    ALL = "all"
    """An MLP of all of them."""
    PER_MODULE = "per module"
    TRANSFORMER = "transformer"


class Order(StrEnum):
    """What is made of P = Φ ΔW Ψᵀ."""

    FIRST = "first"
    """P itself, as in the paper."""
    COLUMNS = "columns"
    """P Pᵀ, of second order in ΔW: of its rows it keeps lengths and angles alone. Ours."""


@dataclass(frozen=True)
class GLNetConfig(ApartConfig):
    """equivariant_width: w, to which the first equivariant layer brings n and m; equivariant_layers: how many; sigma:
    the nonlinearity between them (equation 6); mean_products: the mean of each product in place of its w² entries
    (appendix D.1.1); start: from what Φ and Ψ of the first layer start, further ones from U(−1, 1) if it is leading;
    order: what the head reads of the products.

    Of the authors' code and not in the paper: start normal; reading, the head; gl_norm, before the products;
    equivariant_dropout, of the rows between equivariant layers, so that with one layer it does nothing.
    """

    equivariant_width: int = 16
    equivariant_layers: int = 1
    sigma: str = "relu_sign"
    mean_products: bool = False
    start: Start = Start.UNIFORM
    order: Order = Order.FIRST
    reading: Reading = Reading.ALL
    gl_norm: bool = False
    equivariant_dropout: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without `order` where it is the paper's: earlier descriptions name none."""
        rest = super().to_dict()
        return {name: choice for name, choice in rest.items() if (name, choice) != ("order", Order.FIRST)}


@register("gl_net")
class GLNet(ApartModel):
    """The first equivariant layer brings every module to (w, r), w = `equivariant_width`; from there all L modules are
    one stack (B, L, w, r).
    """

    Config = GLNetConfig
    config: GLNetConfig
    title = "GL-net"
    symmetry = GL
    any_rank = True
    equivariant = True
    learnt_features = True

    def __init__(self, spec: WeightSpec, outputs: int, config: GLNetConfig):
        super().__init__(spec, outputs, config)
        width, total = config.equivariant_width, len(spec.modules)
        self.first = nn.ModuleList(
            EquivariantLinear(len(indices), n, m, n_out=width, m_out=width, start=config.start)
            for (n, m), indices in spec.groups
        )
        self.further = nn.ModuleList(
            EquivariantLinear(total, width, width, n_out=width, m_out=width, start=config.start)
            for _ in range(config.equivariant_layers - 1)
        )
        self.nonlinearity = EquivariantNonlinearity(config.sigma)
        self.dropout = EquivariantDropout(config.equivariant_dropout)
        self.norm = GLNorm(total, width) if config.gl_norm else None
        self.products = InvariantProducts(config.mean_products)

    @torch.no_grad()
    def prepare(self, sample: Batch, generator: torch.Generator) -> None:
        super().prepare(sample, generator)
        if self.config.start is Start.LEADING:
            unit = of_unit_norm(sample)
            for layer, U, V in zip(self.first, unit.U, unit.V, strict=True):
                left, right = leading_basis(U, V, self.config.equivariant_width)
                layer.get_parameter("Phi").copy_(left.mT)
                layer.get_parameter("Psi").copy_(right.mT)

    @property
    def _of_a_module(self) -> int:
        return 1 if self.config.mean_products else self.config.equivariant_width**2

    def n_features(self) -> int:
        return len(self.spec.modules) * self._of_a_module

    def make_head(self, features: int, outputs: int) -> nn.Module:
        config, extra = self.config, self.spec.magnitudes
        if config.reading is not Reading.ALL:
            kind = PerModuleHead if config.reading is Reading.PER_MODULE else TransformerHead
            modules = len(self.spec.modules)
            return kind(modules, self._of_a_module, extra, outputs, width=config.width, dropout=config.dropout)
        parts = [count * self._of_a_module for pieces in self.pieces for count in pieces]
        magnitudes = [extra] if extra else []
        return Head(features, outputs, config.width, config.depth, dropout=config.dropout, parts=[*parts, *magnitudes])

    def stages(self, batch: Batch) -> list[Stage]:
        """The equivariant part, step by step; R passes through every stage unchanged. All groups are stacked: (B, L, w,
        r).
        """
        pairs = [layer(U, V) for layer, U, V in zip(self.first, batch.U, batch.V, strict=True)]
        stages = [Stage("linear 1", torch.cat([u for u, _ in pairs], 1), torch.cat([v for _, v in pairs], 1))]
        for i, layer in enumerate(self.further, 1):
            stages.append(Stage(f"σ {i}", *self.dropout(*self.nonlinearity(stages[-1].U, stages[-1].V))))
            stages.append(Stage(f"linear {i + 1}", *layer(stages[-1].U, stages[-1].V)))
        if self.norm is not None:
            stages.append(Stage("norm", *self.norm(stages[-1].U, stages[-1].V)))
        return stages

    def features(self, batch: Batch) -> Tensor:
        return torch.cat([part.made() if isinstance(part, Products) else part for part in self.parts(batch)], 1)

    def embed(self, batch: Batch) -> Tensor:
        """The latent vector of each LoRA: (B, width). Many products are read in parts, and never made all at once."""
        if not isinstance(self.head, Head) or not isinstance(self.head.latent[0], WideLinear):
            return super().embed(batch)
        self.check_input(batch)
        batch = self.normalized(batch)
        magnitudes = [] if batch.magnitudes is None else [batch.magnitudes]
        latent: Tensor = self.head.latent([*self.parts(batch), *magnitudes])
        return latent

    def parts(self, batch: Batch) -> list[Tensor | Products]:
        """What is read of the products of `pieces` modules each: (B, modules w²), or their means (B, modules)."""
        if self._one_stack:
            last = self.stages(batch)[-1]
            pairs = [(last.U, last.V)]
        else:
            pairs = [layer(U, V) for layer, U, V in zip(self.first, batch.U, batch.V, strict=True)]
        if self.config.order is Order.COLUMNS:
            pairs = [(U @ (V.mT @ V), U) for U, V in pairs]
        cut = [
            pair
            for (U, V), pieces in zip(pairs, self.pieces, strict=True)
            for pair in zip(U.split(pieces, 1), V.split(pieces, 1), strict=True)
        ]
        return [self.products(U, V) if self.config.mean_products else Products(U, V) for U, V in cut]

    @property
    def _one_stack(self) -> bool:
        return self.config.equivariant_layers > 1 or self.config.gl_norm

    @property
    def pieces(self) -> list[list[int]]:
        """How many modules each part of the features holds, for each stack of modules."""
        stacks = [len(self.spec.modules)] if self._one_stack else [len(i) for _, i in self.spec.groups]
        most = max(1, PART // (self._of_a_module * self.config.width))
        return [[min(most, count - at) for at in range(0, count, most)] for count in stacks]
