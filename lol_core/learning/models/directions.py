"""The leading directions of the training LoRAs' updates: a basis that is taken from them without their labels."""

from __future__ import annotations

import torch
from torch import Tensor

from lol_core.core.geometry import triangular


def leading_directions(columns: Tensor, count: int) -> Tensor:
    """The `count` leading left singular vectors of each matrix, by the smaller of its two Gram matrices: (L, n, N) →
    (L, n, count).

    Directions beyond the rank are zero.
    """
    n, N = columns.shape[-2:]
    wide = n <= N
    values, vectors = torch.linalg.eigh(columns @ columns.mT if wide else columns.mT @ columns)
    values, vectors = values[..., -count:].flip(-1), vectors[..., -count:].flip(-1)
    present = values > 1e-12 * values[..., :1]
    if not wide:
        vectors = columns @ vectors / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()[..., None, :]
    vectors = torch.where(present[..., None, :], vectors, torch.zeros_like(vectors))
    return torch.nn.functional.pad(vectors, (0, count - vectors.shape[-1]))


def leading_basis(U: Tensor, V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of the modules of one shape the `count` leading left and right singular directions of all their ΔW beside and
    above each other: U (B, L, n, r), V (B, L, m, r) → (L, n, count), (L, m, count), in float64.
    """
    left, right = (
        (factor @ triangular(other).mT).permute(1, 2, 0, 3).flatten(2).double() for factor, other in ((U, V), (V, U))
    )
    return leading_directions(left, count), leading_directions(right, count)
