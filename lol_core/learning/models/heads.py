"""Heads that read GL-net's products module by module, in place of one MLP of all of them: both from the authors'
code, neither in the paper.

Features: (B, L k + extra), the k numbers of each of L modules, then what is no module's (DoRA magnitudes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ATTENTION_HEADS = 4
LAYERS = 2


class PerModuleHead(nn.Module):
    """One Linear for all modules, LayerNorm, ReLU; what comes of the modules side by side through another; then the
    outputs. Modules are not averaged ("InvariantHead2").
    """

    def __init__(self, modules: int, numbers: int, extra: int, outputs: int, *, width: int, dropout: float):
        super().__init__()
        self.modules_, self.numbers = modules, numbers
        self.each = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(numbers, width), nn.LayerNorm(width), nn.Dropout(dropout), nn.ReLU()
        )
        self.together = nn.Sequential(
            nn.Linear(modules * width + extra, width), nn.LayerNorm(width), nn.Dropout(dropout), nn.ReLU()
        )
        self.out = nn.Linear(width, outputs)

    def latent(self, features: Tensor) -> Tensor:
        products, extra = _apart(features, self.modules_, self.numbers)
        return self.together(torch.cat([self.each(products).flatten(1), extra], 1))


class TransformerHead(nn.Module):
    """A token for each module, a Linear of its numbers plus an embedding that is learnt, and one more; two pre-norm
    layers; the last state of the one more. The authors define it and do not use it; four attention heads, a
    feed-forward of four widths and the embedding are our choice.
    """

    def __init__(self, modules: int, numbers: int, extra: int, outputs: int, *, width: int, dropout: float):
        super().__init__()
        self.modules_, self.numbers = modules, numbers
        size = ATTENTION_HEADS * -(-width // ATTENTION_HEADS)
        self.token = nn.Linear(numbers, size)
        self.place = nn.Parameter(torch.randn(modules + 1, size).mul_(0.02))
        layer = nn.TransformerEncoderLayer(size, ATTENTION_HEADS, 4 * size, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(size), enable_nested_tensor=False)
        self.together = nn.Linear(size + extra, width)
        self.out = nn.Linear(width, outputs)

    def latent(self, features: Tensor) -> Tensor:
        products, extra = _apart(features, self.modules_, self.numbers)
        tokens = torch.cat([self.place[:1].expand(len(products), 1, -1), self.token(products) + self.place[1:]], 1)
        return torch.relu(self.together(torch.cat([self.encoder(tokens)[:, 0], extra], 1)))


def _apart(features: Tensor, modules: int, numbers: int) -> tuple[Tensor, Tensor]:
    """(B, L, k), (B, extra)."""
    products = features[:, : modules * numbers].unflatten(1, (modules, numbers))
    return products, features[:, modules * numbers :]
