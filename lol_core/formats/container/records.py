"""PyTorch's zip archives as a pickle, which says what the tensors are, and records with their numbers.

Structures repeat, and unpickling takes longer than all that follows. So a pickle that many files share, byte for byte,
is unpickled once, by PyTorch, on the meta device; the numbers are read as those of any other file.
"""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.container.nested import named_tensors
from lol_core.formats.container.safetensors import AT_ONCE, read_array
from lol_core.formats.container.tensor_file import TensorFile, blank

PICKLE = "data.pkl"
_LOCAL = 30
"""Bytes before the name of a member."""
_CACHED_PICKLE = 4_000_000


@dataclass(frozen=True, eq=False)
class _Structure:
    """What a pickle says. tensors: on the meta device; records: where the numbers of each are; sizes: their bytes."""

    tensors: Mapping[str, Tensor]
    records: Mapping[str, str]
    sizes: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Pickle:
    """A pickle, known again by its bytes; file: one that holds it, with these members by their names."""

    raw: bytes
    file: BinaryIO = field(compare=False)
    members: Mapping[str, zipfile.ZipInfo] = field(compare=False)


def open_records(path: Path, file: BinaryIO, members: Sequence[zipfile.ZipInfo]) -> TensorFile | None:
    """The tensors of an open archive whose members are not compressed; it stays open as long as they are asked for.
    None where it holds none, or anything is out of the ordinary: PyTorch's own reader knows what to say of it.
    """
    try:
        [pickle] = [info for info in members if info.filename.lower().endswith(PICKLE)]  # which of two PyTorch may take
        prefix = pickle.filename.removesuffix(PICKLE)
        own = {info.filename.removeprefix(prefix): info for info in members}
        if "byteorder" in own and _record(file, own["byteorder"]).tobytes() != sys.byteorder.encode():
            return None
        raw = _record(file, pickle).tobytes()
        known = (_structure if len(raw) <= _CACHED_PICKLE else _structure.__wrapped__)(_Pickle(raw, file, own))
    except Exception:  # damaged pickles raise anything at all
        return None
    if not known.tensors or any(name not in own or own[name].file_size != size for name, size in known.sizes.items()):
        return None

    size = file.seek(0, os.SEEK_END)

    @cache
    def record(name: str) -> np.ndarray:
        return _record(file, own[name])

    @cache
    def whole() -> np.ndarray:
        return read_array(file, 0, size)

    @cache
    def place(name: str) -> int:
        info = own[name]
        return _behind(whole()[info.header_offset : info.header_offset + _LOCAL], info)

    def get(key: str) -> Tensor:
        tensor, name = known.tensors[key], known.records[key]
        count = known.sizes[name]
        if size <= AT_ONCE and (start := place(name)) % tensor.element_size() == 0 and start + count <= size:
            return _numbers(tensor, whole(), start, count)
        return _numbers(tensor, record(name), 0, count)

    def peek(key: str) -> Tensor:
        tensor, name = known.tensors[key], known.records[key]
        if tensor.numel() > 1:
            return blank(tuple(tensor.shape), tensor.dtype)
        return _numbers(tensor, record(name), 0, known.sizes[name])

    def at_once() -> np.ndarray | None:
        return whole() if size <= AT_ONCE else None

    def same() -> Hashable:
        if not whole.cache_info().currsize:
            return None
        singles = [get(key) for key, tensor in known.tensors.items() if tensor.numel() == 1]
        return known, *(place(name) for name in known.sizes), *(one.item() for one in singles)

    shapes = {key: tuple(tensor.shape) for key, tensor in known.tensors.items()}
    return TensorFile(path, shapes, {}, get, peek, known.notes, structure=same, data=at_once)


def _numbers(tensor: Tensor, data: np.ndarray, start: int, size: int) -> Tensor:
    """What a tensor of the meta device stands for, whose record of `size` bytes begins there in the data."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    numbers = torch.frombuffer(data, dtype=tensor.dtype, count=size // tensor.element_size(), offset=start)
    return numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _record(file: BinaryIO, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member that is stored as it is."""
    return read_array(file, _start(file, info), info.file_size)


def _start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The place in the file of a member's first byte."""
    return _behind(read_array(file, info.header_offset, _LOCAL), info)


def _behind(header: np.ndarray, info: zipfile.ZipInfo) -> int:
    """The place behind a member's header. Raises LoRAFormatError where that is not whole."""
    if len(header) < _LOCAL:
        raise LoRAFormatError(f"The file ends before its member {info.filename!r}. Download it again.")
    name, extra = struct.unpack("<HH", header[26:].tobytes())
    return int(info.header_offset + _LOCAL + name + extra)


@lru_cache(maxsize=64)
def _structure(pickle: _Pickle) -> _Structure:
    """Raises ValueError when a tensor is not numbers one by one in a record of their own bytes, and what PyTorch
    raises.
    """
    pickle.file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(pickle.file, map_location="meta", weights_only=True)
    tensors, notes = named_tensors(content)
    starts = {_start(pickle.file, info): name for name, info in pickle.members.items()}
    if len(starts) < len(pickle.members):
        raise ValueError("Records lie one over the other.")
    records, sizes = {}, {}
    for key, tensor in tensors.items():
        odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_complex()
        if odd or tensor.is_neg() or not tensor.is_meta:
            raise ValueError(f"{key} is no plain tensor.")
        storage = tensor.untyped_storage()
        last = tensor.storage_offset() + sum((d - 1) * s for d, s in zip(tensor.shape, tensor.stride(), strict=True))
        if max(last + 1, tensor.numel()) * tensor.element_size() > storage.nbytes():
            raise ValueError(f"{key} has more numbers than its record.")
        records[key] = starts[int(storage._checkpoint_offset or 0)]
        sizes[records[key]] = storage.nbytes()
    return _Structure(tensors, records, sizes, notes)
