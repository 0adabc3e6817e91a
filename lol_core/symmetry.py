"""The symmetry of a LoRA: R ⋆ (U, V) = (UR, VR⁻ᵀ), how to sample R, and how far a function is from respecting it.

The errors are relative, and the library ships them so that any model can be held to its promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lol_core.batches import Batch

Group = Literal["gl", "o"]
GROUPS: tuple[Group, ...] = ("gl", "o")
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest relative change that rounding may cause in a function that keeps its promise, for κ(R) ≤ 100."""


def promises(symmetry: str, group: Group) -> bool:
    """Whether a model of that `symmetry` ("none", "O", "GL") promises invariance under `group`; O(r) is a subgroup of GL(r)."""
    return symmetry == "GL" or (symmetry == "O" and group == "o")


def sample_orthogonal(r: int, count: tuple[int, ...] = (), generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Q ∈ O(r) from the Haar measure: (*count, r, r)."""
    Q, R = torch.linalg.qr(torch.randn(*count, r, r, generator=generator, dtype=dtype))
    return Q * torch.diagonal(R, dim1=-2, dim2=-1).sign().unsqueeze(-2)


def sample_gl(
    r: int, condition: float = 10.0, count: tuple[int, ...] = (), generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """R ∈ GL(r) with condition number κ(R) = `condition` exactly: (*count, r, r).

    R = Q₁ diag(s) Q₂ᵀ with Haar Q₁, Q₂ and singular values s evenly spaced in logarithm from √κ to 1/√κ.
    For r = 1, where κ is always 1, R is ±κ^(u/2) with u uniform in [−1, 1].
    Raises ValueError for a condition number below 1.
    """
    if condition < 1:
        raise ValueError(f"A condition number is at least 1; found {condition}.")
    left, right = (sample_orthogonal(r, count, generator, dtype) for _ in range(2))
    half = 0.5 * torch.log(torch.tensor(condition, dtype=dtype))
    if r == 1:
        return left * torch.exp(half * (2 * torch.rand(*count, 1, 1, generator=generator, dtype=dtype) - 1))
    values = torch.exp(torch.linspace(1, -1, r, dtype=dtype) * half)
    return left * values @ right.mT


def sample(
    group: Group, r: int, condition: float = 10.0, count: tuple[int, ...] = (), generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """R from GL(r) with the given condition number ("gl") or from O(r) ("o"): (*count, r, r)."""
    return sample_gl(r, condition, count, generator, dtype) if group == "gl" else sample_orthogonal(r, count, generator, dtype)


def sample_for(batch: Batch, group: Group, condition: float = 10.0, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
    """An independent R for every module of every LoRA: for each group of shapes (B, L_g, r, r), float64, on the batch's device.

    Where a module's own rank k is below the padded r, R acts on its k columns and leaves the padding alone.
    """
    drawn = []
    for (_, indices), U in zip(batch.spec.groups, batch.U, strict=True):
        ranks = batch.ranks[:, list(indices)].cpu()
        R = torch.eye(batch.rank, dtype=torch.float64).repeat(*ranks.shape, 1, 1)
        for k in ranks.unique().tolist():
            members = ranks == k
            block = R[members]
            block[:, :k, :k] = sample(group, k, condition, (int(members.sum()),), generator)
            R[members] = block
        drawn.append(R.to(U.device))
    return tuple(drawn)


def act(R: tuple[Tensor, ...], batch: Batch) -> Batch:
    """R ⋆ batch, computed in float64 and rounded to the batch's dtype, so that what moves afterwards is the function's doing. R[g]: (B, L_g, r, r)."""
    U = tuple((u.double() @ r.double()).to(u) for u, r in zip(batch.U, R, strict=True))
    V = tuple(torch.linalg.solve(r.double(), v.double().mT).mT.to(v) for v, r in zip(batch.V, R, strict=True))
    return replace(batch, U=U, V=V)


def relative_change(after: Tensor, before: Tensor) -> float:
    """‖after − before‖ / ‖before‖ (Frobenius); 0 when both vanish."""
    difference, size = (after - before).double().norm().item(), before.double().norm().item()
    return difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))


def product_change(after: Batch, before: Batch) -> float:
    """‖ΔW′ − ΔW‖ / ‖ΔW‖ over all modules of a batch, by QR of the factors [U′, −U] and [V′, V] in float64: no product is formed."""
    gap = size = 0.0
    for U, V, U2, V2 in zip(before.U, before.V, after.U, after.V, strict=True):
        u, v, u2, v2 = (t.double() for t in (U, V, U2, V2))
        left, right = torch.linalg.qr(torch.cat([u2, -u], -1), mode="r").R, torch.linalg.qr(torch.cat([v2, v], -1), mode="r").R
        gap += (left @ right.mT).square().sum().item()
        size += ((u.mT @ u) * (v.mT @ v)).sum().item()
    return (gap / size) ** 0.5 if size > 0 else 0.0


@torch.no_grad()
def invariance_error(
    function: Callable[[Batch], Tensor], batch: Batch, group: Group = "gl", condition: float = 10.0, trials: int = 8, generator: torch.Generator | None = None
) -> float:
    """Largest ‖f(R ⋆ x) − f(x)‖ / ‖f(x)‖ over `trials` draws of R (equation 1). Zero up to rounding for an invariant function."""
    before = function(batch)
    draws = (sample_for(batch, group, condition, generator) for _ in range(trials))
    return max(relative_change(function(act(R, batch)), before) for R in draws)


@torch.no_grad()
def equivariance_error(
    function: Callable[[Batch], Batch], batch: Batch, group: Group = "gl", condition: float = 10.0, trials: int = 8, generator: torch.Generator | None = None
) -> float:
    """Largest ‖F(R ⋆ x) − R ⋆ F(x)‖ / ‖R ⋆ F(x)‖ over U and V and `trials` draws of R (equation 2), for F that keeps the grouping of modules."""
    worst = 0.0
    before = function(batch)
    for _ in range(trials):
        R = sample_for(batch, group, condition, generator)
        moved, expected = function(act(R, batch)), act(R, before)
        for side in ("U", "V"):
            ours = torch.cat([t.flatten() for t in getattr(moved, side)])
            theirs = torch.cat([t.flatten() for t in getattr(expected, side)])
            worst = max(worst, relative_change(ours, theirs))
    return worst
