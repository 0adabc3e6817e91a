"""What every container offers: named tensors, of which the header alone tells names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**62
FEW_READS = 3
"""Stretches of a file with single numbers that are read also where each read costs."""
SAMPLED = "Its alphas were not all read: until its weights are, the first is taken for all."
_WHOLE = {int}


@dataclass(frozen=True)
class TensorFile:
    """The named tensors of one LoRA: of one file, or of its shards.

    `get(key)` returns the tensor; `peek(key)` returns the tensor when it has at most one element (an alpha) and
    else one of the same shape and dtype on the meta device, without reading its data. Both raise LoRAFormatError and
    nothing else. The mappings may be shared between files of one structure and are never changed. notes: what the
    reader should know of how the tensors were found. `structure()` is equal for files of which `peek` answers the same
    to every key; None where that is not known. `data()` gives the bytes of all tensors where `get` returns views of
    them, at the same places in every file of a structure; None where it does not.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: dict[str, str]
    get: Callable[[str], Tensor]
    peek: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()
    structure: Callable[[], Hashable] = lambda: None
    data: Callable[[], np.ndarray | None] = lambda: None

    @property
    def keys(self) -> list[str]:
        return list(self.shapes)


@lru_cache(maxsize=4096)
def blank(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without data. Files of one structure ask for the same few again and again, so they are made once."""
    return torch.empty(shape, dtype=dtype, device="meta")


def check_shape(key: str, shape: object) -> tuple[tuple[int, ...], int]:
    """(shape, number of elements) as PyTorch can hold them. Raises LoRAFormatError when the shape is none."""
    if not isinstance(shape, list | tuple) or not set(map(type, shape)) <= _WHOLE or (shape and min(shape) < 0):
        raise LoRAFormatError(
            f"{key!r} has the shape {str(shape)[:80]}; expected a list of whole numbers. The file is damaged; download"
            " it again."
        )
    count = prod(shape)
    if len(shape) > MAX_DIMENSIONS or (count or prod(size or 1 for size in shape)) > MAX_ELEMENTS:
        raise LoRAFormatError(
            f"{key!r} has the shape {str(shape)[:80]}, more than any tensor can have. The file is damaged; download it"
            " again."
        )
    return tuple(shape), count
