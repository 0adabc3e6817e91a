"""The symmetry of a LoRA: R ⋆ (U, V) = (UR, VR⁻ᵀ), how to sample R, and how far a function is from respecting it.

The errors are relative, and the library ships them so that any model can be held to its promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL, Group
from lol_core.core.lora import LoRA

TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest relative change that rounding may cause in a function that keeps its promise, for κ(R) ≤ 100."""


def promises(symmetry: Group | None, group: Group) -> bool:
    """Whether a model of that `symmetry` (None for none) promises invariance under `group`."""
    return symmetry is not None and symmetry.includes(group)


def sample_for(
    batch: Batch,
    group: Group = GL,
    *,
    condition: float = 10.0,
    generator: torch.Generator | None = None,
    shared: bool = False,
) -> tuple[Tensor, ...]:
    """An independent R for every module of every LoRA: for each group of shapes (B, L_g, r, r), float64, on the batch's
    device.

    shared: one R for all modules of a LoRA that have the same rank.
    Where a module's own rank k is below the padded r, R acts on its k columns and leaves the padding alone.
    """
    if shared:
        of_rank = {
            k: group.sample(k, condition=condition, count=(len(batch),), generator=generator)
            for k in batch.ranks.unique().tolist()
        }
        return given(batch, of_rank)
    drawn = []
    for (_, indices), U in zip(batch.spec.groups, batch.U, strict=True):
        ranks = batch.ranks[:, list(indices)].cpu()
        R = torch.eye(batch.rank, dtype=torch.float64).repeat(*ranks.shape, 1, 1)
        for k in ranks.unique().tolist():
            members = ranks == k
            block = R[members]
            count = (int(members.sum()),)
            block[:, :k, :k] = group.sample(k, condition=condition, count=count, generator=generator)
            R[members] = block
        drawn.append(R.to(U.device))
    return tuple(drawn)


def sample_own(
    loras: Sequence[LoRA], batch: Batch, *, condition: float = 10.0, generator: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """An independent element of each module's own group, the one that acts on what its file stores, as it moves the
    pair that models stack (`Parametrisation.on_pair`): shaped as `sample_for` shapes it. loras: those of the batch.
    """
    drawn = []
    for (_, indices), U in zip(batch.spec.groups, batch.U, strict=True):
        R = torch.eye(batch.rank, dtype=torch.float64).repeat(len(loras), len(indices), 1, 1)
        for b, lora in enumerate(loras):
            for j, i in enumerate(indices):
                of = lora[batch.spec.modules[i].name].parametrisation
                S = of.on_pair(of.group.sample(condition=condition, generator=generator))
                R[b, j, : len(S), : len(S)] = S
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
    group: Group = GL,
    *,
    condition: float = 10.0,
    trials: int = 8,
    generator: torch.Generator | None = None,
) -> float:
    """Largest ‖f(R ⋆ x) − f(x)‖ / ‖f(x)‖ over `trials` draws of R (equation 1). Zero up to rounding for an invariant
    function.
    """
    before = function(batch)
    draws = (sample_for(batch, group, condition=condition, generator=generator) for _ in range(trials))
    return max(relative_change(function(act(R, batch)), before) for R in draws)


@torch.no_grad()
def equivariance_error(
    function: Callable[[Batch], Batch],
    batch: Batch,
    group: Group = GL,
    *,
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
        R = sample_for(batch, group, condition=condition, generator=generator)
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
    steps = []
    for before, after in zip(stages(batch), stages(act(R, batch)), strict=True):
        expected = Stage(before.name, *act_on(stacked, before.U, before.V))
        one, two, three = (torch.cat([stage.U.flatten(), stage.V.flatten()]) for stage in (before, after, expected))
        product = relative_change(after.U @ after.V.mT, before.U @ before.V.mT)
        steps.append(
            Carried(
                before.name, relative_change(two, one), relative_change(two, three), product, before, after, expected
            )
        )
    return steps
