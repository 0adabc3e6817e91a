"""MLX files (safetensors or npz): `….lora_a` (in, r) and `….lora_b` (r, out), transposed relative to PEFT; scale from
the configuration beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lol_core.core.lora import LoRA, LoRALayer
from lol_core.formats.container import TensorFile
from lol_core.formats.roles import Fetch, group

NAME = "MLX"
_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[ab])$")


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def parse(key: str) -> tuple[str, str] | None:
    found = _KEY.match(key)
    return (found["module"], "down" if found["factor"] == "a" else "up") if found else None


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    modules, extras = group(file.keys, parse)
    settings = config.get("lora_parameters") or {}
    scale, notes = settings.get("scale"), []
    if scale is None:
        scale = 1.0
        notes.append("No scale in an adapter_config.json beside the file: the scale is taken as 1.")
    layers = []
    for name, roles in modules.items():
        down, up = fetch(roles["down"]), fetch(roles["up"])
        layers.append(LoRALayer(name, up.T, down, float(scale)))
    base = config.get("model") or config.get("base_model_name_or_path") or None
    return LoRA(tuple(layers), NAME, base, dict(config) | file.metadata, tuple(extras), tuple(notes))
