"""One copy for all LoRAs of the same function: balanced factors whose signs and order are fixed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lol_core.core.errors import LoRAFormatError
from lol_core.core.geometry import balanced
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.svd import NEGLIGIBLE

ALIKE = 1e-5
"""Singular values closer than this share of the largest count as equal: they span a space, not a direction each. The
copy's ΔW is then off by no more than that share.
"""


def canonical(lora: LoRA) -> LoRA:
    """U Σ^½ and V Σ^½ of every ΔW = U Σ Vᵀ, σ descending and none of them zero, the scale folded in, in float32:
    LoRAs with the same ΔW have the same copy, up to the rounding of their factors, whatever their gauge, rank or scale.

    ΔW leaves (u, v) → (−u, −v) open and, where k singular values are equal, (P, Q) → (PO, QO) for every O in O(k): see
    `settling`, which settles nothing where its rule meets a tie, as on vectors as symmetric as (a, −a). A convolution
    is taken flattened, and products of factors as the pair they multiply to; a DoRA magnitude stays as it is. Raises
    LoRAFormatError for experts, which are a pair each.
    """
    return replace(lora, layers=tuple(map(_canonical, lora.layers)))


def _canonical(layer: LoRALayer) -> LoRALayer:
    if layer.kind == Kind.EXPERTS:
        raise LoRAFormatError(f"{layer.name} has a pair for each expert, which has no canonical copy here.")
    P, values, Q = layer.parametrisation.leading(max(layer.weight_shape))
    rank = numerical_rank(values)
    P, values, Q = P[:, :rank], values[:rank], Q[:, :rank]
    turn = settling(P if layer.scale >= 0 else -P, values)
    return balanced(layer, P @ turn, values, Q @ turn)


def numerical_rank(values: Tensor) -> int:
    """How many singular values, descending, are more than rounding; at least 1."""
    return max(1, int((values > NEGLIGIBLE * values[0]).sum()))


def settling(P: Tensor, values: Tensor) -> Tensor:
    """The orthogonal T: (k, k) with which PT is the same for every choice of left singular vectors P: (n, k) to the
    singular values: within equal ones the eigenvectors of PᵀDP, D a fixed diagonal that no two coordinates share, and
    each with more of its squares on the positive side. Unlike the sign of the largest entry, that side does not turn
    over when two entries are nearly as large.
    """
    T = torch.eye(len(values), dtype=P.dtype)
    D = torch.linspace(0, 1, len(P), dtype=P.dtype)[:, None]
    first, sizes = 0, values.tolist()
    for last in range(1, len(sizes) + 1):
        if last == len(sizes) or sizes[first] - sizes[last] > ALIKE * sizes[0]:
            if last - first > 1:
                space = P[:, first:last]
                T[first:last, first:last] = torch.linalg.eigh(space.T @ (D * space)).eigenvectors
            first = last
    settled = P @ T
    return T * torch.where((settled * settled.abs()).sum(0) >= 0, 1.0, -1.0).to(P)
