"""Product-kernel ridge regression: a baseline on the exact ⟨ΔW₁, ΔW₂⟩ that learns no features."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec
from lol_core.learning.models.gram import gram, log_norms

ALPHAS = tuple(10.0**k for k in range(-4, 3))


def kernels(batch: Batch, others: Batch | None = None) -> dict[str, np.ndarray]:
    """Name → kernel matrix: of the updates, and of every module's direction (each ΔW divided by its norm).

    (B, B) for a batch; with `others` (B + C, B), their rows below. The diagonal of the first B rows has mean 1.
    """
    unit = directions(batch)
    matrices = {"updates": gram(batch), "directions": gram(unit)}
    below = (
        {}
        if others is None
        else {"updates": gram(others, others=batch), "directions": gram(directions(others), others=unit)}
    )
    sizes = {name: np.diag(matrix).mean() for name, matrix in matrices.items()}
    return {
        name: np.concatenate([matrix, *([below[name]] if below else [])]) / sizes[name]
        for name, matrix in matrices.items()
    }


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
    sizes = [module.n if side is Side.COLUMNS else module.m for module in batch.spec.modules]
    modules = tuple(
        replace(module, n=k, m=k, magnitude=False) for module, k in zip(batch.spec.modules, sizes, strict=True)
    )
    spec = WeightSpec(modules, batch.spec.mixed_ranks)
    factors = tuple(torch.stack([of_module[index] for index in indices], 1) for _, indices in spec.groups)
    return Batch(spec, factors, factors, batch.ranks)


def _root(gram: Tensor) -> Tensor:
    """X with X Xᵀ = a Gram matrix: (…, r, r)."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).to(gram)


def kernel_ridge(
    products: dict[str, np.ndarray], known: np.ndarray, validation: np.ndarray, unknown: np.ndarray, *, y: np.ndarray
) -> tuple[np.ndarray, dict[str, float | str]]:
    """Ridge on the kernel and α with the lowest squared error on validation LoRAs, fitted to the `known`.

    known, validation, unknown: positions; y: (B, k) numbers (or 0/1). Returns predictions (unknown, k) and what was
    chosen.
    """
    from sklearn.kernel_ridge import KernelRidge  # takes a second to import

    mean = y[known].mean(0)
    best: tuple[float, str, float] = (float("inf"), "", 0.0)
    for name, matrix in products.items():
        for alpha in ALPHAS:
            ridge = KernelRidge(alpha=alpha, kernel="precomputed").fit(matrix[np.ix_(known, known)], y[known] - mean)
            error = float(np.square(ridge.predict(matrix[np.ix_(validation, known)]) + mean - y[validation]).mean())
            best = min(best, (error, name, alpha))
    _, name, alpha = best
    ridge = KernelRidge(alpha=alpha, kernel="precomputed").fit(products[name][np.ix_(known, known)], y[known] - mean)
    return ridge.predict(products[name][np.ix_(unknown, known)]) + mean, {"kernel": name, "alpha": alpha}
