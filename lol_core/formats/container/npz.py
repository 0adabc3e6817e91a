"""NumPy archives, read member by member; arrays of Python objects are never loaded."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.container.tensor_file import TensorFile, blank, check_shape

_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError)
_CHUNK = 2**20


def open_npz(path: Path, file: BinaryIO, members: Sequence[zipfile.ZipInfo]) -> TensorFile:
    """The arrays of an open archive, which stays open as long as they are asked for.

    Every member is read through once, so that damage shows at once and not when its numbers are wanted. Raises
    LoRAFormatError when a member is damaged, is no array, holds no numbers, or is not as long as its header says.
    """
    infos = {info.filename.removesuffix(".npy"): info for info in members}
    try:
        archive = zipfile.ZipFile(file)
        headers = {key: _header(archive, info, key) for key, info in infos.items()}
    except _ERRORS as error:
        raise LoRAFormatError(f"Not a readable .npz archive ({error}). Download it again.") from error
    shapes = {key: shape for key, (shape, _) in headers.items()}

    def get(key: str) -> Tensor:
        try:
            with archive.open(infos[key]) as member:
                array = npy.read_array(member, allow_pickle=False)
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (*_ERRORS, TypeError) as error:
            raise LoRAFormatError(f"{key!r} cannot be read from the .npz archive ({error}). Read it again.") from error

    def peek(key: str) -> Tensor:
        shape, dtype = headers[key]
        return get(key) if prod(shape) <= 1 else blank(shape, dtype)

    return TensorFile(path, shapes, {}, get, peek)


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> tuple[tuple[int, ...], torch.dtype]:
    with archive.open(info) as member:
        version = npy.read_magic(member)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(member)
        rest = 0
        while chunk := member.read(_CHUNK):
            rest += len(chunk)
    if dtype.hasobject:
        raise LoRAFormatError(f"{key!r} is an array of Python objects ({dtype}); expected numbers. It is never loaded.")
    try:
        torch_dtype = torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
        if torch_dtype.is_complex:
            raise TypeError("complex")
    except TypeError as error:
        raise LoRAFormatError(f"{key!r} has the NumPy dtype {dtype}; expected numbers that PyTorch knows.") from error
    shape, count = check_shape(key, shape)
    if count * dtype.itemsize != rest:
        raise LoRAFormatError(
            f"{key!r} of shape {shape} and dtype {dtype} takes {count * dtype.itemsize:,} bytes; found {rest:,}."
            " The file is damaged; download it again."
        )
    return shape, torch_dtype
