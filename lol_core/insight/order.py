"""Names of modules in the order of their blocks: numbers in them count as numbers (0, 1, 2, 10)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from lol_core.core.header import ModuleHeader
from lol_core.core.lora import LoRA


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts the numbers in a name as numbers."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def in_order(lora: LoRA) -> LoRA:
    """The same LoRA with its modules in the order of their blocks."""
    return replace(lora, layers=tuple(sorted(lora.layers, key=lambda layer: natural(layer.name))))


@lru_cache(maxsize=1024)
def places(headers: tuple[ModuleHeader, ...]) -> tuple[int, ...]:
    """Where the modules of a file stand in it, in the order of their blocks."""
    return tuple(sorted(range(len(headers)), key=lambda i: natural(headers[i].name)))
