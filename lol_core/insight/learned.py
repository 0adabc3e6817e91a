"""Merges by a network that was trained for one base model: which of those that come with the package fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.naming import common_names
from lol_core.errors import ModelError
from lol_core.learning.merger import Merger, Update

MERGERS = Path(__file__).parent / "mergers"
"""One for each base model of the sample zoos; `python -m lol_core.experiments.merger` trains them."""


def merger_for(lora: LoRA) -> Merger | None:
    """The one that comes with the package for a LoRA's modules; None when there is none."""
    return next((merger for merger in _all() if _in_order(merger, lora)), None)


def learned(loras: Sequence[LoRA], weights: Sequence[float], merger: Merger | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Module → U: (n, K), V: (m, K) of the merge, in float64; the names are of the first LoRA. merger: None for the one
    that fits it. Raises ModelError when none does, or when a LoRA adapts other modules than the merger's.
    """
    by = merger or merger_for(loras[0])
    if by is None:
        zoos = ", ".join(str(merger.about["zoo"]) for merger in _all())
        raise ModelError(
            f"A merge was learned for the base models of {zoos}, and these LoRAs, with {loras[0].names[0]}, adapt other"
            " modules. Choose another method, such as knots."
        )
    layers = [_in_order(by, lora) for lora in loras]
    if len(loras) < 2 or not all(layers):
        raise ModelError(
            f"A learned merge takes two LoRAs or more that adapt all the {len(by.modules_of)} modules that it was"
            " trained for and no other. Choose another method, such as knots."
        )
    with torch.no_grad():
        made = by.merged([[Update.of(layer) for layer in of] for of in layers], weights)
    return {layer.name: pair for layer, pair in zip(layers[0], made, strict=True)}


def _all() -> list[Merger]:
    return [Merger.load(path) for path in sorted(MERGERS.glob("*.json"))]


def _in_order(merger: Merger, lora: LoRA) -> list[LoRALayer]:
    """A LoRA's layers in the order of the merger's modules; empty when it adapts others, or in other shapes."""
    shapes = dict(zip(common_names(merger.modules_of), merger.modules_of.values(), strict=True))
    fits = {name: layer.weight_shape for name, layer in lora.by_common_name.items()} == shapes
    return [lora.by_common_name[name] for name in shapes] if fits else []
