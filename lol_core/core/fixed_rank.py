"""The updates of a batch as points on manifolds of matrices of fixed rank, where R is nowhere: ΔW = P diag(σ) Qᵀ.

A step leaves a point along a tangent vector A Qᵀ + P Bᵀ with Bᵀ Q = 0 and comes back to the manifold by a truncated SVD
of the thin factors [P σ + A, P] and [Q, B] (Vandereycken 2013; Absil and Oseledets 2015): no n × m matrix is formed.
All is in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.core.svd import NEGLIGIBLE, svd_of_product


@dataclass(frozen=True)
class Tangent:
    """A change of every module of every LoRA, A Qᵀ + P Bᵀ. A[g]: (B, L_g, n, r), B[g]: (B, L_g, m, r)."""

    A: tuple[Tensor, ...]
    B: tuple[Tensor, ...]

    @property
    def norm(self) -> Tensor:
        """Of each LoRA, over all modules: (B,)."""
        return norm_of([*self.A, *self.B])

    def times(self, factor: Tensor) -> Tangent:
        """factor: (B,)."""
        by = factor[:, None, None, None]
        return Tangent(tuple(a * by for a in self.A), tuple(b * by for b in self.B))


@dataclass(frozen=True)
class FixedRank:
    """B LoRAs as singular triplets. P[g]: (B, L_g, n, r) and Q[g]: (B, L_g, m, r) with orthonormal columns, sigma[g]:
    (B, L_g, r), descending; ranks: (B, L). Columns beyond a module's own rank, and those whose singular value is
    negligible, are 0, and no tangent vector moves them.
    """

    like: Batch
    P: tuple[Tensor, ...]
    sigma: tuple[Tensor, ...]
    Q: tuple[Tensor, ...]

    @classmethod
    def of(cls, batch: Batch) -> FixedRank:
        triplets = [svd_of_product(U.double(), V.double()) for U, V in zip(batch.U, batch.V, strict=True)]
        return cls(batch, *_sides(triplets))._cut()

    @property
    def norm(self) -> Tensor:
        """‖ΔW‖ of each LoRA, over all modules: (B,)."""
        return norm_of(self.sigma)

    def project(self, along: Sequence[tuple[Tensor, Tensor]]) -> Tangent:
        """The tangent part of a matrix G for each module, given by what it does: (G Q, Gᵀ P) for each group."""
        A, B = [], []
        for (of_Q, of_P), Q in zip(along, self.Q, strict=True):
            A.append(of_Q)
            B.append(of_P - Q @ (Q.mT @ of_P))
        return Tangent(tuple(A), tuple(B))

    def step(self, change: Tangent) -> FixedRank:
        """The nearest point of the same ranks to this one plus the change."""
        triplets = []
        for P, sigma, Q, A, B in zip(self.P, self.sigma, self.Q, change.A, change.B, strict=True):
            left, right = torch.cat([P * sigma[..., None, :] + A, P], -1), torch.cat([Q, B], -1)
            triplets.append(svd_of_product(left, right))
        return FixedRank(self.like, *_sides(triplets))._cut()

    def distances(self, other: FixedRank) -> Tensor:
        """‖ΔW − ΔW′‖ of every module, in the order of the specification: (B, L)."""
        gaps = self.sigma[0].new_zeros(len(self.like), len(self.like.spec.modules))
        of_groups = zip(self.like.spec.groups, self.P, self.sigma, self.Q, other.P, other.sigma, other.Q, strict=True)
        for (_, indices), P, sigma, Q, P2, sigma2, Q2 in of_groups:
            left = torch.cat([P * sigma[..., None, :], -P2 * sigma2[..., None, :]], -1)
            R, S = (torch.linalg.qr(side, mode="r").R for side in (left, torch.cat([Q, Q2], -1)))
            gaps[:, list(indices)] = (R @ S.mT).flatten(-2).norm(dim=-1)
        return gaps

    def batch(self) -> Batch:
        """The balanced factors U = P √σ, V = Q √σ, in the dtype of the batch that it began with."""
        roots = [sigma.sqrt()[..., None, :] for sigma in self.sigma]
        U = tuple((P * root).to(self.like.dtype) for P, root in zip(self.P, roots, strict=True))
        V = tuple((Q * root).to(self.like.dtype) for Q, root in zip(self.Q, roots, strict=True))
        return replace(self.like, U=U, V=V)

    def _cut(self) -> FixedRank:
        P, sigma, Q = [], [], []
        place = torch.arange(self.like.rank, device=self.like.device)
        for (_, indices), p, s, q in zip(self.like.spec.groups, self.P, self.sigma, self.Q, strict=True):
            p, s, q = (_columns(part, self.like.rank) for part in (p, s, q))
            own = place < self.like.ranks[:, list(indices), None]
            kept = (own & (s > NEGLIGIBLE * s[..., :1])).to(s)
            P.append(p * kept[..., None, :])
            sigma.append(s * kept)
            Q.append(q * kept[..., None, :])
        return replace(self, P=tuple(P), sigma=tuple(sigma), Q=tuple(Q))


def norm_of(parts: Sequence[Tensor]) -> Tensor:
    """The norm of what each LoRA has in all parts: (B, …) each → (B,)."""
    return torch.stack([part.flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()


def _sides(triplets: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(zip(*triplets, strict=True))


def _columns(part: Tensor, count: int) -> Tensor:
    """The first columns, filled up by zeros where there are fewer."""
    kept = part[..., :count]
    return torch.nn.functional.pad(kept, (0, count - kept.shape[-1]))
