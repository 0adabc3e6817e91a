"""Files on the Hugging Face hub: glanced at by ranges, downloaded through the hub library's cache when needed."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from lol_core.collections.blob import Blob
from lol_core.collections.http import GLANCE_BYTES, NetworkError, RemoteFile, asked_once, download, fetch
from lol_core.collections.hub_address import Kind
from lol_core.collections.resuming import complete
from lol_core.collections.waiting import stopping
from lol_core.core.progress import Reporter
from lol_core.errors import ZooError

_SHA256 = re.compile("[0-9a-f]{64}")
"""What names a content on the hub that lies in LFS, as every file of weights does."""
GIGABYTE = 10**9


@dataclass
class Budget:
    """What one collection may put into a cache. used: bytes that it has there; of each process its own."""

    allowed: int
    used: int = 0

    @contextmanager
    def taking(self, size: int, what: str) -> Iterator[None]:
        """So many bytes more, once what is done with them succeeds. Raises ZooError when they are too many."""
        if self.used + size > self.allowed:
            raise ZooError(
                f"{what} has {size:,} bytes, and {self.used / GIGABYTE:.1f} GB of this collection are here already;"
                f" {self.allowed / GIGABYTE:.1f} GB are allowed. Set LOL_CACHE_LIMIT_GB to allow more."
            )
        self.used += size
        try:
            yield
        except BaseException:
            self.used -= size
            raise

    def remark(self, count: int, total: int, place: str) -> str:
        """How large the weights of so many LoRAs are at a place, and how much of them is here."""
        return (
            f"The weights of these {count:,} LoRAs are {in_words(total)} {place}, of which {in_words(self.used)} are"
            f" here. Each comes when it is needed, up to {self.allowed / GIGABYTE:.0f} GB in all (LOL_CACHE_LIMIT_GB)."
        )


def in_words(size: int) -> str:
    """So many bytes."""
    return f"{size / GIGABYTE:.2f} GB" if size >= GIGABYTE else f"{size / 1e6:,.1f} MB"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository at one commit. oid: the hub's identity of its content, "" where a list does not say;
    unlimited: whether a glance may read any part of it, as for the members of an archive.
    """

    kind: Kind
    repository: str
    commit: str
    path: str
    size: int | None = None
    oid: str = ""
    budget: Budget | None = field(default=None, compare=False)
    unlimited: bool = False
    sparing: ClassVar[bool] = True

    @property
    def identity(self) -> str:
        return self.oid or f"{self.repository}@{self.commit}/{self.path}"

    @property
    def shown(self) -> str:
        return f"{self.repository}/{self.path}"

    def open(self) -> BinaryIO:
        """The file as it was downloaded, now or before. Raises NetworkError, or ZooError when it is over budget."""
        return (self.downloaded() or self._download()).open("rb")

    def glance(self) -> BinaryIO:
        from huggingface_hub.utils import build_hf_headers

        if there := self.downloaded():
            return there.open("rb")
        limit = None if self.unlimited else GLANCE_BYTES
        return cast(BinaryIO, RemoteFile(self._url, build_hf_headers(), self.shown, size=self.size, limit=limit))

    def digest(self, file: BinaryIO) -> str:
        return self.oid or getattr(file, "etag", "") or hashlib.sha256(self.identity.encode()).hexdigest()

    @property
    def _url(self) -> str:
        from huggingface_hub import constants, hf_hub_url

        return hf_hub_url(
            self.repository, self.path, repo_type=self.kind, revision=self.commit, endpoint=constants.ENDPOINT
        )

    def downloaded(self) -> Path | None:
        """Where it lies in the hub library's cache, if it does."""
        from huggingface_hub import constants, try_to_load_from_cache

        path = try_to_load_from_cache(
            self.repository, self.path, constants.HF_HUB_CACHE, self.commit, repo_type=self.kind
        )
        return Path(path) if isinstance(path, str) else None

    def _download(self) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import build_hf_headers, tqdm

        class Silent(tqdm):
            def __init__(self, *args: Any, **named: Any):
                super().__init__(*args, **(named | {"disable": True}))

        wanted: dict[str, Any] = {"repo_type": self.kind.value, "revision": self.commit, "endpoint": constants.ENDPOINT}
        with asked_once(self.shown):
            size, oid = self.size, self.oid
            if size is None or (size and not _SHA256.fullmatch(oid)):  # the library asks who hangs for minutes
                piece = fetch(self._url, build_hf_headers(), self.shown, 0, stop=1)
                size, oid = piece.total, piece.etag
            with self.budget.taking(size, self.shown) if self.budget else nullcontext():
                if _SHA256.fullmatch(oid):
                    complete(self._blob(oid), partial(self._append, size, oid))
                return Path(hf_hub_download(self.repository, self.path, tqdm_class=Silent, **wanted))

    def _blob(self, oid: str) -> Path:
        """Where the hub library looks for a content before it downloads it, and then only links it."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self.repository, repo_type=self.kind.value)
        return Path(constants.HF_HUB_CACHE) / folder / "blobs" / oid

    def _append(self, size: int, oid: str, path: Path) -> None:
        """The library itself begins each download anew. oid: the SHA-256 of the content, which is its ETag, so that
        another content has another place.
        """
        from huggingface_hub.utils import build_hf_headers

        download(self._url, path, size, Reporter(stop=stopping), headers=build_hf_headers(), what=self.shown)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != oid:
            path.unlink()
            raise NetworkError(f"{self.shown} did not come as it is on the hub: its checksum is another. Try again.")


@dataclass(frozen=True, slots=True)
class Kept:
    """A part of a remote file, which is kept in a folder of the cache once it was read whole."""

    part: Blob
    place: str
    folder: Path
    budget: Budget = field(compare=False)

    @property
    def size(self) -> int | None:
        return self.part.size

    @property
    def identity(self) -> str:
        return self.part.identity

    @property
    def sparing(self) -> bool:
        return self.part.sparing

    @property
    def copy(self) -> Path:
        return self.folder / hashlib.sha256(f"{self.place}\0{self.identity}".encode()).hexdigest()[:32]

    def open(self) -> BinaryIO:
        """Raises ZooError when it is over budget."""
        if not self.copy.is_file():
            with self.budget.taking(self.size or 0, self.place):
                complete(self.copy, self._append)
        return self.copy.open("rb")

    def _append(self, path: Path) -> None:
        with self.part.open() as source, path.open("ab") as out:
            source.seek(out.tell())
            shutil.copyfileobj(source, out, 2**22)
            if self.size is not None and out.tell() != self.size:
                path.unlink()
                raise NetworkError(f"{self.place} came as {out.tell():,} bytes of {self.size:,}. Open it again.")

    def glance(self) -> BinaryIO:
        return self.copy.open("rb") if self.copy.is_file() else self.part.glance()

    def digest(self, file: BinaryIO) -> str:
        return hashlib.sha256(f"{self.place}\0{self.identity}".encode()).hexdigest()
