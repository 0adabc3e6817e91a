"""Opening files: safetensors, npz and weights-only pickles, told apart and checked before anything is believed.

A `TensorFile` knows the names, shapes and dtypes from the header alone and reads a tensor when asked.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lol_core.errors import LoRAFormatError

SUFFIXES = (".safetensors", ".npz", ".bin", ".pt", ".pth", ".ckpt")
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorFile:
    """The named tensors of one file.

    `get(key)` returns the tensor; `peek(key)` returns the tensor when it has at most one element (an alpha) and
    else one of the same shape and dtype on the meta device, without reading its data.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    get: Callable[[str], Tensor]
    peek: Callable[[str], Tensor]

    @property
    def keys(self) -> list[str]:
        return list(self.shapes)


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors by its content. Raises LoRAFormatError with the reason when it is not one, or is
    broken.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise LoRAFormatError(f"The file cannot be read: {error.strerror or error}.") from error
    if head.startswith(LFS_POINTER):
        raise LoRAFormatError(
            "A Git-LFS pointer, not the weights themselves. Run `git lfs pull` in its repository to fetch them."
        )
    if size < 8:
        raise LoRAFormatError(f"The file has {size} bytes: too short to hold any tensor. Download it again.")
    if path.suffix == ".safetensors":
        return _open_safetensors(path, size)
    if path.suffix == ".npz":
        return _open_npz(path)
    return _open_pickle(path)


def _open_safetensors(path: Path, size: int) -> TensorFile:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise LoRAFormatError(
                f"Not a safetensors file, or cut off: its first 8 bytes announce a header of {length:,} bytes, but the"
                f" file has {size:,} bytes in all."
            )
        raw = file.read(length)

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise LoRAFormatError(
                    f"The safetensors header names {key!r} twice, so it is not clear which tensor is meant."
                )
            found[key] = value
        return found

    try:
        header = json.loads(raw, object_pairs_hook=reject_duplicates)
    except ValueError as error:
        raise LoRAFormatError(
            f"The safetensors header is no valid JSON ({error}). The file is damaged; download it again."
        ) from error
    if not isinstance(header, dict):
        raise LoRAFormatError("The safetensors header is no JSON object. The file is damaged; download it again.")
    metadata = header.pop("__metadata__", None) or {}
    shapes, dtypes, end = {}, {}, 0
    for key, entry in header.items():
        try:
            shapes[key], dtypes[key] = tuple(entry["shape"]), entry["dtype"]
            end = max(end, entry["data_offsets"][1])
        except (KeyError, TypeError, IndexError) as error:
            raise LoRAFormatError(
                f"The safetensors header entry of {key!r} lacks its shape, dtype or offsets. The file is damaged."
            ) from error
    if 8 + length + end > size:
        raise LoRAFormatError(
            f"The file is cut off: its header promises {8 + length + end:,} bytes and {size:,} are there. Download it"
            " again."
        )

    opened: list[Any] = []  # one handle serves all tensors; it is opened when the first is asked for

    def get(key: str) -> Tensor:
        try:
            if not opened:
                opened.append(safe_open(path, "pt"))
            return opened[0].get_tensor(key)
        except (SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
            raise LoRAFormatError(
                f"{key!r} cannot be read ({error!s}); its dtype in the header is {dtypes[key]}."
            ) from error

    def peek(key: str) -> Tensor:
        if np.prod(shapes[key]) <= 1:
            return get(key)
        if dtypes[key] not in SAFETENSORS_DTYPES:
            raise LoRAFormatError(
                f"{key!r} has the dtype {dtypes[key]}; expected one of {', '.join(SAFETENSORS_DTYPES)}."
            )
        return torch.empty(shapes[key], dtype=SAFETENSORS_DTYPES[dtypes[key]], device="meta")

    return TensorFile(path, shapes, metadata, get, peek)


def _open_npz(path: Path) -> TensorFile:
    shapes, dtypes = {}, {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read_header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read_header(file)
                key = member.removesuffix(".npy")
                shapes[key], dtypes[key] = shape, dtype
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise LoRAFormatError(f"Not a readable .npz archive ({error}). Download it again.") from error
    for key, dtype in dtypes.items():
        if dtype.hasobject or dtype.kind not in "fiu":
            raise LoRAFormatError(
                f"{key!r} has the NumPy dtype {dtype}; expected numbers. Arrays of Python objects are never loaded."
            )

    def get(key: str) -> Tensor:
        with np.load(path, allow_pickle=False) as archive:
            return torch.from_numpy(archive[key])

    def peek(key: str) -> Tensor:
        if np.prod(shapes[key]) <= 1:
            return get(key)
        return torch.empty(shapes[key], dtype=torch.from_numpy(np.empty(0, dtypes[key])).dtype, device="meta")

    return TensorFile(path, shapes, {}, get, peek)


def _open_pickle(path: Path) -> TensorFile:
    """A .bin/.pt file, through PyTorch's restricted unpickler only: anything but tensors and plain containers is
    refused, never executed.
    """
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the older, non-zip container cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LoRAFormatError(
            "A pickle that holds more than tensors, or no pickle at all. It was not executed. Convert it to"
            " safetensors."
        ) from error
    except Exception as error:  # damaged pickles raise anything at all
        raise LoRAFormatError(
            f"Not a readable PyTorch file ({type(error).__name__}). It is damaged, or of another kind."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, list | tuple):  # cloneofsimo's unnamed list
        content = {f"{i}": tensor for i, tensor in enumerate(content)}
    tensors = (
        {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise LoRAFormatError("The file holds no tensors.")

    def peek(key: str) -> Tensor:
        return tensors[key] if tensors[key].numel() <= 1 else tensors[key].to("meta")

    return TensorFile(
        path, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, {}, tensors.__getitem__, peek
    )
