"""The symmetry of a LoRA: R ⋆ (U, V) = (UR, VR⁻ᵀ), how to sample R, and how far a function is from respecting it.

The errors are relative, and the library ships them so that any model can be held to its promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec

Group = Literal["gl", "o", "permutation", "scaling"]
GROUPS: tuple[Group, ...] = ("gl", "o", "permutation", "scaling")
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest relative change that rounding may cause in a function that keeps its promise, for κ(R) ≤ 100."""


def promises(symmetry: str, group: Group) -> bool:
    """Whether a model of that `symmetry` ("none", "O", "GL") promises invariance under `group`; permutations lie in
    O(r), and all of them in GL(r).
    """
    return symmetry == "GL" or (symmetry == "O" and group in ("o", "permutation"))


def sample_orthogonal(
    r: int, count: tuple[int, ...] = (), generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Q ∈ O(r) from the Haar measure: (count …, r, r)."""
    Q, R = torch.linalg.qr(torch.randn(*count, r, r, generator=generator, dtype=dtype))
    return Q * torch.diagonal(R, dim1=-2, dim2=-1).sign().unsqueeze(-2)


def sample_gl(
    r: int,
    condition: float = 10.0,
    count: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """R ∈ GL(r) with condition number κ(R) = `condition` exactly: (count …, r, r).

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


def sample_permutation(
    r: int, count: tuple[int, ...] = (), generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Permutation matrices, uniform: (count …, r, r)."""
    order = torch.rand(*count, r, generator=generator).argsort(-1)
    return torch.eye(r, dtype=dtype)[order]


def sample_scaling(
    r: int,
    condition: float = 10.0,
    count: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Diagonal matrices with random signs, their sizes those of `sample_gl` in random order: (count …, r, r).

    Raises ValueError for a condition number below 1.
    """
    if condition < 1:
        raise ValueError(f"A condition number is at least 1; found {condition}.")
    signs = torch.randint(0, 2, (*count, r), generator=generator).to(dtype) * 2 - 1
    half = 0.5 * torch.log(torch.tensor(condition, dtype=dtype))
    exponents = (
        torch.linspace(1, -1, r, dtype=dtype)
        if r > 1
        else 2 * torch.rand(*count, 1, generator=generator, dtype=dtype) - 1
    )
    sizes = (
        torch.exp(exponents * half).expand(*count, r).gather(-1, torch.rand(*count, r, generator=generator).argsort(-1))
    )
    return torch.diag_embed(signs * sizes)


def sample(
    group: Group,
    r: int,
    condition: float = 10.0,
    count: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """R from a group: (count …, r, r). The condition number counts for GL(r) and scalings; the others have κ = 1."""
    if group == "gl":
        return sample_gl(r, condition, count, generator, dtype)
    if group == "scaling":
        return sample_scaling(r, condition, count, generator, dtype)
    return (
        sample_orthogonal(r, count, generator, dtype)
        if group == "o"
        else sample_permutation(r, count, generator, dtype)
    )


def sample_for(
    batch: Batch, group: Group, condition: float = 10.0, generator: torch.Generator | None = None, shared: bool = False
) -> tuple[Tensor, ...]:
    """An independent R for every module of every LoRA: for each group of shapes (B, L_g, r, r), float64, on the batch's
    device.

    shared: one R for all modules of a LoRA that have the same rank.
    Where a module's own rank k is below the padded r, R acts on its k columns and leaves the padding alone.
    """
    if shared:
        of_rank = {k: sample(group, k, condition, (len(batch),), generator) for k in batch.ranks.unique().tolist()}
        return given(batch, of_rank)
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


def given(batch: Batch, of_rank: dict[int, Tensor]) -> tuple[Tensor, ...]:
    """The same R for all modules of one rank, shaped as `sample_for` shapes it. of_rank[k]: (B, k, k) or (k, k);
    modules of other ranks keep the identity.
    """
    drawn = []
    for (_, indices), U in zip(batch.spec.groups, batch.U, strict=True):
        ranks = batch.ranks[:, list(indices)].cpu()
        R = torch.eye(batch.rank, dtype=torch.float64).repeat(*ranks.shape, 1, 1)
        for k, matrix in of_rank.items():
            of_all = torch.eye(batch.rank, dtype=torch.float64).repeat(len(batch), 1, 1)
            of_all[:, :k, :k] = matrix
            R = torch.where((ranks == k)[..., None, None], of_all[:, None], R)
        drawn.append(R.to(U.device))
    return tuple(drawn)


def act_on(R: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """(UR, VR⁻ᵀ), computed in float64 and rounded to the factors' dtype, so that what moves afterwards is the
    function's doing. R: (…, r, r).
    """
    return (U.double() @ R.double()).to(U), torch.linalg.solve(R.double(), V.double().mT).mT.to(V)


def act(R: tuple[Tensor, ...], batch: Batch) -> Batch:
    """R ⋆ batch. R[g]: (B, L_g, r, r)."""
    pairs = [act_on(r, u, v) for r, u, v in zip(R, batch.U, batch.V, strict=True)]
    return replace(batch, U=tuple(u for u, _ in pairs), V=tuple(v for _, v in pairs))


def for_spec(R: tuple[Tensor, ...], own: WeightSpec, spec: WeightSpec, rank: int) -> tuple[Tensor, ...]:
    """R of a batch under `own` for a batch under `spec` of the same LoRAs, whose modules are among its modules; `rank`
    is the latter batch's padded rank.
    """
    of_module = {
        own.modules[i].name: r[:, j, :rank, :rank]
        for (_, indices), r in zip(own.groups, R, strict=True)
        for j, i in enumerate(indices)
    }
    return tuple(torch.stack([of_module[spec.modules[i].name] for i in indices], 1) for _, indices in spec.groups)


def relative_change(after: Tensor, before: Tensor) -> float:
    """‖after − before‖ / ‖before‖ (Frobenius); 0 when both vanish."""
    difference, size = (after - before).double().norm().item(), before.double().norm().item()
    return difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))


def product_change(after: Batch, before: Batch) -> float:
    """‖ΔW′ − ΔW‖ / ‖ΔW‖ over all modules of a batch, by QR of the factors [U′, −U] and [V′, V] in float64: no product
    is formed.
    """
    gap = size = 0.0
    for U, V, U2, V2 in zip(before.U, before.V, after.U, after.V, strict=True):
        u, v, u2, v2 = (t.double() for t in (U, V, U2, V2))
        left, right = (
            torch.linalg.qr(torch.cat([u2, -u], -1), mode="r").R,
            torch.linalg.qr(torch.cat([v2, v], -1), mode="r").R,
        )
        gap += (left @ right.mT).square().sum().item()
        size += ((u.mT @ u) * (v.mT @ v)).sum().item()
    return (gap / size) ** 0.5 if size > 0 else 0.0


@torch.no_grad()
def invariance_error(
    function: Callable[[Batch], Tensor],
    batch: Batch,
    group: Group = "gl",
    condition: float = 10.0,
    trials: int = 8,
    generator: torch.Generator | None = None,
) -> float:
    """Largest ‖f(R ⋆ x) − f(x)‖ / ‖f(x)‖ over `trials` draws of R (equation 1). Zero up to rounding for an invariant
    function.
    """
    before = function(batch)
    draws = (sample_for(batch, group, condition, generator) for _ in range(trials))
    return max(relative_change(function(act(R, batch)), before) for R in draws)


@torch.no_grad()
def equivariance_error(
    function: Callable[[Batch], Batch],
    batch: Batch,
    group: Group = "gl",
    condition: float = 10.0,
    trials: int = 8,
    generator: torch.Generator | None = None,
) -> float:
    """Largest ‖F(R ⋆ x) − R ⋆ F(x)‖ / ‖R ⋆ F(x)‖ over U and V and `trials` draws of R (equation 2), for F that keeps
    the grouping of modules.
    """
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


@dataclass(frozen=True)
class Stage:
    """Factors inside an equivariant model, all modules in one stack: U (B, L, w, r), V (B, L, w, r)."""

    name: str
    U: Tensor
    V: Tensor


@dataclass(frozen=True)
class Carried:
    """What R does at one stage of an equivariant model, over both factors.

    moved: ‖F(R ⋆ x) − F(x)‖ / ‖F(x)‖, how far the stage moved; off: ‖F(R ⋆ x) − R ⋆ F(x)‖ / ‖R ⋆ F(x)‖, zero when R
    goes through (equation 2); product: how far the products U Vᵀ moved, zero where R leaves. before, after: the stage
    of x and of R ⋆ x; expected: R ⋆ F(x).
    """

    name: str
    moved: float
    off: float
    product: float
    before: Stage
    after: Stage
    expected: Stage


@torch.no_grad()
def carried(stages: Callable[[Batch], Sequence[Stage]], batch: Batch, R: tuple[Tensor, ...]) -> list[Carried]:
    """R followed through the equivariant stages of a model, on one batch. R[g]: (B, L_g, r, r); stages stack the groups
    in the same order.
    """
    stacked = torch.cat(R, 1)
    found = []
    for before, after in zip(stages(batch), stages(act(R, batch)), strict=True):
        expected = Stage(before.name, *act_on(stacked, before.U, before.V))
        one, two, three = (torch.cat([stage.U.flatten(), stage.V.flatten()]) for stage in (before, after, expected))
        product = relative_change(after.U @ after.V.mT, before.U @ before.V.mT)
        found.append(
            Carried(
                before.name, relative_change(two, one), relative_change(two, three), product, before, after, expected
            )
        )
    return found
