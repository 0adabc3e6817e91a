"""The factors of one LoRA as a record of bytes, and many records as a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec, turned
from lol_core.core.lora import LoRA
from lol_core.errors import ModelError

ALIGNMENT = 8
VERSION = 2
"""Of the records' layout: another one makes kept records others' records."""


class Packing:
    """How the factors of one LoRA lie in a record: Uᵀ and Vᵀ of each group of modules, padded to the largest rank, then
    DoRA magnitudes, then ranks. dtype: of the numbers as they are kept; a batch has those of 16 bits in float32.
    """

    def __init__(self, spec: WeightSpec, dtype: torch.dtype = torch.float32):
        self.spec, self.dtype = spec, dtype
        shapes = [(len(indices), spec.rank, side) for sides, indices in spec.groups for side in sides]
        numbers: list[tuple[int, ...]] = [*shapes, *([(spec.magnitudes,)] if spec.magnitudes else [])]
        self.parts = [(shape, dtype) for shape in numbers] + [((len(spec.modules),), torch.int64)]
        sizes = [-(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for shape, dtype in self.parts]
        self.starts = [*accumulate(sizes, initial=0)]
        content = json.dumps([VERSION, str(dtype), spec.to_dict()], default=str)
        self.key = hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Bytes of a record."""
        return self.starts[-1]

    def check(self, lora: LoRA) -> None:
        """Raises ModelError where a number is too large for float16, with the module."""
        if self.dtype == torch.float16:
            for module in self.spec.modules:
                if any(factor.abs().max() > torch.finfo(self.dtype).max for factor in lora[module.name].folded()):
                    raise ModelError(f"{module.name}: numbers beyond 65,504, which float16 cannot hold. Use bfloat16.")

    def pack(self, batch: Batch) -> Tensor:
        """(B, size) bytes."""
        factors = [factor.mT for pair in zip(batch.U, batch.V, strict=True) for factor in pair]
        zeros = self.spec.rank - batch.rank
        padded = [nn.functional.pad(factor, (0, 0, 0, zeros)) if zeros else factor for factor in factors]
        magnitudes = [] if batch.magnitudes is None else [batch.magnitudes]
        records = torch.zeros(len(batch), self.size, dtype=torch.uint8)
        for slot, part in zip(self._slots(records), [*padded, *magnitudes, batch.ranks], strict=True):
            slot.copy_(part.flatten(1))
        return records

    def batch(self, records: Tensor, places: Sequence[int]) -> Batch:
        """The batch of some of the records, which may be mapped from a file: only they are read."""
        *slots, ranks = self._slots(records)
        magnitudes = _chosen(slots.pop(), places) if self.spec.magnitudes else None
        factors = [
            _chosen_modules(slot.unflatten(1, shape), places)
            for slot, (shape, _) in zip(slots, self.parts, strict=False)
        ]
        return Batch(self.spec, tuple(factors[::2]), tuple(factors[1::2]), _chosen(ranks, places), magnitudes)

    def _slots(self, records: Tensor) -> list[Tensor]:
        """The parts of all records, each as (N, numbers)."""
        return [
            records[:, start : start + prod(shape) * dtype.itemsize].view(dtype)
            for start, (shape, dtype) in zip(self.starts, self.parts, strict=False)
        ]


def _chosen(rows: Tensor, places: Sequence[int]) -> Tensor:
    """Some of the rows, those of 16 bits in float32."""
    chosen = torch.index_select(rows, 0, torch.tensor(places))
    return chosen.float() if rows.dtype.itemsize == 2 else chosen


def _chosen_modules(rows: Tensor, places: Sequence[int]) -> Tensor:
    """The factors (B, L, n, r) of some of the rows (N, L, r, n), those of 16 bits in float32, each read once."""
    single = rows.dtype.itemsize == 2
    chosen = rows.new_empty(rows.shape[1], len(places), *rows.shape[2:], dtype=torch.float32 if single else rows.dtype)
    if single:
        for b, place in enumerate(places):
            chosen[:, b].copy_(rows[place])
    else:
        at = torch.tensor(places)
        for module, of_all in zip(chosen, rows.unbind(1), strict=True):
            torch.index_select(of_all, 0, at, out=module)
    return turned(chosen)
