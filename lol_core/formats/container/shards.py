"""One LoRA in several files, told by their names (`…-00001-of-00002.safetensors`) or by the index beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
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
    """Names of the files beside each other that hold one LoRA together, the first of which stands for it. keys: what
    its index promises.
    """

    names: tuple[str, ...]
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Neighbours:
    """The files of one folder, wherever it is. has: whether one of a name is there; read: its content, or OSError."""

    has: Callable[[str], bool]
    read: Callable[[str], bytes]


def is_named_as_shard(name: str) -> bool:
    """Whether a file of that name is one of several by its name alone."""
    numbered, rank = _NUMBERED.match(name), _SLICE.match(name)
    return bool((numbered and int(numbered["total"]) > 1) or (rank and int(rank[1])))


def shards_of(path: Path) -> Shards | None:
    """`shards_among` of a file on this machine."""
    folder = os.path.dirname(path)
    return shards_among(
        path.name, Neighbours(lambda name: os.path.isfile(os.path.join(folder, name)), lambda name: _read(folder, name))
    )


def _read(folder: str, name: str) -> bytes:
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def shards_among(name: str, folder: Neighbours) -> Shards | None:
    """The shards that a file belongs to, or that an index names; None for a file of its own.

    Raises LoRAFormatError when one is missing, and for every shard but the first: they are one LoRA and not several.
    """
    if name.endswith(INDEX):
        return _checked(_read_index(name, folder), name, folder)
    if (rank := _SLICE.match(name)) and (int(rank[1]) or folder.has("mp_rank_01" + rank[2])):
        raise LoRAFormatError(
            f"Part {int(rank[1])} of a tensor-parallel checkpoint: each tensor is cut into slices. Merge the ranks"
            " where it was trained."
        )
    numbered = _NUMBERED.match(name)
    if numbered:
        own = f"{numbered['stem']}{numbered['suffix']}{INDEX}"
        if folder.has(own):
            shards = _read_index(own, folder)
            if name in shards.names:
                return _checked(shards, name, folder)
        return _by_number(name, numbered, folder)
    index = f"adapter_model{os.path.splitext(name)[1]}{INDEX}"
    if folder.has(index):
        shards = _read_index(index, folder)
        if name in shards.names:
            return _checked(shards, name, folder)
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


def _by_number(name: str, numbered: re.Match[str], folder: Neighbours) -> Shards | None:
    part, total = int(numbered["part"]), int(numbered["total"])
    if total < 2:
        return None
    stem, width, suffix = numbered["stem"], len(numbered["part"]), numbered["suffix"]
    first = 0 if part == 0 or folder.has(_name(stem, 0, width, numbered["total"], suffix=suffix)) else 1
    numbers = range(first, first + total)
    if part not in numbers:
        raise LoRAFormatError(
            f"Shard {part} of {total}, which cannot be. Give the file the name it was published under."
        )
    if total > 10_000:
        raise LoRAFormatError(f"Shard {part} of {total}: more than any adapter has.")
    names = tuple(_name(stem, number, width, numbered["total"], suffix=suffix) for number in numbers)
    return _checked(Shards(names), name, folder)


def _name(stem: str, part: int, width: int, total: str, *, suffix: str) -> str:
    return f"{stem}-{part:0{width}d}-of-{total}{suffix}"


def _read_index(index: str, folder: Neighbours) -> Shards:
    try:
        weights = orjson.loads(folder.read(index))["weight_map"]
        names = sorted(set(weights.values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("its shards are not named as files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LoRAFormatError) as error:
        raise LoRAFormatError(
            f"{index} cannot be read ({type(error).__name__}: {error}); expected a weight_map from tensors to"
            " shards beside it. Download it again."
        ) from error
    return Shards(tuple(names), frozenset(weights))


def _checked(shards: Shards, name: str, folder: Neighbours) -> Shards | None:
    total = len(shards.names)
    place = shards.names.index(name) + 1 if name in shards.names else 1
    missing = [other for other in shards.names if not folder.has(other)]
    if missing:
        raise LoRAFormatError(
            f"A shard, part {place} of {total} of one LoRA: {len(missing)} of them, first {missing[0]}, are not beside"
            " it. Put all shards into one folder."
        )
    if place > 1:
        raise LoRAFormatError(
            f"A shard, part {place} of {total} of one LoRA, which is read as a whole under {shards.names[0]}."
        )
    return shards if total > 1 or name.endswith(INDEX) else None
