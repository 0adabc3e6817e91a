"""One LoRA in several files, told by their names (`…-00001-of-00002.safetensors`) or by the index beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.container.tensor_file import TensorFile

INDEX = ".index.json"
INDEX_NAMES = (f"adapter_model.safetensors{INDEX}", f"adapter_model.bin{INDEX}")
"""Indexes that are looked for beside any file; of a file named as a shard, its own index is."""
_SLICE = re.compile(r"^mp_rank_(\d+)(_model_states\.pt)$")
"""Of DeepSpeed and Megatron: one file a rank."""
_NUMBERED = re.compile(r"^(?P<stem>.+)-(?P<part>\d{1,6})-of-(?P<total>\d{1,6})(?P<suffix>\.\w+)$")


@dataclass(frozen=True)
class Shards:
    """The files that hold one LoRA together, the first of which stands for it. keys: what its index promises."""

    files: tuple[Path, ...]
    keys: frozenset[str] = frozenset()


def is_named_as_shard(name: str) -> bool:
    """Whether a file of that name is one of several by its name alone."""
    numbered, rank = _NUMBERED.match(name), _SLICE.match(name)
    return bool((numbered and int(numbered["total"]) > 1) or (rank and int(rank[1])))


def shards_of(path: Path) -> Shards | None:
    """The shards that a file belongs to, or that an index names; None for a file of its own.

    Raises LoRAFormatError when one is missing, and for every shard but the first: they are one LoRA and not several.
    """
    if path.name.endswith(INDEX):
        return _checked(_read_index(path), path)
    if (rank := _SLICE.match(path.name)) and (int(rank[1]) or os.path.exists(path.with_name("mp_rank_01" + rank[2]))):
        raise LoRAFormatError(
            f"Part {int(rank[1])} of a tensor-parallel checkpoint: each tensor is cut into slices. Merge the ranks"
            " where it was trained."
        )
    numbered = _NUMBERED.match(path.name)
    if numbered:
        own = path.parent / f"{numbered['stem']}{numbered['suffix']}{INDEX}"
        if os.path.isfile(own):
            shards = _read_index(own)
            if path in shards.files:
                return _checked(shards, path)
        return _by_number(path, numbered)
    index = os.path.join(os.path.dirname(path), f"adapter_model{path.suffix}{INDEX}")
    if os.path.isfile(index):
        shards = _read_index(Path(index))
        if path in shards.files:
            return _checked(shards, path)
    return None


def join(shards: Shards, parts: Sequence[TensorFile]) -> TensorFile:
    """Their tensors as those of one file. Raises LoRAFormatError when two hold the same, or one that the index promises
    is in none.
    """
    owner: dict[str, TensorFile] = {}
    metadata: dict[str, str] = {}
    for part in parts:
        metadata |= part.metadata
        for key in part.shapes:
            if key in owner:
                raise LoRAFormatError(
                    f"{owner[key].path.name} and {part.path.name} both hold {key!r}: they are no parts of one LoRA."
                )
            owner[key] = part
    if missing := sorted(shards.keys - owner.keys()):
        raise LoRAFormatError(
            f"The index of the {len(parts)} shards promises {len(missing)} tensors that none of them holds, first"
            f" {missing[0]!r}. Download them again."
        )

    def get(key: str) -> Tensor:
        return owner[key].get(key)

    def peek(key: str) -> Tensor:
        return owner[key].peek(key)

    notes = (f"Read from {len(parts)} shards: {', '.join(part.path.name for part in parts)}.",)
    shapes: Mapping[str, tuple[int, ...]] = {key: part.shapes[key] for key, part in owner.items()}
    return TensorFile(parts[0].path, shapes, metadata, get, peek, notes + parts[0].notes)


def _by_number(path: Path, numbered: re.Match[str]) -> Shards | None:
    part, total = int(numbered["part"]), int(numbered["total"])
    if total < 2:
        return None
    stem, width, suffix = numbered["stem"], len(numbered["part"]), numbered["suffix"]
    first = 0 if part == 0 or (path.parent / _name(stem, 0, width, numbered["total"], suffix)).exists() else 1
    numbers = range(first, first + total)
    if part not in numbers:
        raise LoRAFormatError(
            f"Shard {part} of {total}, which cannot be. Give the file the name it was published under."
        )
    if total > 10_000:
        raise LoRAFormatError(f"Shard {part} of {total}: more than any adapter has.")
    files = tuple(path.parent / _name(stem, number, width, numbered["total"], suffix) for number in numbers)
    return _checked(Shards(files), path)


def _name(stem: str, part: int, width: int, total: str, suffix: str) -> str:
    return f"{stem}-{part:0{width}d}-of-{total}{suffix}"


def _read_index(index: Path) -> Shards:
    try:
        weights = orjson.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weights.values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("its shards are not named as files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoRAFormatError(
            f"{index.name} cannot be read ({type(error).__name__}: {error}); expected a weight_map from tensors to"
            " shards beside it. Download it again."
        ) from error
    return Shards(tuple(index.parent / name for name in names), frozenset(weights))


def _checked(shards: Shards, path: Path) -> Shards | None:
    total = len(shards.files)
    place = shards.files.index(path) + 1 if path in shards.files else 1
    missing = [file.name for file in shards.files if not os.path.isfile(file)]  # a name may be too long
    if missing:
        raise LoRAFormatError(
            f"A shard, part {place} of {total} of one LoRA: {len(missing)} of them, first {missing[0]}, are not beside"
            " it. Put all shards into one folder."
        )
    if place > 1:
        raise LoRAFormatError(
            f"A shard, part {place} of {total} of one LoRA, which is read as a whole under {shards.files[0].name}."
        )
    return shards if total > 1 or path.name.endswith(INDEX) else None
