"""Opening files: safetensors, GGUF, npz and weights-only pickles, told apart by their content and checked before
anything is believed.

A `TensorFile` knows the names, shapes and dtypes from the header alone and reads a tensor when asked.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, cast

from lol_core.errors import LoRAFormatError
from lol_core.formats.container.content import HEAD, Container, container_of
from lol_core.formats.container.gguf import open_gguf
from lol_core.formats.container.npz import open_npz
from lol_core.formats.container.pickled import open_pickled
from lol_core.formats.container.safetensors import open_safetensors
from lol_core.formats.container.shards import (
    INDEX_NAMES,
    Neighbours,
    Shards,
    is_named_as_shard,
    join,
    shards_among,
    shards_of,
)
from lol_core.formats.container.tensor_file import TensorFile
from lol_core.formats.container.zips import members

__all__ = [
    "INDEX_NAMES",
    "SUFFIXES",
    "Neighbours",
    "Shards",
    "Stream",
    "TensorFile",
    "open_streams",
    "open_tensors",
    "shards_among",
    "without_waiting",
]

SUFFIXES = (".safetensors", ".sft", ".gguf", ".npz", ".bin", ".pt", ".pth", ".ckpt")
"""Names under which LoRAs are published; what such a file is, its content says."""
SPARING_HEAD = 2**15
"""Bytes read from the start where each costs: the header of most."""
GGUF_HEADER = 2**20
"""Bytes of a GGUF file that hold any adapter's header."""


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open the tensors of a file, or of all shards when it is the first of several; they are read within the block.

    Raises LoRAFormatError with the reason when it is none, or is broken.
    """
    shards = shards_of(path)
    with ExitStack() as stack:
        if shards is None:
            yield stack.enter_context(_open_one(path))
        else:
            yield join(shards, [stack.enter_context(_open_one(path.parent / name)) for name in shards.names])


@dataclass(frozen=True)
class Stream:
    """A file that need not be one of its own: a member of an archive, a range of a remote file. file: open for reading
    and seeking; size: in bytes.
    """

    file: BinaryIO
    name: str
    size: int


@contextmanager
def open_streams(
    streams: Sequence[Stream], shards: Shards | None = None, *, sparing: bool = False
) -> Iterator[TensorFile]:
    """Open the tensors of a file, or of the shards of one LoRA in their order. sparing: each read costs, and only what
    a header says is wanted, so `get` is not to be used.

    Raises LoRAFormatError with the reason when it is none, or is broken, and for a lone shard.
    """
    with ExitStack() as stack:
        if shards is not None:
            yield join(shards, [stack.enter_context(_open_stream(stream, sparing)) for stream in streams])
            return
        (stream,) = streams
        if is_named_as_shard(stream.name):
            raise LoRAFormatError(
                "A shard of one LoRA in several files, and the others are not here. Open the folder or archive that"
                " holds them."
            )
        yield stack.enter_context(_open_stream(stream, sparing))


@contextmanager
def _open_stream(stream: Stream, sparing: bool) -> Iterator[TensorFile]:
    file, size = stream.file, stream.size
    head = file.read(SPARING_HEAD if sparing else HEAD)
    if container_of(head, size) is not Container.GGUF:
        yield _open_content(Path(stream.name), file, head, size, stream=True, sparing=sparing)
        return
    with NamedTemporaryFile(suffix=".gguf") as copy:  # the package reads from a path only
        file.seek(0)
        shutil.copyfileobj(file, copy) if not sparing else copy.write(file.read(GGUF_HEADER))
        copy.truncate(size)
        copy.flush()
        yield open_gguf(Path(copy.name))


@contextmanager
def _open_one(path: Path) -> Iterator[TensorFile]:
    with ExitStack() as stack:
        try:
            file = cast(BinaryIO, stack.enter_context(open(path, "rb", buffering=0, opener=without_waiting)))
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise LoRAFormatError("No file but a pipe, a device or a folder of that name.")
            head = file.read(HEAD)
        except OSError as error:
            raise LoRAFormatError(f"The file cannot be read: {error.strerror or error}.") from error
        except ValueError as error:  # a name with a zero byte
            raise LoRAFormatError(f"The file cannot be read: {error}.") from error
        yield _open_content(path, file, head, status.st_size)


def _open_content(
    path: Path, file: BinaryIO, head: bytes, size: int, *, stream: bool = False, sparing: bool = False
) -> TensorFile:
    """stream: the file is no file at that path."""
    container = container_of(head, size)
    if container is Container.GGUF:
        return open_gguf(path)
    if container is Container.ZIP:
        infos = members(file, size)
        if infos and all(info.filename.endswith(".npy") for info in infos):
            return open_npz(path, file, infos)
        return open_pickled(path, file, infos, stream=stream, sparing=sparing)
    if container is Container.PICKLE:
        return open_pickled(path, file, stream=stream)
    if container is None and path.suffix.lower() not in (".safetensors", ".sft"):
        raise LoRAFormatError(
            "Neither safetensors nor GGUF, npz or a PyTorch file: its first bytes are of none of them. It is damaged,"
            " or of another kind."
        )
    return open_safetensors(path, file, head, size, sparing=sparing)


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open`: a named pipe, which would wait for its other end, opens at once."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
