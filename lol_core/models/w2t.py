"""W2T: every ΔW as its singular triplets, one token each, and a Transformer over the tokens (arXiv 2603.15990)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lol_core.batches import Batch, WeightSpec
from lol_core.models.base import LoLModel, ModelConfig

HEADS = 4
LAYERS = 2
SMALLEST = 1e-5
"""Triplets whose singular value is below this share of the module's largest are left out: their vectors are rounding."""


def triplets(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(u, σ, v) of U Vᵀ by QR and a small SVD, in float64: u (…, n, r), σ (…, r) descending, v (…, m, r).

    (u, v) and (−u, −v) are the same triplet; the largest entry of u is made positive. Unique where singular values differ.
    """
    (Q_U, R_U), (Q_V, R_V) = (torch.linalg.qr(factor.double()) for factor in (U, V))
    left, values, right = torch.linalg.svd(R_U @ R_V.mT, full_matrices=False)
    u, v = Q_U @ left, Q_V @ right.mT
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    return u * sign, values, v * sign


class W2T(LoLModel):
    """A token is a linear image of u, of v and of log σ, plus an embedding of its module; the mean of the Transformer's outputs goes to the head."""

    title = "W2T"
    symmetry = "GL"
    any_rank = True

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__(spec, outputs, config)
        width = self.n_features()
        self.left = nn.ModuleList(nn.Linear(n, width) for (n, _), _ in spec.groups)
        self.right = nn.ModuleList(nn.Linear(m, width) for (_, m), _ in spec.groups)
        self.size = nn.Linear(1, width)
        self.module = nn.Parameter(0.1 * torch.randn(len(spec.modules), width))
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, config.dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def n_features(self) -> int:
        return HEADS * -(-self.config.width // HEADS)

    def features(self, batch: Batch) -> Tensor:
        tokens, sizes, first = [], [], 0
        for g, (U, V) in enumerate(zip(batch.U, batch.V, strict=True)):
            u, values, v = triplets(U, V)
            module = self.module[first : first + U.shape[1], None]
            first += U.shape[1]
            logs = values.clamp(min=torch.finfo(torch.float32).tiny).log()
            images = self.left[g]((u * u.shape[-2] ** 0.5).mT.to(U)) + self.right[g]((v * v.shape[-2] ** 0.5).mT.to(U))
            tokens.append((images + self.size(logs[..., None].to(U)) + module).flatten(1, 2))
            sizes.append((values > SMALLEST * values[..., :1]).flatten(1))
        present = torch.cat(sizes, 1)
        present[:, 0] |= ~present.any(1)  # an adapter that is zero everywhere still has one token
        found = self.encoder(torch.cat(tokens, 1), src_key_padding_mask=~present)
        return (found * present[..., None]).sum(1) / present.sum(1, keepdim=True)
