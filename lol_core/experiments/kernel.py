"""Product-kernel ridge regression: a baseline on the exact ⟨ΔW₁, ΔW₂⟩ that learns no features."""

from __future__ import annotations

import numpy as np

from lol_core.core.batch import Batch
from lol_core.learning.models.gram import directions, gram

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
