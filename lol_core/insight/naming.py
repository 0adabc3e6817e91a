"""LoRAs of several programs under one naming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lol_core.core.lora import LoRA
from lol_core.core.naming import common_name


def commonly_named(loras: Sequence[LoRA]) -> list[LoRA]:
    """The LoRAs as they are where no module goes by two names among them, else with every module, in its place, under
    its common name.
    """
    names = {name for lora in loras for name in lora.names}
    if len(set(map(common_name, names))) == len(names):
        return list(loras)
    return [_renamed(lora) for lora in loras]


def _renamed(lora: LoRA) -> LoRA:
    names = [common_name(name) for name in lora.names]
    if names == list(lora.names):
        return lora
    layers = tuple(replace(layer, name=name) for layer, name in zip(lora.layers, names, strict=True))
    return replace(lora, dialect="kohya", layers=layers)
