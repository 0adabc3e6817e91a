"""PyTorch files (.bin, .pt, .pth, .ckpt), through PyTorch's restricted unpickler only: anything but tensors and plain
containers is refused, never executed.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lol_core.core.errors import LoLError
from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats.container.nested import named_tensors
from lol_core.formats.container.records import open_records
from lol_core.formats.container.tensor_file import FEW_READS, SAMPLED, TensorFile, blank

_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|type)[ :'\"<]+([\w.]+\.[\w]+)")


def open_pickled(
    path: Path,
    opened: BinaryIO,
    members: Sequence[zipfile.ZipInfo] | None = None,
    *,
    stream: bool = False,
    sparing: bool = False,
) -> TensorFile:
    """The tensors of an open PyTorch file; members: of its zip archive, None for the older container; stream: the file
    is no file at that path; sparing: of which only what `peek` needs is read.

    Raises LoRAFormatError when it is damaged or holds more than tensors, NotLowRankError when it holds none.
    """
    if members is not None:
        names = [info.filename for info in members]
        if not any(name.endswith("data.pkl") for name in names):
            inside = f"{len(names)} file{'s' * (len(names) != 1)} (first {names[0]!r})" if names else "nothing"
            raise NotLowRankError(f"A zip archive of {inside}, no weights as PyTorch or NumPy write them. Unpack it.")
        if any(name.endswith("constants.pkl") for name in names):
            raise NotLowRankError("A TorchScript program: code and weights in one, no adapter. It was not executed.")
    # PyTorch maps also compressed numbers into memory as if they were none
    stored = members is not None and all(info.compress_type == zipfile.ZIP_STORED for info in members)
    if members and stored and not stream and (known := open_records(path, opened, members)):
        return known
    file = opened if stream else None
    content = _without_data(file) if sparing and file else _load(path, file, mapped=stored)
    tensors, notes = named_tensors(content)
    if not tensors:
        raise NotLowRankError(f"The file holds no tensors but {_summary(content)}.")

    sampled: dict[tuple[str, torch.dtype], Tensor] = {}
    scattered = sparing and sum(tensor.numel() <= 1 for tensor in tensors.values()) > FEW_READS
    notes += (SAMPLED,) if scattered else ()

    def get(key: str) -> Tensor:
        return _dense(key, tensors[key])

    def peek(key: str) -> Tensor:
        tensor = _dense(key, tensors[key])
        if tensor.numel() > 1:
            return blank(tuple(tensor.shape), tensor.dtype)
        if not (sparing and file):
            return tensor
        kind = (key.rpartition(".")[2] if scattered else key), tensor.dtype
        if kind not in sampled:
            sampled[kind] = _single_number(file, tensor)
        return sampled[kind].reshape(tuple(tensor.shape))

    return TensorFile(path, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, {}, get, peek, notes)


def _without_data(file: BinaryIO) -> Any:
    """What the file holds, its tensors without numbers, which know where in the file theirs are."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a while to import, and few people need it

    with FakeTensorMode():
        return _load(Path(), file)


def _single_number(file: BinaryIO, tensor: Tensor) -> Tensor:
    start = int(tensor.untyped_storage()._checkpoint_offset or 0)
    file.seek(start + int(tensor.storage_offset()) * tensor.element_size())
    data = bytearray(file.read(tensor.numel() * tensor.element_size()))
    return torch.frombuffer(data, dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)


class _Remembering:
    """A stream that remembers what it raised, which PyTorch's reader wraps or, rarely, loses."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: LoLError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def _tried(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except LoLError as error:
            self.error = error
            raise

    def read(self, *size: int) -> Any:
        return self._tried(self.file.read, *size)

    def readinto(self, buffer: Any) -> Any:
        return self._tried(self.file.readinto, buffer)  # type: ignore[attr-defined]  # BinaryIO names none, and every stream has it

    def readline(self, *size: int) -> Any:
        return self._tried(self.file.readline, *size)


def _load(path: Path, file: BinaryIO | None, *, mapped: bool = False) -> Any:
    stream = None if file is None else _Remembering(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries of damaged files complain at length, and are answered below
        try:
            if stream is not None:
                stream.seek(0)
                return torch.load(stream, map_location="cpu", weights_only=True)
            if mapped and path.suffix.lower() not in (".safetensors", ".sft"):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as opened:  # not by its name, by which PyTorch would take it for safetensors
                return torch.load(opened, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged pickles raise anything at all
            if stream is not None and stream.error is not None:
                raise stream.error from None
            if isinstance(error, pickle.UnpicklingError):
                forbidden = _FORBIDDEN.search(str(error))
                what = f"Python objects ({forbidden[1]})" if forbidden else "more than tensors, or is damaged"
                raise LoRAFormatError(
                    f"A pickle that holds {what}. It was not executed. Convert it to safetensors where it was made."
                ) from error
            raise LoRAFormatError("Not a readable PyTorch file. It is damaged, or of another kind.") from error


def _dense(key: str, tensor: Tensor) -> Tensor:
    """The tensor, when its numbers are all there one by one. Raises LoRAFormatError when not."""
    problem = None
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        problem = f"is {'quantised' if tensor.is_quantized else kind} on {tensor.device}; expected plain numbers"
    elif tensor.is_complex():
        problem = f"has the dtype {tensor.dtype}; expected real numbers"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        problem = f"repeats {tensor.untyped_storage().nbytes():,} bytes as the shape {tuple(tensor.shape)}"
    if problem:
        raise LoRAFormatError(f"{key!r} {problem}. Save it again as a plain tensor.")
    return tensor


def _summary(content: Any) -> str:
    if isinstance(content, Mapping):
        names = ", ".join(repr(str(key)[:40]) for key in list(content)[:5])
        return f"a dictionary of {len(content)} entries ({names}{', …' if len(content) > 5 else ''})"
    return f"a {type(content).__name__}"
