"""Files of one structure are read alike: where the factors of one lay among its bytes, those of the next lie too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lol_core.core.header import Kind
from lol_core.core.lora import LoRALayer
from lol_core.core.parametrisation import LowRank


@dataclass(frozen=True)
class _Stretch:
    """A tensor among the bytes of a file. start: its first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, factor: Tensor, data: np.ndarray) -> Self | None:
        """None where it does not lie there, number by number."""
        start = factor.data_ptr() - data.ctypes.data
        shape, stride = tuple(factor.shape), factor.stride()
        last = sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        inside = start >= 0 and start + (last + 1) * factor.element_size() <= data.size
        return cls(factor.dtype, shape, stride, start) if inside and last + 1 == factor.numel() else None

    def among(self, data: np.ndarray) -> Tensor:
        numbers = torch.frombuffer(data, dtype=self.dtype, count=prod(self.shape), offset=self.start)
        return numbers.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class _Pair:
    name: str
    weight_shape: tuple[int, ...]
    kind: Kind
    scale: float
    alpha: float | None
    U: _Stretch
    V: _Stretch

    def layer(self, data: np.ndarray) -> LoRALayer:
        pair = LowRank(self.U.among(data), self.V.among(data), self.weight_shape, self.kind)
        return LoRALayer(self.name, pair, self.scale, self.alpha)


@dataclass(frozen=True)
class Pattern:
    """How modules are read from the bytes of a file alone, without asking what is whose: that takes five times as
    long.
    """

    _pairs: tuple[_Pair, ...]

    @classmethod
    def of(cls, layers: Iterable[LoRALayer], data: np.ndarray) -> Self | None:
        """That of modules read from these bytes; None where one is no pair that lies there as it is."""
        pairs = []
        for layer in layers:
            of = layer.parametrisation
            if type(of) is not LowRank:
                return None
            U, V = _Stretch.of(of.U, data), _Stretch.of(of.V, data)
            if U is None or V is None:
                return None
            pairs.append(_Pair(layer.name, of.weight_shape, of.kind, layer.scale, layer.alpha, U, V))
        return cls(tuple(pairs))

    def layers(self, data: np.ndarray) -> tuple[LoRALayer, ...]:
        """The modules of another file of the same structure, scales and configuration."""
        return tuple(pair.layer(data) for pair in self._pairs)
