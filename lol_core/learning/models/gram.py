"""Inner products of updates, of first and of second order, exact and from the factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lol_core.core.batch import Batch
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
    return torch.cat([_norms((G_U * G_V).sum((-2, -1))) for G_U, G_V in pairs], 1).log()


def _norms(squares: Tensor) -> Tensor:
    return squares.clamp(min=0).sqrt().clamp(min=torch.finfo(torch.float32).tiny)


class Measured(NamedTuple):
    """Modules of one shape of some LoRAs: U (B, L, n, r), V (B, L, m, r), G = VᵀV (B, L, r, r), and the norms of ΔW and
    of ΔWΔWᵀ, (B, L, 2). Zero updates have the smallest positive float for norms.
    """

    U: Tensor
    V: Tensor
    G: Tensor
    norms: Tensor

    def layers(self) -> Iterator[Measured]:
        """Of one module each, without the axis L."""
        yield from map(Measured._make, zip(*(of.unbind(1) for of in self), strict=True))


def measured(batch: Batch) -> list[Measured]:
    """Of each group of the specification; G and norms in float64."""
    squares, half = grams(*batch.U, *batch.V), len(batch.U)
    groups = []
    for U, V, G_U, G_V in zip(batch.U, batch.V, squares[:half], squares[half:], strict=True):
        turned = G_U @ G_V
        both = torch.stack([(G_U * G_V).sum((-2, -1)), (turned * turned.mT).sum((-2, -1))], -1)
        groups.append(Measured(U, V, G_V, _norms(both)))
    return groups


def both_orders(
    own: Sequence[Measured], others: Sequence[Measured] | None = None, reporter: Reporter = SILENT
) -> tuple[Tensor, Tensor]:
    """Means over modules of ⟨ΔW_a, ΔW_b⟩ and of ⟨ΔW_aΔW_aᵀ, ΔW_bΔW_bᵀ⟩, each over its two norms, for all pairs of some
    LoRAs, or of some (B, rows) and `others` (C, columns) of the same modules: (B, C) each, float64.

    From the factors: with M = U_aᵀU_b and G = VᵀV the second is Σ (G_a M) ∘ (M G_b), so that both read the factors
    once. Or from ΔW and ΔWΔWᵀ, some of their rows at a time, whichever takes fewer multiplications.
    """
    layers = [layer for group in own for layer in group.layers()]
    columns = layers if others is None else [layer for group in others for layer in group.layers()]
    shape = len(layers[0].U), len(columns[0].U)
    totals = torch.zeros(2, *shape, dtype=torch.float64, device=layers[0].U.device)
    for done, (one, two) in enumerate(zip(layers, columns, strict=True), 1):
        (a, n, r), (b, m, s) = one.U.shape, two.V.shape
        by_updates = (n + m) * n * (a * b + a * r + (0 if one is two else b * s))
        by_factors = a * b * r * s * (n + m + r + s + 2 * PASSES)
        products = (_both_by_updates if by_updates < by_factors else _both_by_factors)(one, two)
        rows, other = (layer.norms.double().T for layer in (one, two))
        totals = totals + products / rows[:, :, None] / other[:, None]
        reporter.count("Products of LoRAs, in modules:", done, len(layers))
        reporter.check("Nothing was kept.")
    first, second = totals / len(layers)
    return first, second


def _both_by_updates(one: Measured, two: Measured) -> Tensor:
    """Both products of one module, (2, a, b)."""
    totals = [torch.zeros(len(one.U), len(two.U), dtype=torch.float64, device=one.U.device) for _ in range(2)]
    same = one is two
    one = Measured._make(of.double() for of in one)
    two = one if same else Measured._make(of.double() for of in two)
    step = max(1, BLOCK // ((len(one.U) + len(two.U)) * max(one.U.shape[1], one.V.shape[1])))
    for rows in (slice(start, start + step) for start in range(0, one.U.shape[1], step)):
        here = _rows(one, rows)
        there = here if same else _rows(two, rows)
        for total, left, right in zip(totals, here, there, strict=True):
            total.addmm_(left, right.mT)
    return torch.stack(totals)


def _rows(of: Measured, rows: slice) -> tuple[Tensor, Tensor]:
    """Rows of ΔW and of ΔWΔWᵀ, flattened."""
    U = of.U[:, rows]
    return (U @ of.V.mT).flatten(1), ((U @ of.G) @ of.U.mT).flatten(1)


def _both_by_factors(one: Measured, two: Measured) -> Tensor:
    """The same."""
    same = one is two
    two = Measured._make(of.double() for of in two)
    one = two if same else Measured._make(of.double() for of in one)
    totals = torch.empty(2, len(one.U), len(two.U), dtype=torch.float64, device=one.U.device)
    step = max(1, BLOCK // (len(two.U) * one.U.shape[2] * two.U.shape[2]))
    for rows in (slice(start, start + step) for start in range(0, len(one.U), step)):
        M = torch.einsum("anr,bns->arbs", one.U[rows], two.U)
        N = torch.einsum("amr,bms->arbs", one.V[rows], two.V)
        left, right = torch.einsum("aqr,arbs->aqbs", one.G[rows], M), torch.einsum("arbs,bst->arbt", M, two.G)
        totals[0, rows] = (M * N).sum((1, 3))
        totals[1, rows] = (left * right).sum((1, 3))
    return totals
