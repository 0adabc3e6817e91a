"""What is true of ΔW = s U Vᵀ, computed from the factors: never an n × m matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lol_core.core.errors import ModelError
from lol_core.core.lora import LoRA, LoRALayer


def singular_values(U: Tensor, V: Tensor) -> Tensor:
    """The min(n, m, r) largest singular values of U Vᵀ, descending, by QR of the factors: U (…, n, r), V (…, m, r) →
    (…, min(n, m, r)).

    O((n + m) r²) (paper, table 1). Q_U and Q_V are orthonormal, so U Vᵀ = Q_U (R_U R_Vᵀ) Q_Vᵀ has the singular values
    of the small R_U R_Vᵀ.
    """
    R_U, R_V = (triangular(factor) for factor in (U, V))
    return torch.linalg.svdvals(R_U @ R_V.mT)


def triangular(factor: Tensor) -> Tensor:
    """R of the QR decomposition: (…, n, r) → (…, min(n, r), r). Q is computed only where a gradient needs it."""
    needed = torch.is_grad_enabled() and factor.requires_grad
    return torch.linalg.qr(factor, mode="reduced" if needed else "r").R


def spectrum(layer: LoRALayer) -> Tensor:
    """Singular values of ΔW (r,) in float64. For LoKr they are those of W₁ ⊗ W₂: all products of the factors' singular
    values.
    """
    if layer.factor_shapes is not None:
        first, second = (
            torch.linalg.svdvals(t.double().reshape(shape[0], -1))
            for t, shape in zip((layer.U, layer.V), layer.factor_shapes, strict=True)
        )
        return abs(layer.scale) * torch.outer(first, second).flatten().sort(descending=True).values
    return singular_values(*layer.folded(torch.float64))


def inner_product(a: LoRALayer, b: LoRALayer) -> float:
    """⟨ΔW_a, ΔW_b⟩ = tr(ΔW_aᵀ ΔW_b) = ⟨U_aᵀ U_b, V_aᵀ V_b⟩ (entrywise), O((n + m) r²). Raises ModelError when the
    shapes differ.
    """
    if (a.n, a.m) != (b.n, b.m) or a.factor_shapes != b.factor_shapes:
        raise ModelError(f"{a.name} ({a.n} × {a.m}) and {b.name} ({b.n} × {b.m}) are not updates of the same weight.")
    (U_a, V_a), (U_b, V_b) = a.folded(torch.float64), b.folded(torch.float64)
    return float(((U_a.T @ U_b) * (V_a.T @ V_b)).sum())


def norm(layer: LoRALayer) -> float:
    """‖ΔW‖ (Frobenius). By QR, so that cancellation between large factors does no harm."""
    return float(spectrum(layer).norm())


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of σ/Σσ (Roy and Vetterli 2007): 1 for a rank-one ΔW, r when all r singular values are equal;
    0 for ΔW = 0.
    """
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total
    return float(torch.exp(-(p * torch.where(p > 0, p.log(), torch.zeros_like(p))).sum()))


def distance(a: LoRALayer, b: LoRALayer) -> float:
    """‖ΔW_a − ΔW_b‖ (Frobenius), from the factors of the difference [U_a, −U_b] [V_a, V_b]ᵀ: exact also where the two
    nearly cancel.
    """
    inner_product(a, b)  # checks the shapes
    (U_a, V_a), (U_b, V_b) = a.folded(torch.float64), b.folded(torch.float64)
    return float(singular_values(torch.cat([U_a, -U_b], 1), torch.cat([V_a, V_b], 1)).norm())


def truncate(layer: LoRALayer, rank: int) -> tuple[LoRALayer, float]:
    """The nearest layer of at most this rank (Eckart–Young) and its relative error ‖ΔW − ΔW_k‖ / ‖ΔW‖, from the factors
    by QR and a small SVD.

    The new factors are float32 and share √σ evenly; the scale is folded into them. Raises ModelError for LoKr, which is
    no product U Vᵀ.
    """
    if layer.factor_shapes is not None:
        raise ModelError(f"{layer.name}: a Kronecker product (LoKr) has no smaller rank to be cut to.")
    if rank < 1:
        raise ModelError(f"A rank is at least 1; found {rank}.")
    (Q_U, R_U), (Q_V, R_V) = (torch.linalg.qr(factor) for factor in layer.folded(torch.float64))
    left, values, right = torch.linalg.svd(R_U @ R_V.mT, full_matrices=False)
    root = values[:rank].sqrt()
    U, V = Q_U @ left[:, :rank] * root, Q_V @ right[:rank].mT * root
    total = values.norm()
    error = float(values[rank:].norm() / total) if total > 0 else 0.0
    return replace(layer, U=U.float(), V=V.float(), scale=1.0, alpha=None), error


def same_function(a: LoRA, b: LoRA, tolerance: float = 1e-3) -> bool:
    """Whether two LoRAs update the same modules alike, whatever their factors, ranks or dtypes: ‖ΔW_a − ΔW_b‖ ≤
    tolerance · ‖ΔW_a‖ over all modules.
    """
    if set(a.names) != set(b.names):
        return False
    try:
        gap = sum(distance(layer, b[layer.name]) ** 2 for layer in a.layers) ** 0.5
    except ModelError:
        return False
    return gap <= tolerance * sum(norm(layer) ** 2 for layer in a.layers) ** 0.5
