"""XLabs' Flux files: `double_blocks.N.processor.qkv_lora1.down.weight`. Fused projections stay fused; no alpha: the
scale is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lol_core.core.lora import LoRA
from lol_core.formats.container import TensorFile
from lol_core.formats.roles import Fetch, assemble, group

NAME = "XLabs"
_KEY = re.compile(
    r"^(?P<module>(?:\w+\.)*(?:double|single)_blocks\.\d+\.processor\.\w*lora\d?)\.(?P<role>down|up)\.weight$"
)


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def parse(key: str) -> tuple[str, str] | None:
    found = _KEY.match(key)
    return (found["module"], found["role"]) if found else None


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    modules, extras = group(file.keys, parse)
    layers = [assemble(name, {role: fetch(key) for role, key in roles.items()}) for name, roles in modules.items()]
    return LoRA(
        tuple(layers), NAME, None, dict(file.metadata), tuple(extras), ("This dialect has no alpha: the scale is 1.",)
    )
