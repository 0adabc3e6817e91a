"""Segment-Anything and ViT files: `w_a_000`, `w_b_000`, … in the order of the attention blocks, query before value. No
alpha: the scale is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lol_core.core.lora import LoRA
from lol_core.formats.container import TensorFile
from lol_core.formats.roles import Fetch, assemble, group

NAME = "SAM"
_KEY = re.compile(r"^w_(?P<factor>[ab])_(?P<index>\d+)$")


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def parse(key: str) -> tuple[str, str] | None:
    found = _KEY.match(key)
    if not found:
        return None
    block, is_value = divmod(int(found["index"]), 2)
    return f"blocks.{block}.attn.{'v' if is_value else 'q'}", "down" if found["factor"] == "a" else "up"


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    modules, extras = group(file.keys, parse)
    layers = [assemble(name, {role: fetch(key) for role, key in roles.items()}) for name, roles in modules.items()]
    return LoRA(
        tuple(layers), NAME, None, dict(file.metadata), tuple(extras), ("This dialect has no alpha: the scale is 1.",)
    )
