"""What people call a LoRA, and how many there are."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

MODEL_FILE_NAMES = ("adapter_model", "pytorch_lora_weights", "adapters")
"""File names that say nothing: such a file goes by its folder's name."""
_SHARD = re.compile(r"(?<=.)-\d+-of-\d+$")


def counted(number: int, noun: str) -> str:
    """ "1 file", "1,200 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def stem_of(name: str) -> str:
    """A file's name without its suffix, and without the number of a shard: the first stands for the whole LoRA."""
    return _SHARD.sub("", name[: name.rfind(".")] if name.rfind(".") > 0 else name)


def short_name(path: str) -> str:
    """What people call a LoRA: its path without the suffix, or its folder's path when the file's name says nothing."""
    folder, _, name = path.rpartition("/")
    stem = stem_of(name)
    if folder:
        return folder if stem in MODEL_FILE_NAMES else f"{folder}/{stem}"
    return stem


def printable(name: str) -> str:
    """The name of a file as text: bytes that are no UTF-8 are written as \\xe9."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def display_names(ids: Sequence[str]) -> dict[str, str]:
    """id → what to call it: its short name, or the whole id where two share one."""
    short = {id: short_name(id) for id in ids}
    counts = Counter(short.values())
    return {id: name if counts[name] == 1 else id for id, name in short.items()}


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path that someone writes, `~` for a home. That of a user who is not there stays as it is, names nothing."""
    return Path(os.path.expanduser(text))


def named_place(word: str) -> tuple[str, str]:
    """The name and the path of a word such as `people=/data/faces`; the name is empty where none is given."""
    name, found, path = word.partition("=")
    return (name, path) if found and "/" not in name else ("", word)
