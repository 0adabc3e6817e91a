"""Triplet Transformer: every ΔW as its singular triplets, one token each, and one Transformer over all of them. A
variant of W2T (`w2t`), flat where that has two levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import GL
from lol_core.core.svd import svd_of_product
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.layers import Head
from lol_core.learning.models.registry import register

HEADS = 4
LAYERS = 2
SMALLEST = 1e-5
"""Triplets whose singular value is below this share of the module's largest are left out: their vectors are rounding.
"""


def triplets(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(u, σ, v) of U Vᵀ by QR and a small SVD, in float64: u (…, n, r), σ (…, r) descending, v (…, m, r).

    (u, v) and (−u, −v) are the same triplet; the largest entry of u is made positive. Unique where singular values
    differ.
    """
    u, values, v = svd_of_product(U.double(), V.double())
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    return u * sign, values, v * sign


class TokenHead(nn.Module):
    """A token is a linear image of u, of v and of log σ, plus an embedding of its module; the mean of what the
    Transformer makes of them goes to an MLP.

    Reads the triplets as `TripletTransformer.features` lays them out: for each group of modules (B, L_g, rank, n + m +
    1), flattened.
    """

    def __init__(self, spec: WeightSpec, extra: int, outputs: int, config: ModelConfig):
        super().__init__()
        self.shapes = [(len(indices), spec.rank, n + m + 1) for (n, m), indices in spec.groups]
        width = HEADS * -(-config.width // HEADS)
        self.images = nn.ModuleList(nn.Linear(k - 1, width) for _, _, k in self.shapes)
        self.size = nn.Linear(1, width)
        self.module = nn.Parameter(torch.randn(len(spec.modules), width).mul_(0.1))
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, config.dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.mlp = Head(width + extra, outputs, config.width, config.depth, dropout=config.dropout)

    def latent(self, features: Tensor) -> Tensor:
        tokens, sizes, at, first = [], [], 0, 0
        for shape, image in zip(self.shapes, self.images, strict=True):
            length = shape[0] * shape[1] * shape[2]
            part = features[:, at : at + length].unflatten(1, shape)
            vectors, values = part[..., :-1], part[..., -1:]
            logs = values.clamp(min=torch.finfo(torch.float32).tiny).log()
            tokens.append(
                (image(vectors) + self.size(logs) + self.module[first : first + shape[0], None]).flatten(1, 2)
            )
            sizes.append((values > SMALLEST * values[..., :1, :]).flatten(1))
            at, first = at + length, first + shape[0]
        present = torch.cat(sizes, 1)
        present[:, 0] |= ~present.any(1)  # an adapter that is zero everywhere still has one token
        encoded = self.encoder(torch.cat(tokens, 1), src_key_padding_mask=~present)
        mean = (encoded * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return self.mlp.latent(torch.cat([mean, features[:, at:]], 1))

    def out(self, latent: Tensor) -> Tensor:
        return self.mlp.out(latent)


@register("triplets")
class TripletTransformer(LoLModel):
    """Takes any rank: triplets beyond the rank it was made for, which are the smallest, are dropped."""

    title = "Triplet Transformer"
    symmetry = GL
    any_rank = True
    kept_features = True
    searched = ({"normalize": False},)

    def make_head(self, features: int, outputs: int) -> nn.Module:
        return TokenHead(self.spec, features - self.n_features(), outputs, self.config)

    def n_features(self) -> int:
        return sum(len(indices) * self.spec.rank * (n + m + 1) for (n, m), indices in self.spec.groups)

    def features(self, batch: Batch) -> Tensor:
        """√n u, √m v and σ of each triplet, (B, Σ rank (n + m + 1))."""
        parts = []
        for U, V in zip(batch.U, batch.V, strict=True):
            u, values, v = triplets(U, V)
            rows = torch.cat([u * u.shape[-2] ** 0.5, v * v.shape[-2] ** 0.5, values[..., None, :]], -2).mT[
                ..., : self.spec.rank, :
            ]
            parts.append(torch.nn.functional.pad(rows, (0, 0, 0, self.spec.rank - rows.shape[-2])).flatten(1).to(U))
        return torch.cat(parts, 1)
