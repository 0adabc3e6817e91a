"""diffusers files, new (`unet.….lora_A.weight`) and old (`….processor.to_q_lora.down.weight`), and tools that write the
same keys (ai-toolkit).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lol_core.core.lora import LoRA
from lol_core.formats.container import TensorFile
from lol_core.formats.kohya import claimed_base
from lol_core.formats.roles import Fetch, assemble, group, role_of

NAME = "diffusers"
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model", "prior")
_OLD = re.compile(r"\.(\w+_lora|lora|lora_linear_layer)\.(down|up)\.weight$")
_NEW = re.compile(rf"^({'|'.join(COMPONENTS)})\..+\.(lora_[AB]|lora_(down|up)\.weight)")
_PROCESSOR = re.compile(
    r"^(?P<attention>.*?)\.?processor\.to_(?P<projection>q|k|v|out)_lora\.(?P<role>down|up)\.weight$"
)


def matches(keys: list[str]) -> bool:
    return any(_OLD.search(key) or _NEW.match(key) for key in keys)


def parse(key: str) -> tuple[str, str] | None:
    """The old attention processors hold their factors one level below the projection they adapt."""
    if found := _PROCESSOR.match(key):
        projection = "to_out.0" if found["projection"] == "out" else f"to_{found['projection']}"
        return f"{found['attention']}.{projection}", found["role"]
    return role_of(key)


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    modules, extras = group(file.keys, parse)
    saved = _saved_configs(file.metadata)
    layers = []
    for name, roles in modules.items():
        component = name.split(".", 1)[0]
        settings = saved.get(component) or config
        alpha = settings.get("lora_alpha")
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            if name.endswith(pattern):
                alpha = value
        tensors = {role: fetch(key) for role, key in roles.items()}
        layers.append(
            assemble(
                name, tensors, alpha=None if alpha is None else float(alpha), rslora=bool(settings.get("use_rslora"))
            )
        )
    notes = (
        []
        if any(layer.alpha is not None for layer in layers)
        else ["The file names no alpha: the scale is taken as 1."]
    )
    base = claimed_base(file.metadata) or config.get("base_model_name_or_path") or None
    return LoRA(tuple(layers), NAME, base, dict(config) | file.metadata, tuple(extras), tuple(notes))


def _saved_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The PEFT settings that diffusers writes into the header, by component; keys look like `unet.lora_alpha`."""
    try:
        flat = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, option = key.partition(".")
        configs.setdefault(component, {})[option] = value
    return configs
