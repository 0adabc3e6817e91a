"""cloneofsimo's files: `unet:0:down` with ranks in the header, or a pickled list of alternating up and down factors. No
alpha: the scale is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats.container import TensorFile
from lol_core.formats.roles import Fetch, assemble, group

NAME = "cloneofsimo"
_KEY = re.compile(r"^(?P<module>(?:unet|text_encoder):\d+):(?P<role>up|down)$")


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys) or _is_list(keys)


def _is_list(keys: list[str]) -> bool:
    return keys == [str(i) for i in range(len(keys))]


def parse(key: str) -> tuple[str, str] | None:
    found = _KEY.match(key)
    return (found["module"], found["role"]) if found else None


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    notes = ["Modules are numbered, not named, in this dialect. It has no alpha: the scale is 1."]
    if not _is_list(file.keys):
        modules, extras = group(file.keys, parse)
        layers = [assemble(name, {role: fetch(key) for role, key in roles.items()}) for name, roles in modules.items()]
        return LoRA(tuple(layers), NAME, None, dict(file.metadata), tuple(extras), tuple(notes))
    if len(file.keys) % 2 or any(len(file.shapes[key]) not in (2, 4) for key in file.keys):
        raise LoRAFormatError(f"A list of {len(file.keys)} tensors; expected pairs of an up and a down matrix.")
    component = "text_encoder" if "text_encoder" in file.path.name else "unet"
    layers = [
        assemble(f"{component}:{i // 2}", {"up": fetch(str(i)), "down": fetch(str(i + 1))})
        for i in range(0, len(file.keys), 2)
    ]
    return LoRA(tuple(layers), NAME, None, {}, (), tuple(notes))
