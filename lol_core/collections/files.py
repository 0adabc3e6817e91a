"""A collection of files that are listed rather than walked: the members of an archive, the files of a repository."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from glob import has_magic
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pandas as pd

from lol_core.collections.blob import Blob, LocalFile
from lol_core.collections.cache import cache_folder
from lol_core.collections.describe import UNSETTLED
from lol_core.collections.durable import replace_file
from lol_core.collections.entries import Entries
from lol_core.collections.entry import Entry, KnownDetails
from lol_core.collections.http import Late
from lol_core.collections.index import Database
from lol_core.collections.indexed import Indexed
from lol_core.collections.labels import LABEL_FILES, join_labels, read_labels
from lol_core.collections.names import printable, user_path
from lol_core.collections.sidecar import MAX_BYTES, NONE, Sidecar, beside, read_sidecar
from lol_core.collections.waiting import stopping
from lol_core.collections.walk import LISTED, UNKNOWN, Candidate, in_order, other_shards, reason_of
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter, Stopped
from lol_core.errors import LoRAFormatError, SourceSilentError, ZooError
from lol_core.formats import (
    Neighbours,
    Shards,
    Stream,
    configs_of,
    probe_streams,
    read_streams,
    shards_among,
)
from lol_core.formats.container.shards import INDEX

MAX_TABLE_BYTES = 200_000_000
MAX_CONFIG_BYTES = 10_000_000
MOST_LATE = 3
"""Files in a row that a server may owe before it is no longer asked."""


@dataclass(frozen=True)
class OpenOptions:
    """How a collection is opened. labels: the path of a table; cache: the folder of what is kept; readers: headers that
    are read at a time, in threads; None for as many as suit the place.
    """

    labels: str | None = None
    cache: Path | None = None
    reporter: Reporter = SILENT
    readers: int | None = None


@dataclass(frozen=True)
class Listing:
    """What lies at an address. files: by their path, with `/`; refused: path → why that file, or with `/` at its end
    that folder, may not be read; remarks: on the whole.
    """

    files: Mapping[str, Blob]
    refused: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.files or name in self.refused


def list_folder(folder: Path) -> Listing:
    """All files of a folder on this machine, links to folders not followed."""
    files: dict[str, Blob] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = LocalFile.of(path)
    return Listing(files)


@dataclass(frozen=True, eq=False)
class FileSource(Indexed):
    """Listed files as a source. where: its address; database: the file that keeps what their headers say."""

    where: str
    name: str
    database: Path
    listing: Listing
    entries: Entries
    refused: Sequence[Entry] = ()
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)
    labels_problem: str | None = None
    labels_path: Path | None = None
    join_column: str | None = None
    unjoined_labels: tuple[str, ...] = ()
    remarks: Sequence[str] = ()

    @classmethod
    def open(cls, address: str, name: str, listing: Listing, options: OpenOptions) -> FileSource:
        """Read the headers that are not known yet.

        Raises ZooError when the table given as `labels` cannot be read or joined, and Stopped when the reporter says
        so; what was read is kept.
        """
        database = Database(database_path(address, name, options.cache))
        silence = Silence()
        describe = partial(_describe, listing, silence)
        present = partial(_candidates, listing)
        entries, refused = database.refresh(present, describe, options.reporter, options.readers).parted()
        remarks = listing.remarks
        if silence.error:
            unread = sum(entry.mtime == UNSETTLED for entry in refused)
            remarks += (f"The headers of {unread:,} files could not be read. {silence.error}",)
        none = pd.DataFrame(index=entries.ids)
        source = cls(address, printable(name), database.path, listing, entries, refused, none, remarks=remarks)
        return source._labelled(options.labels)

    def _labelled(self, labels: str | None) -> FileSource:
        inside = next((name for name in LABEL_FILES if name in self.listing.files), None)
        if not (labels or inside):
            return self
        try:
            if labels:
                path = user_path(labels)
                table = read_labels(path)
            else:
                path = Path(str(inside))
                table = read_labels(
                    path, BytesIO(_read(self.listing.files[str(inside)].open(), str(inside), MAX_TABLE_BYTES))
                )
            joined, column, unjoined = join_labels(table, self.ids, path)
        except (ZooError, LoRAFormatError, OSError) as error:
            if labels:
                raise
            return replace(self, labels_problem=str(error))
        return replace(self, labels=joined, labels_path=path, join_column=column, unjoined_labels=unjoined)

    @property
    def address(self) -> str:
        return self.where

    def store(self, cache: Path | None = None) -> Path:
        return self.database

    def load(self, id: str) -> LoRA:
        return self.reader(id)()

    def reader(self, id: str) -> Callable[[], LoRA]:
        shards, name = _shards(self.listing, id), _config_of(self.listing, id)
        parts = _parts(id, shards)
        for part in (*parts, name) if name else parts:
            if reason := self.listing.refused.get(part):
                raise LoRAFormatError(f"{part}: {reason}")
        config = (name, self.listing.files[name]) if name else None
        return partial(load, id, {part: self.listing.files[part] for part in parts}, shards, config)

    def check(self) -> None:
        if "://" not in self.where and not has_magic(self.where) and not Path(self.where).is_file():
            raise ZooError(
                f"{self.where} has gone while it was being read. Plug the drive in again, or open the collection anew."
            )

    def preview_of(self, entry: Entry) -> Path | None:
        """A picture beside the file, else previews/NAME.webp; copied to the cache when it is asked for."""
        folder = entry.path.rpartition("/")[0]
        shown = entry.sidecar.preview
        beside_it = [f"{folder}/{shown}" if folder else shown] if shown else []
        named = f"previews/{self.names[entry.path].rpartition('/')[2]}.webp"
        for name in (*beside_it, named):
            if name in self.listing.files:
                return self._copied(name)
        return None

    def _copied(self, name: str) -> Path | None:
        blob = self.listing.files[name]
        mark = hashlib.sha256(f"{self.address}\0{name}\0{blob.identity}".encode(errors="surrogateescape")).hexdigest()
        copy = self.database.parent.parent / "previews" / (mark[:32] + PurePosixPath(name).suffix)
        if not copy.is_file():
            try:
                content = _content(self.listing, name, MAX_BYTES)
            except (LoRAFormatError, ZooError, OSError):
                return None
            copy.parent.mkdir(parents=True, exist_ok=True)
            replace_file(copy, lambda new: new.write_bytes(content), shared=True)
        return copy

    def content(self, name: str, limit: int = MAX_BYTES) -> bytes | None:
        """The content of a small file of the listing, None when there is none of that name.

        Raises LoRAFormatError when it may not be read or is longer than the limit.
        """
        return (
            _content(self.listing, name, limit) if name in self.listing.files or name in self.listing.refused else None
        )


def database_path(address: str, name: str, cache: Path | None = None) -> Path:
    """Where what is known of the files of an address is kept."""
    digest = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:16]
    return (cache or cache_folder()) / "index" / f"{printable(name)[:80].replace('/', '--')}-{digest}.sqlite"


def load(
    id: str, blobs: Mapping[str, Blob], shards: Shards | None = None, config: tuple[str, Blob] | None = None
) -> LoRA:
    """Read one LoRA with its weights. blobs: its file, or its shards in their order, by their paths.

    Raises LoRAFormatError naming it by its id, also when it is not finite.
    """
    try:
        settings = (
            (config[0].rpartition("/")[2], _read(config[1].open(), config[0], MAX_CONFIG_BYTES)) if config else None
        )
        with ExitStack() as stack:
            files = {name: stack.enter_context(blob.open()) for name, blob in blobs.items()}
            streams = [Stream(file, name.rpartition("/")[2], _size(file)) for name, file in files.items()]
            lora = read_streams(streams, settings, shards)
        lora.check_finite()
    except LoRAFormatError as error:
        raise type(error)(f"{id}: {error}") from error
    except OSError as error:
        raise LoRAFormatError(f"{id}: It cannot be read: {error.strerror or error}.") from error
    return lora


def _shards(listing: Listing, id: str) -> Shards | None:
    """The shards of one LoRA that a file is the first of. Raises LoRAFormatError as `shards_among` does."""
    base = id.rpartition("/")[2]
    folder = id[: len(id) - len(base)]

    def read(name: str) -> bytes:
        return _content(listing, folder + name, MAX_CONFIG_BYTES)

    return shards_among(base, Neighbours(lambda name: folder + name in listing.files, read))


def _parts(id: str, shards: Shards | None) -> list[str]:
    """The paths of the files that a LoRA is read from."""
    folder = id[: id.rfind("/") + 1]
    return [folder + name for name in shards.names] if shards else [id]


def _candidates(listing: Listing) -> list[Candidate]:
    candidates = []
    for name in {**listing.files, **listing.refused}:
        base = name.rpartition("/")[2]
        if not name.lower().endswith((*LISTED, "/")):
            continue
        if name in listing.refused:
            candidates.append(Candidate(name, name, -1, 0.0, reason=listing.refused[name]))
            continue
        config = _config_of(listing, name)
        folder = name[: len(name) - len(base)]
        others = [folder + other for other in beside(base) if folder + other in listing.files]
        siblings = [*other_shards(base), f"adapter_model{os.path.splitext(base)[1]}{INDEX}"]
        pieces = [folder + other for other in siblings if folder + other in listing.files]
        parts = [name, *([config] if config else []), *others, *pieces]
        mark = "\n".join(listing.files[part].identity if part in listing.files else "refused" for part in parts)
        mark = hashlib.sha256(mark.encode()).hexdigest()[:32]
        reason = reason_of(base)
        names = tuple(other.rpartition("/")[2] for other in others)
        candidates.append(Candidate(name, name, _or_unknown(listing.files[name]), 0.0, names, mark, reason))
    return sorted(candidates, key=in_order)


def _or_unknown(blob: Blob) -> int:
    return UNKNOWN if blob.size is None else blob.size


def _config_of(listing: Listing, id: str) -> str | None:
    """The configuration beside a LoRA, also one that may not be read: its alpha is part of the function."""
    folder, _, own = id.rpartition("/")
    places = (f"{folder}/{name}" if folder else name for name in configs_of(own))
    return next((place for place in places if place in listing), None)


@dataclass
class Silence:
    """Whether a place still answers. error: why not, once it does not; late: files in a row that came too late."""

    error: ZooError | None = None
    late: int = 0

    def note(self, error: ZooError | None) -> None:
        """What came of asking for a file: None where it was had."""
        self.late = self.late + 1 if isinstance(error, Late) else 0
        if isinstance(error, SourceSilentError) or self.late >= MOST_LATE:
            self.error = error


def _describe(listing: Listing, silence: Silence, candidate: Candidate) -> Entry:
    """Probe one file. Whatever is wrong with it becomes the entry's `reason`; what may pass is tried again later, and
    of a place that does not answer no other file is asked for.
    """
    id, size = candidate.id, candidate.size
    if candidate.reason is not None:
        return Entry(id, size, 0.0, "", reason=candidate.reason)
    if silence.error or stopping():
        return Entry(id, size, UNSETTLED, "", reason=f"Its header has not been read. {silence.error or ''}".rstrip())
    sidecar, digest = NONE, ""
    try:
        sidecar = _sidecar(listing, candidate)
        name = _config_of(listing, id)
        config = (name.rpartition("/")[2], _content(listing, name, MAX_CONFIG_BYTES)) if name else None
        shards = _shards(listing, id)
        blobs = {part: listing.files[part] for part in _parts(id, shards)}
        with ExitStack() as stack:
            streams, digests = [], []
            for part, blob in blobs.items():
                file = stack.enter_context(blob.glance())
                length = _size(file) if blob.size is None else blob.size  # of what is packed, its end is far to seek
                digests.append(blob.digest(file))
                file.seek(0)
                streams.append(Stream(file, part.rpartition("/")[2], length))
            size, digest = sum(stream.size for stream in streams), _joint(digests)
            lora = probe_streams(streams, config, shards, sparing=any(blob.sparing for blob in blobs.values()))
        silence.note(None)
        return Entry.of(lora, path=id, size=size, digest=digest, sidecar=sidecar)
    except LoRAFormatError as error:
        reason, time = str(error), 0.0
    except ZooError as error:
        reason, time = str(error), UNSETTLED
        silence.note(error)
    except Stopped as error:
        reason, time = str(error), UNSETTLED
    except OSError as error:
        reason, time = f"It cannot be read: {error.strerror or error}.", UNSETTLED
    except Exception as error:  # a file this strange is the file's fault, and must not stop the collection
        reason, time = f"An unexpected {type(error).__name__} while reading the header: {error}", 0.0
    return Entry(id, size, time, digest, reason=reason, details=KnownDetails(sidecar=sidecar))


def _joint(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _sidecar(listing: Listing, candidate: Candidate) -> Sidecar:
    if not candidate.beside:
        return NONE
    folder = candidate.id[: candidate.id.rfind("/") + 1]

    def read(name: str) -> bytes:
        try:
            return _content(listing, folder + name, MAX_BYTES)
        except LoRAFormatError:
            return b""

    return read_sidecar(Path(candidate.id), candidate.beside, read)


def _content(listing: Listing, name: str, limit: int) -> bytes:
    """Raises LoRAFormatError when the file may not be read, or is longer than the limit."""
    if name in listing.refused:
        raise LoRAFormatError(f"{name.rpartition('/')[2]} cannot be read: {listing.refused[name]}")
    return _read(listing.files[name].glance(), name.rpartition("/")[2], limit)


def _read(opened: BinaryIO, name: str, limit: int) -> bytes:
    with opened as file:
        if (size := _size(file)) > limit:
            raise LoRAFormatError(f"{name} has {size:,} bytes; expected no more than {limit:,}.")
        return file.read(limit)


def _size(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size
