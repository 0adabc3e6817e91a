"""NumPy archives, read member by member; arrays of Python objects are never loaded."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.container.tensor_file import TensorFile, blank, check_shape

_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError, RuntimeError)
_CHUNK = 2**20


class _Array(NamedTuple):
    """stored: the dtype in the file, maybe of the other byte order; start: where in its member the numbers begin."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: np.dtype
    fortran: bool
    start: int


def open_npz(path: Path, file: BinaryIO, members: Sequence[zipfile.ZipInfo]) -> TensorFile:
    """The arrays of an open archive, which stays open as long as they are asked for.

    Every member is read through once, so that damage shows at once and not when its numbers are wanted. Raises
    LoRAFormatError when a member is damaged, is no array, holds no numbers, or is not as long as its header says.
    """
    infos = {info.filename.removesuffix(".npy"): info for info in members}
    try:
        archive = zipfile.ZipFile(file)
        arrays = {key: _array(archive, info, key) for key, info in infos.items()}
    except _ERRORS as error:
        raise LoRAFormatError(f"Not a readable .npz archive ({error}). Download it again.") from error
    shapes = {key: array.shape for key, array in arrays.items()}

    def get(key: str) -> Tensor:
        of = arrays[key]
        try:
            with archive.open(infos[key]) as member:
                member.read(of.start)
                numbers = bytearray(member.read())
            array = np.ndarray(of.shape, of.stored, numbers, order="F" if of.fortran else "C")
            return torch.from_numpy(array.astype(of.stored.newbyteorder("="), copy=False))
        except (*_ERRORS, TypeError) as error:
            raise LoRAFormatError(f"{key!r} cannot be read from the .npz archive ({error}). Read it again.") from error

    def peek(key: str) -> Tensor:
        of = arrays[key]
        return get(key) if prod(of.shape) <= 1 else blank(of.shape, of.dtype)

    return TensorFile(path, shapes, {}, get, peek)


@lru_cache(maxsize=1024)
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran's order, dtype). Most of an archive's arrays have one of few headers."""
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(BytesIO(header))


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> _Array:
    with archive.open(info) as member:
        version = npy.read_magic(member)
        length = member.read(2 if version == (1, 0) else 4)
        size = int.from_bytes(length, "little")
        shape, fortran, dtype = _parsed(version, length + member.read(size))
        start, rest = npy.MAGIC_LEN + len(length) + size, 0
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
    return _Array(shape, torch_dtype, dtype, fortran, start)
