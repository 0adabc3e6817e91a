"""The content of files that need not lie on a disk of their own: parts of larger files, here or elsewhere."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, cast

from lol_core.collections.describe import sampled_digest
from lol_core.errors import LoRAFormatError


class Blob(Protocol):
    """The content of one file. It can be sent to another process.

    size: in bytes, None where it is not known before it is opened; identity: what tells its content from that before a
    change, known without reading it; sparing: whether each read of it costs.
    """

    @property
    def sparing(self) -> bool: ...

    @property
    def size(self) -> int | None: ...

    @property
    def identity(self) -> str: ...

    def open(self) -> BinaryIO:
        """Its content, seekable, to be read whole. Raises LoRAFormatError, ZooError or OSError when it cannot be."""
        ...

    def glance(self) -> BinaryIO:
        """The same, to read a header only: what is not read does not cost."""
        ...

    def digest(self, file: BinaryIO) -> str:
        """Identity of its content, as it was opened to glance at."""
        ...


class RangeFile(io.RawIOBase):
    """A file of which each read asks for the range that it needs.

    fetch: (start, stop) → those bytes; head: the first bytes, where they are known; block: what is read at least, and
    kept until the next read; close: called when it is closed.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size: int,
        head: bytes = b"",
        *,
        block: int = 0,
        close: Callable[[], object] = lambda: None,
    ):
        self._fetch, self._size, self._block, self._close = fetch, size, block, close
        self._kept, self._kept_from = head, 0
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"a position before the start of the file: {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._range(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        return self._range(self._size if size is None or size < 0 else size)

    def readall(self) -> bytes:
        return self.read()

    def _range(self, count: int) -> bytes:
        start, stop = self._position, min(self._position + count, self._size)
        if start >= stop:
            return b""
        offset = start - self._kept_from
        data = self._kept[offset : offset + stop - start] if offset >= 0 else b""
        if len(data) < stop - start:
            start += len(data)
            fetched = self._fetch(start, max(stop, min(start + self._block, self._size)))
            if self._block:
                self._kept, self._kept_from = fetched, start
            data += fetched[: stop - start]
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed and hasattr(self, "_close"):  # nothing is open where it could not be made
            self._close()
        super().close()


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine as it was when its size and time (ns) were taken."""

    path: Path
    size: int
    time: int
    sparing: ClassVar[bool] = False

    @classmethod
    def of(cls, path: Path) -> LocalFile:
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    @property
    def identity(self) -> str:
        return f"{self.size} {self.time}"

    def open(self) -> BinaryIO:
        """Raises LoRAFormatError when it has changed."""
        file = self.path.open("rb")
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self.time):
            file.close()
            raise LoRAFormatError(f"{self.path.name} has changed since the collection was opened. Open it again.")
        return file

    glance = open

    def digest(self, file: BinaryIO) -> str:
        return sampled_digest(file, self.size)


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a larger file, as it is."""

    whole: Blob
    start: int
    size: int
    identity: str

    @property
    def sparing(self) -> bool:
        return self.whole.sparing

    def open(self) -> BinaryIO:
        return part_of(self.whole.glance(), self.start, self.size)

    glance = open

    def digest(self, file: BinaryIO) -> str:
        return sampled_digest(file, self.size)


def part_of(whole: BinaryIO, start: int, size: int) -> BinaryIO:
    """A range of an open file as a file, which closes the larger one with it."""

    def fetch(first: int, last: int) -> bytes:
        whole.seek(start + first)
        return whole.read(last - first)

    return cast(BinaryIO, RangeFile(fetch, size, close=whole.close))
