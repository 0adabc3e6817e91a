"""LoRAs of several programs under one naming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lol_core.core.lora import LoRA
from lol_core.core.naming import common_names, kohya_names


def commonly_named(loras: Sequence[LoRA]) -> list[LoRA]:
    """The LoRAs as they are where no module goes by two names among them, else with every module, in its place, under
    kohya's name for what the first LoRA that has it calls it.
    """
    common = [common_names(lora.names) for lora in loras]
    called: dict[str, str] = {}
    for lora, names in zip(loras, common, strict=True):
        called = dict(zip(names, lora.names, strict=True)) | called
    if {name for lora in loras for name in lora.names} == set(called.values()):
        return list(loras)
    called = dict(zip(called, kohya_names(called.values()), strict=True))
    return [_renamed(lora, [called[name] for name in names]) for lora, names in zip(loras, common, strict=True)]


def _renamed(lora: LoRA, names: Sequence[str]) -> LoRA:
    if [*names] == [*lora.names]:
        return lora
    layers = tuple(replace(layer, name=name) for layer, name in zip(lora.layers, names, strict=True))
    return replace(lora, dialect="kohya", layers=layers)
