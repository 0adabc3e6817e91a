"""PyTorch files (.bin, .pt, .pth, .ckpt), through PyTorch's restricted unpickler only: anything but tensors and plain
containers is refused, never executed.

The adapter may lie under a key beside the epoch and the optimizer's state, and is looked for there.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lol_core.core.errors import LoLError
from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats.container.tensor_file import FEW_READS, SAMPLED, TensorFile, blank

_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|type)[ :'\"<]+([\w.]+\.[\w]+)")
_ASIDE = re.compile(r"optim|sched|(?:^|_)ema(?:_|$)|rng|scaler|loss|callbacks|loops", re.IGNORECASE)
"""What a training state keeps beside its weights: numbers of the same names, or an older copy of them."""
WRAPPERS = frozenset(
    "state_dict module model model_state_dict lora lora_state_dict lora_weights network net weights params adapter"
    " adapter_state_dict peft_state_dict trainable trainable_state_dict".split()
)
"""Keys that say nothing of the model they hold, and are no part of a tensor's name."""
_DEPTH = 8
_CONTAINERS = 100_000
Tree = dict[str, "Tensor | Tree"]


def open_pickled(
    path: Path,
    members: Sequence[zipfile.ZipInfo] | None = None,
    file: BinaryIO | None = None,
    *,
    sparing: bool = False,
) -> TensorFile:
    """The tensors of a PyTorch file; members: of its zip archive, None for the older container; file: what to read
    instead of what lies at the path; sparing: of which only what `peek` needs is read.

    Raises LoRAFormatError when it is damaged or holds more than tensors, NotLowRankError when it holds none.
    """
    if members is not None:
        names = [info.filename for info in members]
        if not any(name.endswith("data.pkl") for name in names):
            inside = f"{len(names)} files (first {names[0]!r})" if names else "nothing"
            raise NotLowRankError(f"A zip archive of {inside}, no weights as PyTorch or NumPy write them. Unpack it.")
        if any(name.endswith("constants.pkl") for name in names):
            raise NotLowRankError("A TorchScript program: code and weights in one, no adapter. It was not executed.")
    content = _without_data(file) if sparing and file else _load(path, file, zipped=members is not None)
    tree, notes = _unwrap(_tensors_in(content, (), iter(range(_CONTAINERS))))
    tensors = dict(_named(tree, ""))
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
        return _load(Path(), file, zipped=True)


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


def _load(path: Path, file: BinaryIO | None, *, zipped: bool) -> Any:
    stream = None if file is None else _Remembering(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries of damaged files complain at length, and are answered below
        try:
            if stream is not None:
                stream.seek(0)
                return torch.load(stream, map_location="cpu", weights_only=True)
            if zipped and path.suffix.lower() not in (".safetensors", ".sft"):
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


def _tensors_in(content: Any, above: tuple[int, ...], visits: Iterator[int]) -> Tree:
    """The tensors of nested dictionaries and lists, the positions of a list as names; what holds none is left out.

    above: the containers on the way here, none of which is entered again, for a pickle may hold itself. Raises
    LoRAFormatError when a name comes twice, or when there are more containers than `visits`.
    """
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or len(above) > _DEPTH:
        return {}
    if next(visits, None) is None:
        raise LoRAFormatError(f"The file nests more than {_CONTAINERS:,} dictionaries and lists; no adapter does.")
    tree: Tree = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            inner: Tensor | Tree = value.detach()
        elif id(value) in above or not (inner := _tensors_in(value, (*above, id(value)), visits)):
            continue
        if str(key) in tree:
            raise LoRAFormatError(f"The file holds {str(key)!r} twice, so it is not clear which is meant.")
        tree[str(key)] = inner
    return tree


def _unwrap(tree: Tree) -> tuple[Tree, tuple[str, ...]]:
    """The weights of a training state, without what it keeps beside them, and notes of both."""
    way, aside = [], []
    while not any(isinstance(value, Tensor) and value.numel() > 1 for value in tree.values()):
        nested = {key: value for key, value in tree.items() if isinstance(value, dict)}
        weights = {key: value for key, value in nested.items() if not _ASIDE.search(key)} or nested
        aside += [key for key in nested if key not in weights]
        tree = {key: value for key, value in tree.items() if key in weights or isinstance(value, Tensor)}
        [(key, inner), *others] = weights.items() or [("", {})]
        if others or (len(inner) < 2 and key not in WRAPPERS) or key.isdigit():
            break
        way.append(key)
        tree = inner
    notes = [f"Its tensors lie under {'.'.join(way)!r} in the file."] if way else []
    notes += [f"What lies beside them is left out: {', '.join(aside)}."] if aside else []
    return tree, tuple(notes)


def _named(tree: Tree, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield from _named(value, prefix if key in WRAPPERS else f"{prefix}{key}.")


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
