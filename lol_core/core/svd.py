"""The singular value decomposition of U Vᵀ from its factors: never a matrix larger than those."""

from __future__ import annotations

import torch
from torch import Tensor

NEGLIGIBLE = 1e-6
"""Share of the largest singular value below which others are the rounding of float32 factors, not rank."""


def svd_of_product(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P (…, n, k′), σ (…, k′) descending and Q (…, m, k′) with U Vᵀ = P diag(σ) Qᵀ, from QR of both, or of U Vᵀ where
    that is smaller than either: U (…, n, k), V (…, m, k), k′ = min(n, m, k).
    """
    if U.shape[-1] >= max(U.shape[-2], V.shape[-2]):
        P, sigma, Q = torch.linalg.svd(U @ V.mT, full_matrices=False)
        return P, sigma, Q.mT
    (Q_U, R_U), (Q_V, R_V) = torch.linalg.qr(U), torch.linalg.qr(V)
    X, sigma, Y = torch.linalg.svd(R_U @ R_V.mT, full_matrices=False)
    return Q_U @ X, sigma, Q_V @ Y.mT
