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

ROUNDING = 1e-14
"""Share of ‖ΔW‖² + ‖ΔW′‖² that their difference's square is known to."""


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

    def __getitem__(self, index: Tensor) -> FixedRank:
        """Some of the LoRAs, by their places."""
        P, sigma, Q = (tuple(part[index] for part in parts) for parts in (self.P, self.sigma, self.Q))
        return FixedRank(self.like[index], P, sigma, Q)

    def plus(self, change: Tangent) -> Batch:
        """ΔW + A Qᵀ + P Bᵀ itself, of twice the rank, in the dtype of the batch that it began with."""
        U = [torch.cat([P * s[..., None, :] + A, P], -1) for P, s, A in zip(self.P, self.sigma, change.A, strict=True)]
        V = [torch.cat(pair, -1) for pair in zip(self.Q, change.B, strict=True)]
        left, right = (tuple(factor.to(self.like.dtype) for factor in of) for of in (U, V))
        return replace(self.like, U=left, V=right, ranks=2 * self.like.ranks)

    def step(self, change: Tangent) -> FixedRank:
        """The nearest point of the same ranks to this one plus the change."""
        return Line.of(self, change).at(torch.ones(len(self.like), dtype=torch.float64))

    def distances(self, other: FixedRank) -> Tensor:
        """‖ΔW − ΔW′‖ of every module, in the order of the specification: (B, L). By inner products; what is nearer
        than a 10⁷th of ‖ΔW‖ cannot be told from it and is at distance 0.
        """
        gaps = self.sigma[0].new_zeros(len(self.like), len(self.like.spec.modules))
        of_groups = zip(self.like.spec.groups, self.P, self.sigma, self.Q, other.P, other.sigma, other.Q, strict=True)
        for (_, indices), P, sigma, Q, P2, sigma2, Q2 in of_groups:
            sizes = sigma.square().sum(-1) + sigma2.square().sum(-1)
            both = ((P.mT @ P2) * (Q.mT @ Q2) * sigma[..., :, None] * sigma2[..., None, :]).sum((-2, -1))
            square = sizes - 2 * both
            gaps[:, list(indices)] = torch.where(square > ROUNDING * sizes, square, 0.0).sqrt()
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


@dataclass(frozen=True)
class Line:
    """Points along a change: the factors [P, A] and [Q, B] are decomposed once, as Q R, for all of them."""

    start: FixedRank
    left: tuple[tuple[Tensor, Tensor], ...]
    right: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, start: FixedRank, change: Tangent) -> Line:
        left, right = (
            tuple(tuple(torch.linalg.qr(torch.cat(pair, -1))) for pair in zip(sides, others, strict=True))
            for sides, others in ((start.P, change.A), (start.Q, change.B))
        )
        return cls(start, left, right)

    def at(self, length: Tensor) -> FixedRank:
        """The nearest point of the same ranks to the start plus so much of the change, for each LoRA: (B,)."""
        triplets, t = [], length[:, None, None, None]
        for sigma, (Q1, R1), (Q2, R2) in zip(self.start.sigma, self.left, self.right, strict=True):
            r = sigma.shape[-1]
            # ΔW + t (A Qᵀ + P Bᵀ) = [P σ + t A, t P] [Q, B]ᵀ
            along = torch.cat([R1[..., :r] * sigma[..., None, :] + t * R1[..., r:], t * R1[..., :r]], -1)
            X, values, Yh = torch.linalg.svd(along @ R2.mT, full_matrices=False)
            triplets.append((Q1 @ X[..., :r], values[..., :r], Q2 @ Yh.mT[..., :r]))
        return FixedRank(self.start.like, *_sides(triplets))._cut()


def norm_of(parts: Sequence[Tensor]) -> Tensor:
    """The norm of what each LoRA has in all parts: (B, …) each → (B,)."""
    return torch.stack([part.flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()


def _sides(triplets: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(zip(*triplets, strict=True))


def _columns(part: Tensor, count: int) -> Tensor:
    """The first columns, filled up by zeros where there are fewer."""
    kept = part[..., :count]
    return torch.nn.functional.pad(kept, (0, count - kept.shape[-1]))
