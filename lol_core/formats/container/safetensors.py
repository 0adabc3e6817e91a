"""safetensors files, checked as the format's own library checks them: every byte of the data belongs to one tensor.

Structures repeat: thousands of files of a collection differ in their metadata and data alone. So the part of the
header that describes tensors is parsed once for all files that share it, byte for byte.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.container.tensor_file import FEW_READS, SAMPLED, TensorFile, blank, check_shape

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
"""Bits a number takes, also of the types whose tensors may stand in a file but are not read."""
AT_ONCE = 2**28
"""Files of no more bytes of data are read by one read; of larger ones, each tensor as it is asked for."""
NEAR = 4096
"""Single numbers this close to each other in the file are read at once, with what lies between them."""


_METADATA = re.compile(r'\{\s*"__metadata__"\s*:\s*')
_CACHED_HEADER = 4_000_000
DAMAGED = "The file is damaged; download it again."


@dataclass(frozen=True, eq=False)
class Layout:
    """Which tensors a file holds and where. places: dtype as the header names it, first and last byte in the data;
    size: bytes of data; runs: stretches of the data with the single numbers in them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    places: Mapping[str, tuple[str, int, int]]
    size: int
    runs: tuple[tuple[int, int, tuple[str, ...]], ...]


def open_safetensors(path: Path, file: BinaryIO, head: bytes, size: int, *, sparing: bool = False) -> TensorFile:
    """The tensors of an open file of `size` bytes that begins with `head`; it stays open as long as they are asked for.
    sparing: each read costs, so of single numbers scattered over the file only the first of each kind is read.

    Raises LoRAFormatError when any byte is unaccounted for.
    """
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise LoRAFormatError(
            f"Not a safetensors file, or cut off: its first 8 bytes announce a header of {length:,} bytes, but the"
            f" file has {size:,} bytes in all."
        )
    try:
        raw = head[8 : 8 + length] if 8 + length <= len(head) else read_array(file, 8, length).tobytes()
        text = raw.decode()
    except ValueError as error:
        raise _no_json(error) from error
    metadata, structure = _split(text)
    layout, later = (_parse if length <= _CACHED_HEADER else _parse.__wrapped__)(structure)
    if metadata is not None and later is not None:
        raise LoRAFormatError("The safetensors header names '__metadata__' twice, so it is not clear which is meant.")
    metadata = metadata or dict(later or {})
    if 8 + length + layout.size > size:
        raise LoRAFormatError(
            f"The file is cut off: its header promises {8 + length + layout.size:,} bytes and {size:,} are there."
            " Download it again."
        )
    if 8 + length + layout.size < size:
        raise LoRAFormatError(
            f"The file has {size:,} bytes, of which its header describes the first {8 + length + layout.size:,}:"
            " something was appended, or the header is another file's. Download it again."
        )
    data = 8 + length

    sampled = sparing and len(layout.runs) > FEW_READS

    @cache
    def numbers() -> list[bytes]:
        if sampled:
            return _sampled_numbers(file, data, layout)
        return _single_numbers(within if whole.cache_info().currsize else _reader(file), data, layout)

    def within(count: int, place: int) -> bytes:
        return whole()[place - data : place - data + count].tobytes()

    @cache
    def whole() -> np.ndarray:
        return read_array(file, data, layout.size)

    @cache
    def scalars() -> dict[str, Tensor]:
        return _as_tensors(layout, numbers())

    def get(key: str) -> Tensor:
        shape = layout.shapes[key]
        count = prod(shape)
        if count <= 1:
            return peek(key)
        name, start, end = layout.places[key]
        dtype = _torch_dtype(key, name)
        if layout.size <= AT_ONCE and start % dtype.itemsize == 0:
            buffer = whole()
        else:
            buffer, start = read_array(file, data + start, end - start), 0
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start).view(*shape)

    def peek(key: str) -> Tensor:
        shape, dtype = layout.shapes[key], _torch_dtype(key, layout.places[key][0])
        return blank(shape, dtype) if prod(shape) > 1 else scalars()[key]

    def same() -> Hashable:
        return layout, b"".join(numbers())

    def at_once() -> np.ndarray | None:
        return whole() if layout.size <= AT_ONCE else None

    notes = (SAMPLED,) if sampled else ()
    return TensorFile(path, layout.shapes, metadata, get, peek, notes, structure=same, data=at_once)


def _torch_dtype(key: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise LoRAFormatError(f"{key!r} has the dtype {name}; expected one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def read_array(file: BinaryIO, position: int, count: int) -> np.ndarray:
    """Bytes of the file. Not a memory map: when another program cuts the file off, that would end this one."""
    buffer = np.empty(count, dtype=np.uint8)
    file.seek(position)
    filled = 0
    while filled < count:
        added = file.readinto(buffer[filled:].data)  # type: ignore[attr-defined]  # BinaryIO has no readinto
        if not added:
            raise LoRAFormatError("The file ended before its last tensor: it was changed while it was read. Try again.")
        filled += added
    return buffer


def _single_numbers(read: Callable[[int, int], bytes], data: int, layout: Layout) -> list[bytes]:
    """The bytes of all tensors of one number (or none), in the order of `layout.runs`, by few reads."""
    values = []
    for start, end, keys in layout.runs:
        stretch = read(end - start, data + start)
        if len(stretch) < end - start:
            raise LoRAFormatError(f"The file ended before {keys[0]!r}: it was changed while it was read. Try again.")
        if len(keys) == 1:
            values.append(stretch)
            continue
        for key in keys:
            _, first, last = layout.places[key]
            values.append(stretch[first - start : last - start])
    return values


def _sampled_numbers(file: BinaryIO, data: int, layout: Layout) -> list[bytes]:
    """The same when the first of each dtype, shape and last part of a name stands for all of them."""
    first: dict[tuple[str, tuple[int, ...], str], bytes] = {}
    faults = []
    read = _reader(file)
    for key in (key for _, _, keys in layout.runs for key in keys):
        dtype, start, end = layout.places[key]
        kind = dtype, layout.shapes[key], key.rpartition(".")[2]
        if kind not in first:
            first[kind] = read(end - start, data + start)
        faults.append(first[kind])
    return faults


def _reader(file: BinaryIO) -> Callable[[int, int], bytes]:
    """What reads a number of bytes at a place: one call of the system where the file is one of the system's."""
    if isinstance(file, io.FileIO) and hasattr(os, "pread"):
        return partial(os.pread, file.fileno())

    def read(count: int, place: int) -> bytes:
        file.seek(place)
        return file.read(count)

    return read


def _as_tensors(layout: Layout, numbers: Sequence[bytes]) -> dict[str, Tensor]:
    groups: dict[tuple[str, tuple[int, ...]], tuple[list[str], list[bytes]]] = {}
    for key, value in zip((key for _, _, keys in layout.runs for key in keys), numbers, strict=True):
        names, values = groups.setdefault((layout.places[key][0], layout.shapes[key]), ([], []))
        names.append(key)
        values.append(value)
    tensors: dict[str, Tensor] = {}
    for (dtype, shape), (names, values) in groups.items():
        if dtype not in DTYPES:
            continue
        if not values[0]:
            tensors |= {name: torch.empty(shape, dtype=DTYPES[dtype]) for name in names}
            continue
        together = torch.frombuffer(bytearray(b"".join(values)), dtype=DTYPES[dtype])
        tensors |= zip(names, together.reshape(-1, *shape).unbind(), strict=True)
    return tensors


def _split(text: str) -> tuple[dict[str, str] | None, str]:
    """(metadata, the rest of the header as JSON). The metadata come first in every file that the library wrote; None
    where they do not.
    """
    if not (start := _METADATA.match(text)):
        return None, text
    try:
        metadata, end = json.JSONDecoder(object_pairs_hook=_reject_twins).raw_decode(text, start.end())
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from error
    rest = text[end:].lstrip()
    if rest.startswith(","):
        rest = rest[1:].lstrip()
        if rest.startswith("}"):
            raise _no_json(ValueError("trailing comma"))
    elif not rest.startswith("}"):
        raise _no_json(ValueError("expected a comma or a closing brace after the metadata"))
    return check_metadata(metadata), "{" + rest


def check_metadata(metadata: object) -> dict[str, str]:
    """The metadata when they are what the format allows, text by text. Raises LoRAFormatError when not."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise LoRAFormatError(
            f"The safetensors header's metadata are {_json_type(metadata)}; expected an object of texts. {DAMAGED}"
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise LoRAFormatError(
                f"The safetensors header's metadata hold {_json_type(value)} under {key!r}; expected text, which is"
                " all the format allows. Save the file again with its metadata as text."
            )
    try:
        "".join((*metadata, *metadata.values())).encode()
    except UnicodeEncodeError as error:
        raise _no_json(error) from error
    return metadata


@lru_cache(maxsize=64)
def _parse(text: str) -> tuple[Layout, dict[str, str] | None]:
    """The layout that a header describes, and the metadata where they do not come first."""
    try:
        header = orjson.loads(text)
        if isinstance(header, dict) and ("__metadata__" in header or not _names_each_once(text, len(header))):
            header = json.loads(text, object_pairs_hook=_reject_twins)
    except (ValueError, RecursionError) as error:
        raise _no_json(error) from error
    if not isinstance(header, dict):
        raise LoRAFormatError(f"The safetensors header is no JSON object but {_json_type(header)}. {DAMAGED}")
    metadata = check_metadata(header.pop("__metadata__")) if "__metadata__" in header else None
    shapes, places = {}, {}
    for key, entry in header.items():
        try:
            dtype, (start, end) = entry["dtype"], entry["data_offsets"]
            bits = BITS.get(dtype)
            shape, count = check_shape(key, entry["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise LoRAFormatError(
                f"The safetensors header entry of {key!r} lacks its shape, dtype or offsets. {DAMAGED}"
            ) from error
        if bits is None:
            raise LoRAFormatError(f"{key!r} has the dtype {str(dtype)[:80]!r}; expected one of {', '.join(BITS)}.")
        if type(start) is not int or type(end) is not int:
            raise LoRAFormatError(
                f"{key!r} has the offsets {str([start, end])[:80]}; expected two whole numbers. {DAMAGED}"
            )
        if bits * count != 8 * (end - start):
            raise LoRAFormatError(
                f"{key!r} of shape {shape} and dtype {dtype} takes {bits * count / 8:,.0f} bytes, but the header"
                f" gives it {end - start:,}. {DAMAGED}"
            )
        shapes[key], places[key] = shape, (dtype, start, end)
    return Layout(shapes, places, _check_gapless(places), _runs(shapes, places)), metadata


def _names_each_once(text: str, entries: int) -> bool:
    """Whether no name can have been given twice, of which `orjson` keeps the last: each entry has its fields once."""
    return text.count('"data_offsets"') == text.count('"shape"') == text.count('"dtype"') == entries


def _reject_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [key for key, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise LoRAFormatError(f"The safetensors header names {twin!r} twice, so it is not clear which is meant.")
    return unique


def _check_gapless(places: Mapping[str, tuple[str, int, int]]) -> int:
    """The bytes that the tensors take together. Raises LoRAFormatError when they overlap or leave a hole."""
    position = 0
    for start, end, key in sorted((start, end, key) for key, (_, start, end) in places.items()):
        if start != position:
            what = "overlaps the tensor before it" if start < position else "leaves a hole before it"
            raise LoRAFormatError(
                f"{key!r} begins at byte {start:,} of the data; expected {position:,}, so it {what}. {DAMAGED}"
            )
        position = end
    return position


def _runs(
    shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, tuple[str, int, int]]
) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    scalars = sorted((*places[key][1:], key) for key, shape in shapes.items() if prod(shape) <= 1)
    runs: list[tuple[int, int, list[str]]] = []
    for start, end, key in scalars:
        if runs and start - runs[-1][1] <= NEAR:
            runs[-1][2].append(key)
            runs[-1] = (runs[-1][0], end, runs[-1][2])
        else:
            runs.append((start, end, [key]))
    return tuple((start, end, tuple(keys)) for start, end, keys in runs)


def _no_json(error: Exception) -> LoRAFormatError:
    return LoRAFormatError(f"The safetensors header is no valid JSON ({str(error)[:200]}). {DAMAGED}")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
