"""PEFT adapters: LoRA, rsLoRA, DoRA, LoHa, LoKr, embeddings and the old MergedLinear, with `adapter_config.json` where
there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from lol_core.core.lora import LoRA, LoRALayer
from lol_core.errors import LoRAFormatError
from lol_core.formats.container import TensorFile
from lol_core.formats.roles import Fetch, assemble, group, role_of

NAME = "PEFT"
_PREFIX = re.compile(r"^(?:base_model\.model\.)+")
_FACTOR = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|hada_w[12]_[ab]|lokr_w[12](_[ab])?)\b")


def matches(keys: list[str]) -> bool:
    return any(_FACTOR.search(key) for key in keys)


def parse(key: str) -> tuple[str, str] | None:
    found = role_of(_PREFIX.sub("", key))
    return found if found and found[1] != "alpha" else None


def read(file: TensorFile, fetch: Fetch, config: Mapping[str, Any]) -> LoRA:
    modules, extras = group(file.keys, parse)
    notes = []
    if not config:
        notes.append("No adapter_config.json beside the file: alpha is unknown, so the scale is taken as 1.")
    adapter_type = str(config.get("peft_type", "LORA"))
    layers = []
    for name, roles in modules.items():
        tensors = {role: fetch(key) for role, key in roles.items()}
        alpha = _configured(config.get("alpha_pattern"), name, config.get("lora_alpha", config.get("alpha")))
        if "up" in tensors and tensors["up"].ndim == 3 and tensors["down"].ndim == 2:
            layers.append(_merged_linear(name, tensors["down"], tensors["up"], alpha, config))
            continue
        scale_rank = None
        if adapter_type in ("LOHA", "LOKR"):
            rank = _configured(config.get("rank_pattern"), name, config.get("r"))
            scale_rank = int(rank) if rank else None
        layers.append(
            assemble(name, tensors, alpha=alpha, rslora=bool(config.get("use_rslora")), scale_rank=scale_rank)
        )
    base = config.get("base_model_name_or_path") or None
    return LoRA(tuple(layers), NAME, base, dict(config) | file.metadata, tuple(extras), tuple(notes))


def _configured(pattern: Any, name: str, default: Any) -> float | None:
    """The value of a rank or alpha pattern for a module: the first key k such that `(.*\\.)?(k)$` matches its name, as
    PEFT reads it.
    """
    for key, value in (pattern or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return float(value)
        except re.error as error:
            raise LoRAFormatError(
                f"adapter_config.json: the pattern {key!r} is no regular expression ({error})."
            ) from error
    return None if default is None else float(default)


def _merged_linear(
    name: str, down: torch.Tensor, up: torch.Tensor, alpha: float | None, config: Mapping[str, Any]
) -> LoRALayer:
    """The old MergedLinear: one projection holds several, of which `enable_lora` adapts e with a factor pair of their
    own (a grouped product).

    down: (e·r, in), up: (out of the adapted ones, r, 1). Its ΔW is block-diagonal in these factors, with zero rows for
    what is not adapted.
    """
    enabled = [bool(x) for x in config.get("enable_lora") or [True] * (down.shape[0] // up.shape[1])]
    groups, rank = sum(enabled), up.shape[1]
    if groups * rank != down.shape[0] or up.shape[0] % groups:
        raise LoRAFormatError(
            f"{name}: lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} do not fit {groups} adapted parts"
            " (enable_lora in adapter_config.json)."
        )
    rows = up.shape[0] // groups
    U = torch.zeros(rows * len(enabled), down.shape[0], dtype=up.dtype, device=up.device)
    places = [i for i, on in enumerate(enabled) if on]
    for g, place in enumerate(places):
        U[place * rows : (place + 1) * rows, g * rank : (g + 1) * rank] = up[g * rows : (g + 1) * rows, :, 0]
    scale = 1.0 if alpha is None else alpha / rank
    return LoRALayer(name, U, down.T, scale, alpha)
