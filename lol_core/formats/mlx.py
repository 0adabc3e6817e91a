"""MLX files (safetensors or npz): `….lora_a` (in, r) and `….lora_b` (r, out), transposed relative to PEFT, with the
scale itself in the configuration; its DoRA's `….m`.
"""

from __future__ import annotations

import re

from lol_core.formats.names import Part, Role, bare, role_of
from lol_core.formats.reading import Config, Dialect, Spelling, Tensors

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings|word_embeddings|embed_in|wte|wpe|shared|embeddings?)$")


def matches(keys: list[str]) -> bool:
    return any(key.endswith((".lora_a", ".lora_b")) for key in keys)


def parse(key: str) -> Part | None:
    if key.endswith(".m"):
        return Part(key[:-2], bare(key[:-2]), Role.MAGNITUDE)
    return role_of(key)


def prepare(name: str, tensors: Tensors, config: Config) -> Tensors:
    """An embedding's weight is (tokens, dimensions) and its update lora_a · lora_b, as PEFT's (B A)ᵀ."""
    if not _EMBEDDING.search(name) or Role.DOWN not in tensors or tensors[Role.DOWN].ndim != 2:
        return tensors
    rest = {role: tensor for role, tensor in tensors.items() if role not in (Role.DOWN, Role.UP)}
    if (magnitude := rest.pop(Role.MAGNITUDE, None)) is not None:
        rest[Role.DORA_SCALE] = magnitude.reshape(-1, 1)  # one per token, the rows of the weight
    return {**rest, Role.EMBEDDING_DOWN: tensors[Role.DOWN], Role.EMBEDDING_UP: tensors[Role.UP]}


def notes(config: Config) -> list[str]:
    settings = config.get("lora_parameters")
    if isinstance(settings, dict) and "scale" in settings and settings.get("alpha") not in (None, settings.get("rank")):
        return [
            "mlx-lm of today takes the configuration's scale itself; its first versions multiplied it by alpha/rank."
        ]
    return []


DIALECT = Dialect(
    name="MLX",
    spellings=(
        Spelling(
            "LoRA, transposed",
            "MODULE.lora_a",
            "lora_parameters.scale of adapter_config.json, itself",
            "mlx-lm, mlx-examples; safetensors or npz",
        ),
        Spelling("experts", "MODULE.switch_mlp.up_proj.lora_a", "as LoRA", "mlx-lm (LoRASwitchLinear)"),
        Spelling("DoRA", "MODULE.m", "one magnitude per output, of embeddings per token", "mlx-lm"),
    ),
    matches=matches,
    parse=parse,
    prepare=prepare,
    notes=notes,
)
