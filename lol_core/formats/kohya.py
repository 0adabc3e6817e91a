"""kohya and LyCORIS files: LoRA, LoCon (with and without Tucker core), LoHa, LoKr, DoRA.

Their module names are flattened with underscores, which cannot be undone with certainty, so the flattened name is the
module's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lol_core.core.lora import LoRA
from lol_core.formats.container import TensorFile
from lol_core.formats.roles import Fetch, assemble, group

NAME = "kohya/LyCORIS"
_KEY = re.compile(r"^(lora|lycoris)_\w+?[._](lora_(down|up|mid)\.weight|alpha|dora_scale|hada_|lokr_)")


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    modules, extras = group(file.keys)
    layers = [
        assemble(name, {role: fetch(key) for role, key in roles.items()}, zero_alpha_is_absent=True)
        for name, roles in modules.items()
    ]
    notes = []
    if not any("alpha" in roles for roles in modules.values()):
        notes.append("The file holds no alpha: the scale is taken as 1.")
    return LoRA(tuple(layers), NAME, claimed_base(file.metadata), dict(file.metadata), tuple(extras), tuple(notes))


def claimed_base(metadata: Mapping[str, str]) -> str | None:
    """The base model a header names: kohya's keys first, then modelspec's."""
    for key in ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "base_model"):
        if metadata.get(key) and metadata[key] != "None":
            return str(metadata[key])
    return None
