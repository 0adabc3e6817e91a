"""Many small tensors as a few larger ones: what PyTorch does before it computes takes longer than a small factor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CACHED = 2**17
"""Numbers of a stack: a megabyte in float64, so that it stays in the processor's cache."""
SMALL = 2**13
"""Numbers of a tensor below which a look at them takes longer to call than to copy them."""


def stacked(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Tensors that lie alike in memory as (L, …), of so many at a time as stay in the processor's cache in all the
    forms that they take, matrices each in the order in which it lies.
    """
    first = tensors[0]
    size, turned = max(1, CACHED // max(1, first.numel())), first.ndim == 2 and first.stride(0) == 1
    for start in range(0, len(tensors), size):
        some = tensors[start : start + size]
        if len(some) == 1:
            yield some[0].unsqueeze(0)
        elif turned:
            yield torch.stack([tensor.mT for tensor in some]).mT
        else:
            yield torch.stack(list(some))


def by_module(factors: Tensor) -> bool:
    """Whether factors (B, L, n, r) lie module by module, as those of a batch do."""
    return factors.ndim == 4 and factors.stride(0) < factors.stride(1)
