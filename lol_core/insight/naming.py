"""One name for a module that programs call differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats.writing import flattened


@lru_cache(maxsize=2**16)
def common_name(module: str) -> str:
    """As kohya writes it where it is a module of a diffusion model; other programs agree on the others' names."""
    try:
        return flattened(module)
    except LoRAFormatError:
        return module


def commonly_named(loras: Sequence[LoRA]) -> list[LoRA]:
    """The LoRAs as they are when they are of one dialect or share a module's name with the first, else with every
    module, in its place, under its common name.
    """
    if len({lora.dialect for lora in loras}) == 1 or all(set(lora.names) & set(loras[0].names) for lora in loras):
        return list(loras)
    return [_renamed(lora) for lora in loras]


def _renamed(lora: LoRA) -> LoRA:
    names = [common_name(name) for name in lora.names]
    if names == list(lora.names):
        return lora
    layers = tuple(replace(layer, name=name) for layer, name in zip(lora.layers, names, strict=True))
    return replace(lora, dialect="kohya", layers=layers)
