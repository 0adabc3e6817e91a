"""Inner products of updates, of first and of second order, exact and from the factors."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.progress import SILENT, Reporter
from lol_core.learning.models.modulewise import grams

BLOCK = 20_000_000
"""Numbers formed at a time when products of many LoRAs are computed."""
PASSES = 50
"""A product of factors is also written, multiplied and summed: as measured, that costs what so many more rows would."""


def gram(batch: Batch, others: Batch | None = None, reporter: Reporter = SILENT) -> np.ndarray:
    """`products`, as an array."""
    return products(batch, others, reporter).cpu().numpy()


def products(batch: Batch, others: Batch | None = None, reporter: Reporter = SILENT) -> Tensor:
    """⟨ΔW_a, ΔW_b⟩ summed over modules for all pairs of a batch, or of a batch (B, rows) and `others` (C, columns) of
    the same modules: (B, C) float64.

    From the factors, ⟨U_aᵀ U_b, V_aᵀ V_b⟩ (entrywise), or from ΔW itself, some of its rows at a time, whichever takes
    fewer multiplications; the two batches may have different ranks.
    """
    columns = batch if others is None else others
    total = torch.zeros(len(batch), len(columns), dtype=torch.float64, device=batch.ranks.device)
    layers = _layers(batch)
    for done, (own, other) in enumerate(zip(layers, layers if others is None else _layers(others), strict=True), 1):
        (a, n, r), (b, m, s) = own[0].shape, other[1].shape
        by_updates = n * m * (a * b + a * r + (0 if other is own else b * s))
        if by_updates < a * b * r * s * (n + m + PASSES):
            _add_by_updates(total, own, other)
        else:
            _add_by_factors(total, own, other)
        reporter.count("Products of LoRAs, in modules:", done, len(layers))
    return total


def _layers(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """The pair of each module: (B, n, r) and (B, m, r); twice the same where U and V are one tensor."""
    layers: list[tuple[Tensor, Tensor]] = []
    for U, V in zip(batch.U, batch.V, strict=True):
        left = U.unbind(1)
        layers += zip(left, left if V is U else V.unbind(1), strict=True)
    return layers


def _add_by_updates(total: Tensor, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """⟨ΔW_a, ΔW_b⟩ of one module, added to the total (a, b)."""
    (U, V), (U_b, V_b) = own, other
    step = max(1, BLOCK // ((len(U) + len(U_b)) * V.shape[1]))
    for rows in (slice(start, start + step) for start in range(0, U.shape[1], step)):
        here = (U[:, rows].double() @ V.double().mT).flatten(1)
        there = here if other is own else (U_b[:, rows].double() @ V_b.double().mT).flatten(1)
        total.addmm_(here, there.mT)


def _add_by_factors(total: Tensor, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """The same."""
    (U, V), (U_b, V_b) = own, other
    step = max(1, BLOCK // (len(U_b) * U.shape[2] * U_b.shape[2]))
    for rows in (slice(start, start + step) for start in range(0, len(U), step)):
        left = torch.einsum("anr,bns->abrs", U[rows].double(), U_b.double())
        one = V is U and V_b is U_b
        right = left if one else torch.einsum("amr,bms->abrs", V[rows].double(), V_b.double())
        total[rows] += (left * right).sum((2, 3))


def log_norms(batch: Batch) -> Tensor:
    """log ‖ΔW‖ of every module: (B, L), by ‖U Vᵀ‖² = ⟨UᵀU, VᵀV⟩ in float64, in the order of the specification's groups.
    Zero updates count as the smallest positive float.
    """
    squares, half = grams(*batch.U, *batch.V), len(batch.U)
    pairs = zip(squares[:half], squares[half:], strict=True)
    norms = torch.cat([(G_U * G_V).sum((-2, -1)).clamp(min=0).sqrt() for G_U, G_V in pairs], 1)
    return norms.clamp(min=torch.finfo(torch.float32).tiny).log()


def directions(batch: Batch) -> Batch:
    """Every module's ΔW divided by its Frobenius norm."""
    counts = [len(indices) for _, indices in batch.spec.groups]
    norms = log_norms(batch).exp().split(counts, 1)
    scales = [norm[:, :, None, None].to(U) for norm, U in zip(norms, batch.U, strict=True)]
    pairs = [
        (U / scale, V) if V is not U else (U / scale.sqrt(),) * 2
        for U, V, scale in zip(batch.U, batch.V, scales, strict=True)
    ]
    return replace(batch, U=tuple(U for U, _ in pairs), V=tuple(V for _, V in pairs))


class Side(StrEnum):
    """What a product of ΔW with itself keeps."""

    COLUMNS = "columns"
    """ΔWΔWᵀ: the span of ΔW's columns, which V tells nothing of but how long they are."""
    ROWS = "rows"


def squares(batch: Batch, side: Side) -> Batch:
    """ΔWΔWᵀ = U VᵀV Uᵀ of every module, or ΔWᵀΔW, as LoRAs of n × n or m × m modules whose U and V are one tensor."""
    own, others = (batch.U, batch.V) if side is Side.COLUMNS else (batch.V, batch.U)
    roots = [factor @ _root(other.mT @ other) for factor, other in zip(own, others, strict=True)]
    of_module = {
        index: root[:, place]
        for (_, indices), root in zip(batch.spec.groups, roots, strict=True)
        for place, index in enumerate(indices)
    }
    spec = squared(batch.spec, side)
    factors = tuple(torch.stack([of_module[index] for index in indices], 1) for _, indices in spec.groups)
    return Batch(spec, factors, factors, batch.ranks)


def squared(spec: WeightSpec, side: Side) -> WeightSpec:
    """Of what `squares` makes."""
    sizes = [module.n if side is Side.COLUMNS else module.m for module in spec.modules]
    modules = tuple(replace(module, n=k, m=k, magnitude=False) for module, k in zip(spec.modules, sizes, strict=True))
    return WeightSpec(modules, spec.mixed_ranks)


def _root(gram: Tensor) -> Tensor:
    """X with X Xᵀ = a Gram matrix: (…, r, r)."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).to(gram)
