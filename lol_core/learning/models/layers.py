"""The parts of GL-net: equivariant linear maps, the equivariant nonlinearity, the invariant head; and the MLP every LoL
model ends in.

Factors are stacked: U (B, L, n, r), V (B, L, m, r).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from lol_core.learning.models.modulewise import grams, left_product
from lol_core.learning.models.wide import WideLinear

WIDE = 2**20
"""Numbers in the head's first weight from which it is a `WideLinear`; below, an `nn.Linear`."""


def relu_sign(x: Tensor) -> Tensor:
    """ReLU(sign(x)), which the paper often takes for σ: 1 where x > 0, else 0."""
    return (x > 0).to(x.dtype)


NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_sign": relu_sign,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Start(StrEnum):
    """From what Φ and Ψ start, over √n and √m."""

    UNIFORM = "uniform"
    """U(−1, 1), a third of the variance."""
    NORMAL = "normal"
    """N(0, 1), as in the authors' code."""
    LEADING = "leading"
    """The leading directions of the training LoRAs' ΔW over their norms, of length 1, as TuckerNet has them. Ours."""


class EquivariantLinear(nn.Module):
    """F(U, V) = (Φ U, Ψ V) for L modules of one shape (equation 4): every GL-equivariant linear map is of this form
    (proposition 1).

    Φ: (L, n', n), Ψ: (L, m', m).
    """

    def __init__(self, modules: int, n: int, m: int, *, n_out: int, m_out: int, start: Start = Start.UNIFORM):
        super().__init__()

        def drawn(rows: int, columns: int) -> nn.Parameter:
            matrix = torch.empty(modules, rows, columns)
            matrix = matrix.normal_() if start is Start.NORMAL else matrix.uniform_(-1, 1)
            return nn.Parameter(matrix.mul_(columns**-0.5))

        self.Phi, self.Psi = drawn(n_out, n), drawn(m_out, m)

    def forward(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        return left_product(self.Phi, U), left_product(self.Psi, V)

    def extra_repr(self) -> str:
        (modules, n_out, n), (_, m_out, m) = self.Phi.shape, self.Psi.shape
        return f"{modules} × (({n}, r), ({m}, r)) → (({n_out}, r), ({m_out}, r))"


class EquivariantNonlinearity(nn.Module):
    """σ_GL of equation (6): row i of U is scaled by σ of the i-th row sum of U Vᵀ, row i of V by σ of the i-th column
    sum.

    The sums are U (Vᵀ 1) and V (Uᵀ 1), so U Vᵀ is never formed.
    """

    def __init__(self, sigma: str | Callable[[Tensor], Tensor] = "relu_sign"):
        super().__init__()
        self.sigma = NONLINEARITIES[sigma] if isinstance(sigma, str) else sigma

    def forward(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        row_sums = U @ V.sum(-2).unsqueeze(-1)
        column_sums = V @ U.sum(-2).unsqueeze(-1)
        return self.sigma(row_sums) * U, self.sigma(column_sums) * V


def squared_norm(U: Tensor, V: Tensor) -> Tensor:
    """‖U Vᵀ‖² (Frobenius) of each module from Gram matrices, in float64, since κ(R)² stands in them: (B, L)."""
    left, right = grams(U, V)
    return (left * right).sum((-1, -2))


class GLNorm(nn.Module):
    """U and V over the square root of ‖U Vᵀ‖, so that every product has norm 1, then each row times a gain that is
    learnt (authors' code; not in the paper). Equivariant, as ‖U Vᵀ‖ is invariant. Of L modules of width w.
    """

    def __init__(self, modules: int, width: int):
        super().__init__()
        self.gain_U, self.gain_V = (nn.Parameter(torch.ones(modules, width, 1)) for _ in range(2))

    def forward(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        squares = squared_norm(U, V)[..., None, None]
        norm = squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt() + 1e-6  # the root of 0 has no gradient
        scale = norm.rsqrt().to(U)
        return self.gain_U * U * scale, self.gain_V * V * scale


class EquivariantDropout(nn.Module):
    """Drops whole rows of U and of V, independently; in evaluation both are multiplied by 1 − p (authors' code)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return (1 - self.p) * U, (1 - self.p) * V
        kept = [torch.rand(factor.shape[:-1], device=factor.device) >= self.p for factor in (U, V)]
        return U * kept[0][..., None], V * kept[1][..., None]


class InvariantProducts(nn.Module):
    """cat[U₁V₁ᵀ, …, U_L V_Lᵀ] flattened to (B, L·n·m); with `mean`, the mean of each product instead, (B, L) (section
    3.3.3, appendix D.1.1).
    """

    def __init__(self, mean: bool = False):
        super().__init__()
        self.mean = mean

    def forward(self, U: Tensor, V: Tensor) -> Tensor:
        if self.mean:
            return (U.sum(-2) * V.sum(-2)).sum(-1) / (U.shape[-2] * V.shape[-2])
        return (U @ V.mT).flatten(1)


class Head(nn.Module):
    """The MLP on top: Linear, LayerNorm, ReLU, `depth − 1` further Linear–ReLU, then Linear to the outputs. `latent`:
    the last hidden layer (B, width).

    With depth 0 the outputs are linear in the features, which are then the latent. parts: how the features come in
    pieces, where they are many; see `WideLinear`.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        width: int,
        depth: int,
        *,
        dropout: float,
        parts: Sequence[int] | None = None,
    ):
        super().__init__()
        if depth == 0:
            self.latent, self.out = nn.Sequential(), nn.Sequential(nn.Dropout(dropout), nn.Linear(features, outputs))
            return
        first = WideLinear(features, width, parts) if features * width >= WIDE else nn.Linear(features, width)
        layers: list[nn.Module] = [first, nn.LayerNorm(width), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU()]
        self.latent = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, outputs))
