"""GL-equivariant network: from LoRAs to LoRAs of the same modules and ranks, F(UR, VR⁻ᵀ) = (ŨR, ṼR⁻ᵀ).

Everything that touches a factor multiplies it from the left: by a matrix of the model (proposition 1: no other linear
map is equivariant) or by gates that are functions of invariants (section 3.3.2). Modules inform each other through
the invariants alone, since a map from one module's factors to another's is equivariant only when it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec, stack, unstack
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA
from lol_core.core.symmetry import Stage
from lol_core.errors import ModelError
from lol_core.learning.models.layers import EquivariantLinear
from lol_core.learning.models.modulewise import left_product

TINY = 1e-12
"""Added to a norm where it divides, so that a module whose update is zero has invariants too."""
SINGULAR = 1e-12
"""Share of the largest eigenvalue of VᵀV below which one counts as 0."""


@dataclass(frozen=True)
class GLEquivariantConfig:
    """width: w, to which the first layer brings n and m; layers: equivariant layers at that width; probes: directions
    along which rows and columns of U Vᵀ are read; context: numbers that say of the whole LoRA what its gates need;
    wishes: numbers that come with each LoRA, such as a wished change of labels; atoms: of a `Crossing` at the end, none
    with 0.
    """

    width: int = 16
    layers: int = 2
    probes: int = 4
    context: int = 32
    wishes: int = 0
    atoms: int = 0


class Gates(nn.Module):
    """Smooth equivariant nonlinearity: row i of U is scaled by 2σ(·) of the projections of row i of U Vᵀ / ‖U Vᵀ‖ and
    of the context, row i of V likewise of column i. With one projection on 1 and a step for σ it is equation (6).

    U, V: (B, L, w, r); context: (B, c). At the start every gate is 1.
    """

    def __init__(self, modules: int, width: int, probes: int, context: int):
        super().__init__()
        self.p, self.q = (nn.Parameter(torch.randn(modules, width, probes) * width**-0.5) for _ in range(2))
        self.rows, self.columns = (nn.Parameter(torch.zeros(modules, width, probes)) for _ in range(2))
        self.of_context = nn.Linear(context, 2 * modules * width)
        nn.init.zeros_(self.of_context.weight)
        nn.init.zeros_(self.of_context.bias)

    def forward(self, U: Tensor, V: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        product = unit_products(U, V)[0]
        rows = (product @ self.q * self.rows).sum(-1)
        columns = (product.mT @ self.p * self.columns).sum(-1)
        of_rows, of_columns = self.of_context(context).unflatten(1, (2, *rows.shape[1:])).unbind(1)
        return 2 * (rows + of_rows).sigmoid()[..., None] * U, 2 * (columns + of_columns).sigmoid()[..., None] * V


class Crossing(nn.Module):
    """From each factor to the other: (D V(VᵀV)⁻¹, Dᵀ U(UᵀU)⁻¹) with D = Σ_k c_k a_k b_kᵀ, c a linear function of
    invariants. No linear map leads from V to the columns of U (proposition 1), but V(VᵀV)⁻¹ changes by R as U does: so
    directions are reached that are no images of a LoRA's own columns.

    Of L modules of one shape (n, m). context: (B, c).
    """

    def __init__(self, modules: int, n: int, m: int, atoms: int, *, context: int):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(modules, size, atoms) * size**-0.5) for size in (n, m))
        self.of_context = nn.Linear(context, modules * atoms)

    def forward(self, U: Tensor, V: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        c = self.of_context(context).unflatten(1, (len(self.a), -1))[..., None]
        to_U, to_V = (
            left_product(into, c * left_product(out.mT, dual(factor)))
            for into, out, factor in ((self.a, self.b, V), (self.b, self.a, U))
        )
        return to_U, to_V


class GLEquivariantNet(nn.Module):
    """Lift every module to (w, r); some layers of gates and equivariant linear maps, each added to what came before;
    back to (n, r) and (m, r), added to the input. Every sum is of proposition 1's maps, of which the identity is one,
    and, with atoms, of a `Crossing`.

    The last maps start at 0, so an untrained net gives back what it is given. Smooth in U, V and the weights wherever
    no product U Vᵀ is 0. Ranks may be mixed: columns of zeros stay so. DoRA magnitudes pass through.
    """

    symmetry = GL

    def __init__(self, spec: WeightSpec, config: GLEquivariantConfig = GLEquivariantConfig()):
        super().__init__()
        self.spec, self.config = spec, config
        width, total, probes = config.width, len(spec.modules), config.probes
        shapes = [(len(indices), n, m) for (n, m), indices in spec.groups]
        self.first = nn.ModuleList(EquivariantLinear(count, n, m, n_out=width, m_out=width) for count, n, m in shapes)
        self.p, self.q = (nn.Parameter(torch.randn(total, width, probes) * width**-0.5) for _ in range(2))
        self.context = nn.Sequential(
            nn.Linear(total * (probes**2 + 1) + config.wishes, config.context), nn.SiLU(), nn.LayerNorm(config.context)
        )
        self.gates = nn.ModuleList(Gates(total, width, probes, config.context) for _ in range(config.layers))
        self.further = nn.ModuleList(
            EquivariantLinear(total, width, width, n_out=width, m_out=width) for _ in range(config.layers)
        )
        self.last = nn.ModuleList(EquivariantLinear(count, width, width, n_out=n, m_out=m) for count, n, m in shapes)
        for layer in self.last:
            for weight in layer.parameters():
                nn.init.zeros_(weight)
        inputs = config.context + config.wishes
        crossings = [Crossing(count, n, m, config.atoms, context=inputs) for count, n, m in shapes if config.atoms]
        for crossing in crossings:
            nn.init.zeros_(crossing.of_context.weight)
            nn.init.zeros_(crossing.of_context.bias)
        self.crossings = nn.ModuleList(crossings)

    def forward(self, batch: Batch, wishes: Tensor | None = None) -> Batch:
        """The batch of the LoRAs that it gives back. wishes: (B, config.wishes), None where there are none. Raises
        ModelError when they are of another shape.
        """
        stages, context = self._stages(batch, wishes)
        sizes = [len(indices) for _, indices in self.spec.groups]
        lifted = zip(stages[-1].U.split(sizes, 1), stages[-1].V.split(sizes, 1), strict=True)
        changes = [layer(*pair) for layer, pair in zip(self.last, lifted, strict=True)]
        if self.config.atoms:
            of_all = context if wishes is None else torch.cat([context, wishes], 1)
            crossed = [cross(*pair, of_all) for cross, *pair in zip(self.crossings, batch.U, batch.V, strict=True)]
            changes = [(u + cu, v + cv) for (u, v), (cu, cv) in zip(changes, crossed, strict=True)]
        U = tuple(u + change for u, (change, _) in zip(batch.U, changes, strict=True))
        V = tuple(v + change for v, (_, change) in zip(batch.V, changes, strict=True))
        return replace(batch, U=U, V=V)

    def stages(self, batch: Batch, wishes: Tensor | None = None) -> list[Stage]:
        """The factors at width w, layer by layer, all modules in one stack."""
        return self._stages(batch, wishes)[0]

    def _stages(self, batch: Batch, wishes: Tensor | None) -> tuple[list[Stage], Tensor]:
        """And the context: (B, c)."""
        pairs = [layer(U, V) for layer, U, V in zip(self.first, batch.U, batch.V, strict=True)]
        stages = [Stage("lift", torch.cat([u for u, _ in pairs], 1), torch.cat([v for _, v in pairs], 1))]
        context = self._context(stages[0], wishes)
        for i, (gates, linear) in enumerate(zip(self.gates, self.further, strict=True), 1):
            before = stages[-1]
            U, V = linear(*gates(before.U, before.V, context))
            stages.append(Stage(f"layer {i}", before.U + U, before.V + V))
        return stages, context

    def _context(self, lifted: Stage, wishes: Tensor | None) -> Tensor:
        """pᵀ (U Vᵀ / ‖U Vᵀ‖) q and log ‖U Vᵀ‖ of every module, and the wishes, through one hidden layer: (B, c)."""
        product, norm = unit_products(lifted.U, lifted.V)
        invariants = [(self.p.mT @ product @ self.q).flatten(1), norm.flatten(1).log()]
        if (0 if wishes is None else wishes.shape[1]) != self.config.wishes:
            raise ModelError(
                f"This network takes {self.config.wishes} wishes with each LoRA; found"
                f" {'none' if wishes is None else wishes.shape[1]}."
            )
        context: Tensor = self.context(torch.cat(invariants if wishes is None else [*invariants, wishes], 1))
        return context

    def rewrite(self, loras: Sequence[LoRA], wishes: Tensor | None = None) -> list[LoRA]:
        """LoRAs of the same dialects, names, scales and dtypes as those given, with the factors of the network. Raises
        ModelError when one does not fit.
        """
        weight = self.p
        batch = stack(loras, self.spec, weight.dtype).to(weight.device)
        with torch.no_grad():
            return unstack(self(batch, wishes).to("cpu"), loras)


def unit_products(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """U Vᵀ / ‖U Vᵀ‖ (B, L, w, w) and ‖U Vᵀ‖ (B, L, 1, 1) of modules at a small width w."""
    product = U @ V.mT
    norm = (product.square().sum((-1, -2), keepdim=True) + TINY**2).sqrt()
    return product / norm, norm


def dual(factor: Tensor) -> Tensor:
    """V(VᵀV)⁻¹: (…, m, r), in the space that V's columns span; columns of zeros stay so."""
    V = factor.double()  # κ(R)² stands in VᵀV
    return (V @ torch.linalg.pinv(V.mT @ V, rtol=SINGULAR, hermitian=True)).to(factor)
