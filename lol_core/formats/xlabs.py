"""XLabs' Flux files: `double_blocks.N.processor.qkv_lora1.down.weight`. Fused projections stay fused; no alpha: the
scale is 1.
"""

from __future__ import annotations

import re

from lol_core.formats.names import Part, Role
from lol_core.formats.reading import Dialect, Spelling

_KEY = re.compile(
    r"^(?P<module>(?:\w+\.)*(?:double|single)_blocks\.\d+\.processor\.\w*lora\d?)\.(?P<role>down|up)\.weight$"
)


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def parse(key: str) -> Part | None:
    match = _KEY.match(key)
    return Part(match["module"], match["module"], Role(match["role"])) if match else None


DIALECT = Dialect(
    name="XLabs",
    spellings=(Spelling("LoRA of Flux", "double_blocks.0.processor.qkv_lora1.down.weight", "1", "XLabs-AI/x-flux"),),
    matches=matches,
    parse=parse,
    unit_scale=True,
)
