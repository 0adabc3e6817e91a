"""Adapters of llama.cpp (GGUF): `blk.0.attn_q.weight.lora_a` (r, in) and `.lora_b` (out, r), alpha in the header.

Modules have llama.cpp's names and, for models whose query and key rows it reorders, llama.cpp's order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lol_core.core.lora import LoRA
from lol_core.formats.assembly import Fetch
from lol_core.formats.container import TensorFile
from lol_core.formats.names import Part, Role
from lol_core.formats.reading import Config, Dialect, Spelling, Tensors
from lol_core.formats.scale import number

_KEY = re.compile(r"^(?P<module>.+)\.weight\.lora_(?P<factor>[ab])$")
_EMBEDDING = "token_embd"


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def parse(key: str) -> Part | None:
    match = _KEY.match(key)
    if not match:
        return None
    embeds = match["module"] == _EMBEDDING
    down, up = (Role.EMBEDDING_DOWN, Role.EMBEDDING_UP) if embeds else (Role.DOWN, Role.UP)
    return Part(f"{match['module']}.weight", match["module"], down if match["factor"] == "a" else up)


def prepare(name: str, tensors: Tensors, config: Config) -> Tensors:
    """The rows of an embedding are looked up, so its first factor is stored (tokens, r) (`build_inp_embd`)."""
    if Role.EMBEDDING_DOWN not in tensors:
        return tensors
    return tensors | {Role.EMBEDDING_DOWN: tensors[Role.EMBEDDING_DOWN].T}


@dataclass(frozen=True, kw_only=True)
class _Gguf(Dialect):
    def read(self, file: TensorFile, fetch: Fetch, config: Config) -> LoRA:
        """The header's names are llama.cpp's own; an alpha of 0 means there is none (`llama_adapter_lora_weight`)."""
        alpha = file.metadata.get("adapter.lora.alpha", "")
        header = {"lora_alpha": alpha} if number(alpha) else {}
        if base := file.metadata.get("general.base_model.0.name"):
            header["base_model"] = base
        lora = super().read(replace(file, metadata=header), fetch, config)
        return replace(lora, metadata=dict(config) | file.metadata)


DIALECT = _Gguf(
    name="llama.cpp",
    spellings=(
        Spelling(
            "LoRA in GGUF",
            "blk.0.attn_q.weight.lora_a",
            "adapter.lora.alpha of the GGUF header / r",
            "llama.cpp, convert_lora_to_gguf.py",
        ),
    ),
    matches=matches,
    parse=parse,
    prepare=prepare,
)
