"""W2T: every ΔW as its singular triplets; a Transformer over the ranks of a module, then one over the modules (arXiv
2603.15990). Ported from w2t_models.py of github.com/xiaolonghan2000/Weight2Token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.learning.models.apart import ApartConfig, ApartModel
from lol_core.learning.models.registry import register
from lol_core.learning.models.triplets import SMALLEST, triplets

HEADS, RANK_LAYERS, MODULE_LAYERS, QUERIES = 4, 1, 2, 4
PRIOR = 0.5
"""Weight of log(1 + σ) in the pooling over ranks."""


@dataclass(frozen=True)
class W2TConfig(ApartConfig):
    """hidden: width of tokens; width: of the last hidden layer. augment: with what chance a batch of training has its
    ranks permuted, and signs of its triplets drawn anew.
    """

    hidden: int = 128
    augment: float = 0.5


class Projector(nn.Module):
    """u, v and σ of one module's ranks to tokens: (B, r, n), (B, r, m), (B, r) → (B, r, hidden). σ, standardised over
    the ranks, scales and shifts them, by nothing at the start.
    """

    def __init__(self, n: int, m: int, hidden: int, dropout: float):
        super().__init__()
        self.u, self.v = (nn.Sequential(nn.Linear(k, hidden), nn.LayerNorm(hidden), nn.ReLU()) for k in (n, m))
        self.fuse = nn.Linear(2 * hidden, hidden)
        self.film = nn.Sequential(nn.Linear(1, hidden), nn.GELU(), nn.Linear(hidden, 2 * hidden))
        self.strength = nn.Parameter(torch.zeros(()))
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout))

    def forward(self, u: Tensor, v: Tensor, sigma: Tensor, present: Tensor) -> Tensor:
        scale, shift = self.film(_standardised(sigma, present)[..., None]).chunk(2, -1)
        x = self.fuse(torch.cat([self.u(u), self.v(v)], -1))
        return self.out(x * (1 + self.strength * scale.tanh()) + self.strength * shift)


def _standardised(sigma: Tensor, present: Tensor) -> Tensor:
    """log(1 + σ) over the ranks that are there: (B, r)."""
    logs = sigma.log1p() * present
    count = present.sum(1, keepdim=True).clamp(min=1)
    centred = (logs - logs.sum(1, keepdim=True) / count) * present
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + 1e-6)


class RankPool(nn.Module):
    """Four learned queries over the ranks, whose attention leans to large σ: (B, r, hidden) → (B, hidden)."""

    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(QUERIES, hidden).mul_(0.02))
        self.drop = nn.Dropout(dropout)
        self.out = nn.Sequential(nn.Linear(QUERIES * hidden, hidden), nn.LayerNorm(hidden), nn.GELU())

    def forward(self, x: Tensor, sigma: Tensor, present: Tensor) -> Tensor:
        logits = self.queries @ x.mT / x.shape[-1] ** 0.5 + PRIOR * sigma.log1p()[:, None]
        weights = self.drop(logits.masked_fill(~present[:, None], float("-inf")).softmax(-1))
        pooled: Tensor = self.out((weights @ x).flatten(1))
        return pooled


def _encoder(hidden: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(hidden, HEADS, 4 * hidden, dropout, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class TwoLevels(nn.Module):
    """Reads the triplets as `W2T.features` lays them out: for each group (B, L_g, rank, n + m + 1), flattened."""

    def __init__(self, spec: WeightSpec, extra: int, outputs: int, config: W2TConfig):
        super().__init__()
        hidden, self.augment = config.hidden, config.augment
        self.shapes = [(len(indices), spec.rank, n, m) for (n, m), indices in spec.groups]
        self.projectors = nn.ModuleList(
            Projector(n, m, hidden, config.dropout) for count, _, n, m in self.shapes for _ in range(count)
        )
        names = [spec.modules[i].name for _, indices in spec.groups for i in indices]
        self.layer_numbers = _numbers([name.rpartition(".")[0] for name in names])
        self.kind_numbers = _numbers([name.rpartition(".")[2] for name in names])
        self.layers = nn.Embedding(1 + max(self.layer_numbers), hidden)
        self.kinds = nn.Embedding(1 + max(self.kind_numbers), hidden)
        self.over_ranks = _encoder(hidden, RANK_LAYERS, config.dropout)
        self.pool = RankPool(hidden, config.dropout)
        self.norm = nn.LayerNorm(hidden)
        self.over_modules = _encoder(hidden, MODULE_LAYERS, config.dropout)
        self.score = nn.Sequential(
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, 1, bias=False)
        )
        self.last = nn.Sequential(nn.Linear(hidden + extra, config.width), nn.LayerNorm(config.width), nn.ReLU())
        self.out = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.width, outputs))

    def latent(self, features: Tensor) -> Tensor:
        permuted, signed = (self.training and bool(torch.rand(()) < self.augment) for _ in range(2))
        tokens, sigmas, masks, at = list[Tensor](), list[Tensor](), list[Tensor](), 0
        for count, rank, n, m in self.shapes:
            size = count * rank * (n + m + 1)
            part = features[:, at : at + size].unflatten(1, (count, rank, n + m + 1))
            for i in range(count):
                rows = part[:, i]
                rows = rows[:, torch.randperm(rank, device=rows.device)] if permuted else rows
                u, v, sigma = rows[..., :n], rows[..., n:-1], rows[..., -1]
                if signed:
                    sign = torch.randint(0, 2, (len(rows), rank, 1), device=rows.device).to(u) * 2 - 1
                    u, v = u * sign, v * sign
                largest = sigma.amax(1, keepdim=True)
                present = (sigma > SMALLEST * largest) | ((largest == 0) & (sigma == largest))
                tokens.append(self.projectors[len(tokens)](u, v, sigma, present))
                sigmas.append(sigma)
                masks.append(present)
            at += size
        ranks, sigma, present = (torch.stack(parts, 1).flatten(0, 1) for parts in (tokens, sigmas, masks))
        pooled = self.pool(self.over_ranks(ranks, src_key_padding_mask=~present), sigma, present)
        places = self.layers.weight[self.layer_numbers] + self.kinds.weight[self.kind_numbers]
        x = self.over_modules(self.norm(pooled.unflatten(0, (len(features), -1)) + places))
        pooled = (self.score(x).softmax(1) * x).sum(1)
        latent: Tensor = self.last(torch.cat([pooled, features[:, at:]], 1))
        return latent


def _numbers(names: Sequence[str]) -> list[int]:
    """Each name's number among the distinct ones, in the order in which they come."""
    distinct = list(dict.fromkeys(names))
    return [distinct.index(name) for name in names]


@register("w2t")
class W2T(ApartModel):
    """Takes any rank: triplets beyond the rank it was made for, which are the smallest, are dropped. Against the
    authors' code: triplets that are rounding are masked, and their warm-up of projectors alone is one of everything
    (`experiments.authors`).
    """

    Config = W2TConfig
    config: W2TConfig
    title = "W2T"
    symmetry = GL
    any_rank = True
    kept_features = True
    searched = ({"normalize": False},)

    def make_head(self, features: int, outputs: int) -> nn.Module:
        return TwoLevels(self.spec, features - self.n_features(), outputs, self.config)

    def n_features(self) -> int:
        return sum(len(indices) * self.spec.rank * (n + m + 1) for (n, m), indices in self.spec.groups)

    def features(self, batch: Batch) -> Tensor:
        """u, v (of norm 1) and σ of each triplet: (B, Σ rank (n + m + 1)); zeros where the vectors are rounding."""
        parts = []
        for U, V in zip(batch.U, batch.V, strict=True):
            u, sigma, v = triplets(U, V)
            known = (sigma > SMALLEST * sigma[..., :1])[..., None, :]
            rows = torch.cat([u * known, v * known, sigma[..., None, :]], -2).mT[..., : self.spec.rank, :]
            parts.append(torch.nn.functional.pad(rows, (0, 0, 0, self.spec.rank - rows.shape[-2])).flatten(1).to(U))
        return torch.cat(parts, 1)
