"""A LoRA cut to lower ranks, from the factors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lol_core.core.geometry import inner_product, truncate
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.errors import ModelError

TINY = 1e-30


@dataclass(frozen=True)
class Resized:
    """A LoRA cut to lower ranks. errors: ‖ΔW − ΔW′‖ / ‖ΔW‖ of each module; lost: the same over all modules."""

    lora: LoRA
    errors: tuple[float, ...]
    lost: float

    @classmethod
    def of(cls, lora: LoRA, rank: int | Mapping[str, int], norms: np.ndarray | None = None) -> Resized:
        """Modules of larger rank cut to it by their singular values (Eckart–Young), the others as they are. rank: of
        all modules, or of each by its name; norms: ‖ΔW‖ of each, where they are known.
        """
        ranks = dict.fromkeys(lora.names, rank) if isinstance(rank, int) else rank
        pairs = [
            truncate(layer, ranks[layer.name]) if layer.rank > ranks[layer.name] else (layer, 0.0)
            for layer in lora.layers
        ]
        errors = tuple(error for _, error in pairs)
        if norms is None:
            norms = np.array([size(layer) for layer in lora.layers]) if any(errors) else np.zeros(len(errors))
        return cls.after(replace(lora, layers=tuple(layer for layer, _ in pairs)), errors, norms)

    @classmethod
    def after(cls, lora: LoRA, errors: Sequence[float], sizes: Sequence[float] | np.ndarray) -> Resized:
        """A LoRA whose modules are cut already. sizes: ‖ΔW‖ of each before it was."""
        lost = float(np.linalg.norm(np.multiply(errors, sizes))) / max(float(np.linalg.norm(sizes)), TINY)
        return cls(lora, tuple(errors), lost)

    @property
    def worst(self) -> tuple[str, float]:
        """The module that loses most, and how much."""
        i = int(np.argmax(self.errors))
        return self.lora.names[i], self.errors[i]


def size(layer: LoRALayer) -> float:
    """‖ΔW‖, by the product of the factors with themselves."""
    return max(0.0, inner_product(layer, layer)) ** 0.5


def ranks_of_energy(lora: LoRA, share: float) -> dict[str, int]:
    """The least rank of each module that keeps this share of its energy Σσ². Raises ModelError for no share."""
    if not 0 < share <= 1:
        raise ModelError(f"A share of the energy lies above 0 and at most at 1; found {share:g}.")

    def rank(layer: LoRALayer) -> int:
        energy = layer.parametrisation.singular_values().double().square().cumsum(0)
        reached = energy >= share * energy[-1] * (1 - 1e-12)
        return int(reached.long().argmax()) + 1

    return {layer.name: rank(layer) for layer in lora.layers}
