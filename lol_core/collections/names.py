"""What people call a LoRA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

MODEL_FILE_NAMES = ("adapter_model", "pytorch_lora_weights", "adapters")
"""File names that say nothing: such a file goes by its folder's name."""


def short_name(path: str) -> str:
    """What people call a LoRA: its file name, or its folder's name when the file's says nothing."""
    pure = PurePosixPath(path)
    return (
        pure.parent.as_posix()
        if pure.stem in MODEL_FILE_NAMES and pure.parent.name
        else pure.with_suffix("").as_posix()
    )


def display_names(ids: Sequence[str]) -> dict[str, str]:
    """id → what to call it: its short name, or the whole id where two share one."""
    short = {id: short_name(id) for id in ids}
    counts = Counter(short.values())
    return {id: name if counts[name] == 1 else id for id, name in short.items()}
