"""One LoRA's modules in numbers, and two LoRAs module by module."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from lol_core.core.geometry import distance, effective_rank, inner_product, norm, same_magnitude, spectrum
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.errors import LoLError
from lol_core.insight.duplicates import SAME
from lol_core.insight.order import natural


@dataclass(frozen=True)
class Anatomy:
    """The singular values of every module, in the file's order, and what follows from them."""

    lora: LoRA
    sigmas: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, lora: LoRA) -> Anatomy:
        """O((n + m) r²) a module."""
        return cls(lora, tuple(spectrum(layer).numpy() for layer in lora.layers))

    @cached_property
    def norms(self) -> np.ndarray:
        """‖ΔW‖ of every module."""
        return np.array([float(np.sqrt((sigma**2).sum())) for sigma in self.sigmas])

    @cached_property
    def colourings(self) -> dict[str, np.ndarray]:
        """What a map of the base model can be coloured by."""
        largest = np.array([sigma.max(initial=0.0) for sigma in self.sigmas])
        return {
            "‖ΔW‖": self.norms,
            "largest singular value": largest,
            "energy of the largest singular value": (largest / np.where(self.norms > 0, self.norms, 1.0)) ** 2,
            "effective rank": np.array([float(effective_rank(torch.tensor(sigma))) for sigma in self.sigmas]),
        }

    def table(self) -> pd.DataFrame:
        """A row for each module: its kind, sizes, scale and numbers."""
        numbers = self.colourings
        rows = [
            {
                "module": layer.name,
                "kind": layer.kind + (" + DoRA" if layer.magnitude is not None else ""),
                "n (out)": layer.n,
                "m (in)": layer.m,
                "rank": layer.rank,
                "alpha": layer.alpha,
                "scale": layer.scale,
            }
            for layer in self.lora.layers
        ]
        own = {name: numbers[name] for name in ("‖ΔW‖", "effective rank")}
        return pd.DataFrame(rows).assign(**own, **{"largest σ": numbers["largest singular value"]})

    def largest(self, count: int) -> dict[str, np.ndarray]:
        """The singular values of the modules with the largest ‖ΔW‖, by name."""
        order = np.argsort(-self.norms, kind="stable")[:count]
        return {self.lora.names[i]: self.sigmas[i] for i in order}


@dataclass(frozen=True)
class Comparison:
    """Two LoRAs. table: by module of the first that both adapt in the same shape, under whatever names, columns ‖ΔW₁‖,
    ‖ΔW₂‖, ⟨ΔW₁, ΔW₂⟩, ‖ΔW₁ − ΔW₂‖ and cosine; complete: whether that is every module of either; same_magnitudes:
    whether their DoRA magnitudes agree.
    """

    table: pd.DataFrame
    complete: bool
    same_magnitudes: bool

    @classmethod
    def of(cls, first: LoRA, second: LoRA) -> Comparison:
        table, pairs = _shared(first, second)
        table.insert(3, "‖ΔW₁ − ΔW₂‖", [distance(*pair) for pair in pairs])
        alike = all(same_magnitude(*pair, SAME) for pair in pairs)
        return cls(table, len(pairs) == len(first.layers) == len(second.layers), alike)

    def _size(self, column: str) -> float:
        return float(np.sqrt((self.table[column] ** 2).sum()))

    @property
    def same(self) -> bool:
        """Whether they are the same function, as `geometry.same_function` decides."""
        near = self._size("‖ΔW₁ − ΔW₂‖") <= SAME * self._size("‖ΔW₁‖")
        return self.complete and self.same_magnitudes and near

    @property
    def cosine(self) -> float:
        """Of the updates of all shared modules together; 0 where one of them is zero."""
        sizes = self._size("‖ΔW₁‖") * self._size("‖ΔW₂‖")
        return float(self.table["⟨ΔW₁, ΔW₂⟩"].sum()) / sizes if sizes else 0.0

    @property
    def distance(self) -> float:
        """‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖ over all shared modules; of two that are zero 0, and not a number from zero to others."""
        apart, size = self._size("‖ΔW₁ − ΔW₂‖"), self._size("‖ΔW₁‖")
        return apart / size if size else math.nan if apart else 0.0


def _shared(first: LoRA, second: LoRA) -> tuple[pd.DataFrame, list[tuple[LoRALayer, LoRALayer]]]:
    """The modules that both adapt in the same shape, under whatever names: by the first one's ‖ΔW₁‖, ‖ΔW₂‖, their
    product and cosine; and the pairs.
    """
    rows, pairs = {}, []
    for name, layer in first.by_common_name.items():
        if (other := second.by_common_name.get(name)) is not None:
            with suppress(LoLError):  # of another shape
                rows[layer.name] = (inner_product(layer, other), norm(layer), norm(other))
                pairs.append((layer, other))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["⟨ΔW₁, ΔW₂⟩", "‖ΔW₁‖", "‖ΔW₂‖"])
    sizes = table["‖ΔW₁‖"] * table["‖ΔW₂‖"]
    return table.assign(cosine=table["⟨ΔW₁, ΔW₂⟩"] / sizes.where(sizes > 0, 1.0)), pairs


def cosines(first: LoRA, second: LoRA) -> pd.Series:
    """Of the updates of every module that both adapt in the same shape, by the first one's names."""
    return _shared(first, second)[0]["cosine"]


def layer_map(values: pd.Series) -> pd.DataFrame:
    """Values of modules, by name, as a map of the base model: a row for each kind of projection, in the file's order, a
    column for each block, in order of their names with numbers as numbers (0, 1, 2, 10).

    The block is the name up to its last number that is followed by something (encoder.layer.3), the projection is
    the rest (attention.self.key); the numbers of diffusers' to_out.0 and ff.net.2 belong to the projection.
    """
    parts = [re.match(r"(?:(.*(?<!net)(?<!to_out)[._]\d+)[._])?(.+)$", str(name)) for name in values.index]
    blocks = [(part[1] or "") if part else "" for part in parts]
    rows = [part[2] if part else str(name) for part, name in zip(parts, values.index, strict=True)]
    table = pd.DataFrame({"row": rows, "block": blocks, "value": values.to_numpy()})
    table = table.pivot_table("value", "row", "block", "sum", sort=False, observed=True)
    return table[sorted(table.columns, key=lambda block: natural(str(block)))]
