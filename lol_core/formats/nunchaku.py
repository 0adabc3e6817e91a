"""Nunchaku's files: factors packed for its GPU kernels, refused with the way to the original."""

from __future__ import annotations

from dataclasses import dataclass

from lol_core.core.lora import LoRA
from lol_core.errors import NotLowRankError
from lol_core.formats.assembly import Fetch
from lol_core.formats.container import TensorFile
from lol_core.formats.reading import Config, Dialect, Spelling


def matches(keys: list[str]) -> bool:
    return any(key.endswith(".lora_down") for key in keys) and any(key.endswith(".lora_up") for key in keys)


@dataclass(frozen=True, kw_only=True)
class _Packed(Dialect):
    def read(self, file: TensorFile, fetch: Fetch, config: Config) -> LoRA:
        raise NotLowRankError(
            "Packed for Nunchaku (SVDQuant): the factors are reordered for its GPU kernels and are no plain matrices."
            " Use the original LoRA that it was made from."
        )


DIALECT = _Packed(
    name="Nunchaku",
    spellings=(
        Spelling(
            "LoRA packed for kernels",
            "transformer_blocks.0.qkv_proj.lora_down",
            "refused: take the file it was made from",
            "nunchaku",
        ),
    ),
    matches=matches,
)
