"""Segment-Anything and ViT files: `w_a_000`, `w_b_000`, … in the order of the attention blocks, query before value. No
alpha: the scale is 1.
"""

from __future__ import annotations

import re

from lol_core.formats.names import Part, Role
from lol_core.formats.reading import Dialect, Spelling

_KEY = re.compile(r"^w_(?P<factor>[ab])_(?P<index>\d+)$", re.ASCII)


_LINEAR = re.compile(r"^(?P<module>.+)\.linear_(?P<factor>[ab])_(?P<part>[qkv])\.weight$")


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) or _LINEAR.match(key) for key in keys)


def parse(key: str) -> Part | None:
    if linear := _LINEAR.match(key):
        role = Role.DOWN if linear["factor"] == "a" else Role.UP
        return Part(f"{linear['module']}.linear_{linear['part']}", f"{linear['module']}.{linear['part']}", role)
    match = _KEY.match(key)
    if not match:
        return None
    block, is_value = divmod(int(match["index"]), 2)
    return Part(
        key, f"blocks.{block}.attn.{'v' if is_value else 'q'}", Role.DOWN if match["factor"] == "a" else Role.UP
    )


DIALECT = Dialect(
    name="SAM",
    spellings=(
        Spelling("LoRA of SAM, whole layers", "MODULE.attn.qkv.linear_a_q.weight", "1", "hitachinsk/SAMed"),
        Spelling("LoRA of SAM and ViT", "w_a_000", "1", "MathieuNlp/Sam_LoRA, JamesQFreeman/LoRA-ViT"),
    ),
    matches=matches,
    parse=parse,
    unit_scale=True,
)
