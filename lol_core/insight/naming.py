"""LoRAs of several programs under one naming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.naming import common_names
from lol_core.formats.writing import called_by_kohya


def commonly_named(loras: Sequence[LoRA]) -> list[LoRA]:
    """The LoRAs as they are where no module goes by two names among them. Else with every module, in its place, as the
    first LoRA calls it; where that has not all of them, under kohya's name for what the first that has it calls it.
    """
    common = [common_names(lora.names) for lora in loras]
    first: dict[str, LoRALayer] = {}
    for lora, names in zip(loras, common, strict=True):
        first = dict(zip(names, lora.layers, strict=True)) | first
    called = {name: layer.name for name, layer in first.items()}
    if {name for lora in loras for name in lora.names} == set(called.values()):
        return list(loras)
    dialect = loras[0].dialect
    if called.keys() != set(common[0]):
        flat = called_by_kohya(LoRA(tuple(first.values())))
        called, dialect = {name: flat[own] for name, own in called.items()}, "kohya"
    return [
        _renamed(lora, [called[name] for name in names], dialect) for lora, names in zip(loras, common, strict=True)
    ]


def _renamed(lora: LoRA, names: Sequence[str], dialect: str) -> LoRA:
    if [*names] == [*lora.names]:
        return lora
    layers = tuple(replace(layer, name=name) for layer, name in zip(lora.layers, names, strict=True))
    return replace(lora, dialect=dialect, layers=layers)
