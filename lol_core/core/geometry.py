"""What is true of ΔW = s U Vᵀ, computed from the factors: never an n × m matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lol_core.core.errors import ModelError
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import LowRank, Magnitude
from lol_core.core.stacks import by_module

CACHED = 2**17
"""Numbers that are worked on at a time."""


def singular_values(U: Tensor, V: Tensor) -> Tensor:
    """The min(n, m, r) largest singular values of U Vᵀ, descending, by QR of the factors: U (…, n, r), V (…, m, r)
    → (…, min(n, m, r)).

    O((n + m) r²) (paper, table 1). Q_U and Q_V are orthonormal, so U Vᵀ = Q_U (R_U R_Vᵀ) Q_Vᵀ has the singular
    values of the small R_U R_Vᵀ.
    """
    R_U, R_V = (triangular(factor) for factor in (U, V))
    return torch.linalg.svdvals(R_U @ R_V.mT)


def triangular(factor: Tensor) -> Tensor:
    """R of the QR decomposition: (…, n, r) → (…, min(n, r), r). Q is computed only where a gradient needs it; else so
    many factors are decomposed at a time as stay, with the copy that it takes, in a processor's cache.
    """
    if torch.is_grad_enabled() and factor.requires_grad:
        return torch.linalg.qr(factor).R
    if factor.numel() <= CACHED or not factor.is_cpu:
        return torch.linalg.qr(factor, mode="r").R
    if by_module(factor):
        return triangular(factor.transpose(0, 1)).transpose(0, 1)
    *lead, n, r = factor.shape
    parts = factor.reshape(-1, n, r).split(max(1, CACHED // (n * r)))
    return torch.cat([torch.linalg.qr(part, mode="r").R for part in parts]).view(*lead, min(n, r), r)


def singular_values_of_grams(G_U: Tensor, G_V: Tensor) -> Tensor:
    """The singular values of U Vᵀ, descending, from UᵀU and VᵀV in float64: (…, r, r) twice → (…, r), those beyond
    min(n, m) about zero.

    With UᵀU = L Lᵀ, σ² are the eigenvalues of LᵀVᵀV L. Of factors in float32, of which these are exact, no less exact
    than by QR in float32; of factors in float64, only to 1e-8 of the largest.
    """
    L, failed = torch.linalg.cholesky_ex(G_U)
    if (singular := failed > 0).any():
        values, vectors = torch.linalg.eigh(G_U[singular])
        L[singular] = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return torch.linalg.eigvalsh(L.mT @ G_V @ L).clamp(min=0).sqrt().flip(-1)


def spectrum(layer: LoRALayer) -> Tensor:
    """Singular values of ΔW, descending, in float64."""
    return abs(layer.scale) * layer.parametrisation.singular_values()


def inner_product(a: LoRALayer, b: LoRALayer) -> float:
    """⟨ΔW_a, ΔW_b⟩ = tr(ΔW_aᵀ ΔW_b), from the factors. Raises ModelError when they update weights of other shapes."""
    try:
        return a.scale * b.scale * a.parametrisation.inner(b.parametrisation)
    except ModelError as error:
        raise ModelError(f"{a.name} and {b.name} are not updates of the same weight: {error}") from error


def norm(layer: LoRALayer) -> float:
    """‖ΔW‖ (Frobenius). By QR, so that cancellation between large factors does no harm."""
    return float(spectrum(layer).norm())


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of σ/Σσ (Roy and Vetterli 2007): 1 for a rank-one ΔW, r when all r singular values are
    equal; 0 for ΔW = 0.
    """
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values / total
    return float(torch.exp(-(p * torch.where(p > 0, p.log(), torch.zeros_like(p))).sum()))


def distance(a: LoRALayer, b: LoRALayer) -> float:
    """‖ΔW_a − ΔW_b‖ (Frobenius), from the factors of the difference [U_a, −U_b] [V_a, V_b]ᵀ: exact also where the
    two nearly cancel. Raises ModelError when they update weights of other shapes.
    """
    alike = a.factor_shapes == b.factor_shapes
    pairs = [layer.parametrisation.pair() if alike else layer.parametrisation.low_rank() for layer in (a, b)]
    (U_a, V_a), (U_b, V_b) = ([factor.double() for factor in pair] for pair in pairs)
    if (len(U_a), len(V_a)) != (len(U_b), len(V_b)):
        raise ModelError(
            f"{a.name} and {b.name} are not updates of the same weight: Updates of a weight {a.weight_shape} and of a"
            f" weight {b.weight_shape}."
        )
    left, right = torch.cat([a.scale * U_a, -b.scale * U_b], 1), torch.cat([V_a, V_b], 1)
    return float((triangular(left) @ triangular(right).mT).norm())


def same_magnitude(a: LoRALayer, b: LoRALayer, tolerance: float = 1e-3) -> bool:
    """Whether neither module has a DoRA magnitude, or both along one axis: ‖m_a − m_b‖ ≤ tolerance · ‖m_a‖."""
    one, other = a.magnitude, b.magnitude
    if one is None or other is None:
        return one is other
    if (a.magnitude_axis, one.numel()) != (b.magnitude_axis, other.numel()):
        return False
    return float((one.double() - other.double()).norm()) <= tolerance * float(one.double().norm())


def truncate(layer: LoRALayer, rank: int) -> tuple[LoRALayer, float]:
    """The nearest layer of at most this rank (Eckart–Young) and its relative error ‖ΔW − ΔW_k‖ / ‖ΔW‖, from the
    factors.

    The new factors are a low-rank pair in float32 that shares √σ evenly; the scale is folded into them, a DoRA
    magnitude stays. Raises ModelError for a rank below 1.
    """
    if rank < 1:
        raise ModelError(f"A rank is at least 1; found {rank}.")
    of = layer.parametrisation
    P, every, Q = of.leading(max(of.weight_shape))  # all: the error is what is left out, and one decomposition tells it
    energy = every.square()
    total = energy.sum()
    error = float((energy[rank:].sum() / total).sqrt()) if total > 0 else 0.0
    return balanced(layer, P[:, :rank], every[:rank], Q[:, :rank]), error


def balanced(layer: LoRALayer, P: Tensor, values: Tensor, Q: Tensor) -> LoRALayer:
    """The same module with the update s · P diag(σ) Qᵀ, as a low-rank pair in float32 that shares √|sσ| evenly, the
    sign of s in U; a DoRA magnitude stays.
    """
    of = layer.parametrisation
    root = (abs(layer.scale) * values).sqrt()
    sign = 1.0 if layer.scale >= 0 else -1.0
    inner = of.of if isinstance(of, Magnitude) else of
    kind = inner.kind if type(inner) is LowRank else Kind.CONV if len(of.weight_shape) > 2 else Kind.LINEAR
    pair = LowRank((sign * P * root).float(), (Q * root).float(), of.weight_shape, kind)
    return LoRALayer(layer.name, replace(of, of=pair) if isinstance(of, Magnitude) else pair)


def same_function(a: LoRA, b: LoRA, tolerance: float = 1e-3) -> bool:
    """Whether two LoRAs update the same modules alike, whatever their names, factors, ranks or dtypes: ‖ΔW_a − ΔW_b‖ ≤
    tolerance · ‖ΔW_a‖ over all modules, and their DoRA magnitudes are as near.
    """
    if a.by_common_name.keys() != b.by_common_name.keys():
        return False
    pairs = [(layer, b.by_common_name[name]) for name, layer in a.by_common_name.items()]
    if not all(same_magnitude(*pair, tolerance) for pair in pairs):
        return False
    try:
        gap = sum(distance(*pair) ** 2 for pair in pairs) ** 0.5
    except ModelError:
        return False
    return gap <= tolerance * sum(norm(layer) ** 2 for layer in a.layers) ** 0.5
