"""LoRAs made from LoRAs, from the factors alone: cut to a rank, or several added into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lol_core.core.geometry import inner_product, truncate
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.errors import LoRAFormatError, ModelError
from lol_core.formats.writing import names_in

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
        lost = 0.0
        if any(errors):
            sizes = np.sqrt([max(0.0, inner_product(y, y)) for y in lora.layers]) if norms is None else norms
            lost = float(np.linalg.norm(np.array(errors) * sizes)) / max(float(np.linalg.norm(sizes)), TINY)
        return cls(replace(lora, layers=tuple(layer for layer, _ in pairs)), errors, lost)

    @property
    def worst(self) -> tuple[str, float]:
        """The module that loses most, and how much."""
        i = int(np.argmax(self.errors))
        return self.lora.names[i], self.errors[i]


def ranks_of_energy(lora: LoRA, share: float) -> dict[str, int]:
    """The least rank of each module that keeps this share of its energy Σσ². Raises ModelError for no share."""
    if not 0 < share <= 1:
        raise ModelError(f"A share of the energy lies above 0 and at most at 1; found {share:g}.")

    def rank(layer: LoRALayer) -> int:
        energy = layer.parametrisation.singular_values().double().square().cumsum(0)
        reached = energy >= share * energy[-1] * (1 - 1e-12)
        return int(reached.long().argmax()) + 1

    return {layer.name: rank(layer) for layer in lora.layers}


def merge(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Resized:
    """Σ wᵢ ΔWᵢ of every module as one LoRA: exactly, by factors side by side, whatever their ranks and scales; then cut
    to `rank`. A module that only some adapt is the sum of those.

    Raises LoRAFormatError when a module is of different shapes in two of them, when the names of modules cannot be
    brought together, or when one has a DoRA magnitude: its update is no sum.
    """
    if len(loras) != len(weights):
        raise ModelError(f"A weight for each LoRA: {len(loras)} LoRAs, {len(weights)} weights.")
    parts: dict[str, list[tuple[LoRALayer, float]]] = {}
    for lora, weight in zip(_of_one_naming(loras), weights, strict=True):
        for layer in lora.layers:
            parts.setdefault(layer.name, []).append((layer, weight))
    layers = tuple(_sum(name, summands) for name, summands in parts.items())
    whole = LoRA(layers, loras[0].dialect, loras[0].base_model)
    return Resized.of(whole, max(whole.ranks) if rank is None else rank)


def _of_one_naming(loras: Sequence[LoRA]) -> list[LoRA]:
    """The LoRAs as they are when they are of one dialect or share a module's name with the first, else all under
    kohya's flattened names.
    """
    if len({lora.dialect for lora in loras}) == 1 or all(set(lora.names) & set(loras[0].names) for lora in loras):
        return list(loras)
    renamed = []
    for lora in loras:
        names = names_in("kohya", lora)
        renamed.append(
            replace(
                lora, dialect="kohya", layers=tuple(replace(layer, name=names[layer.name]) for layer in lora.layers)
            )
        )
    return renamed


def _sum(name: str, summands: Sequence[tuple[LoRALayer, float]]) -> LoRALayer:
    first = summands[0][0]
    for layer, _ in summands:
        if layer.magnitude is not None:
            raise LoRAFormatError(
                f"{name} has a DoRA magnitude: what it adds depends on the base model's weight, so it is no term of a"
                " sum. Merge it into the base model instead."
            )
        if layer.kind == Kind.EXPERTS:
            raise LoRAFormatError(f"{name} has a pair for each expert, which is not summed here.")
        if layer.weight_shape != first.weight_shape:
            raise LoRAFormatError(
                f"{name} updates a weight of {_shape(first)} in one LoRA and of {_shape(layer)} in another. They belong"
                " to different base models."
            )
    if len(summands) == 1 and summands[0][1] == 1:
        return first
    pairs = [layer.parametrisation.low_rank() for layer, _ in summands]
    scales = [layer.scale * weight for layer, weight in summands]
    U = torch.cat([scale * U.float() for scale, (U, _) in zip(scales, pairs, strict=True)], 1)
    V = torch.cat([V.float() for _, V in pairs], 1)
    kind = Kind.EMBEDDING if first.kind == Kind.EMBEDDING else Kind.CONV if len(first.weight_shape) > 2 else Kind.LINEAR
    whole = LoRALayer.pair(name, U, V, kind=kind, weight_shape=first.weight_shape)
    largest = min(len(U), len(V))
    return truncate(whole, largest)[0] if whole.rank > largest else whole


def _shape(layer: LoRALayer) -> str:
    return " × ".join(map(str, layer.weight_shape))
