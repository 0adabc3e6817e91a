"""A collection of files that are listed rather than walked: the members of an archive, the files of a repository."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from lol_core.collections.index import READERS, Database
from lol_core.collections.indexed import Indexed
from lol_core.collections.labels import LABEL_FILES, join_labels, read_labels
from lol_core.collections.names import printable
from lol_core.collections.sidecar import MAX_BYTES, NONE, Sidecar, beside, read_sidecar
from lol_core.collections.walk import OTHER_FILES, UNKNOWN, Candidate, in_order
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, SourceSilentError, ZooError
from lol_core.formats import SUFFIXES, configs_of, probe_stream, read_stream

MAX_TABLE_BYTES = 200_000_000
MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class Listing:
    """What lies at an address. files: by their path, with `/`; refused: path → why that file may not be read; remarks:
    on the whole.
    """

    files: Mapping[str, Blob]
    refused: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.files or name in self.refused


def list_folder(folder: Path) -> Listing:
    """All files of a folder on this machine, links not followed."""
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
    def open(
        cls,
        address: str,
        name: str,
        listing: Listing,
        *,
        labels: str | None = None,
        cache: Path | None = None,
        reporter: Reporter = SILENT,
        readers: int = READERS,
    ) -> FileSource:
        """Read the headers that are not known yet, in that many threads.

        Raises ZooError when the table given as `labels` cannot be read or joined, and Stopped when the reporter says
        so; what was read is kept.
        """
        database = Database(database_path(address, name, cache))

        silent: list[SourceSilentError] = []
        describe = partial(_describe, listing, silent)
        entries, refused = database.refresh(partial(_candidates, listing), describe, reporter, readers).parted()
        remarks = listing.remarks
        if silent:
            unread = sum(entry.mtime == UNSETTLED for entry in refused)
            remarks += (f"The headers of {unread:,} files could not be read. {silent[0]}",)
        none = pd.DataFrame(index=entries.ids)
        source = cls(address, printable(name), database.path, listing, entries, refused, none, remarks=remarks)
        return source._labelled(labels)

    def _labelled(self, labels: str | None) -> FileSource:
        inside = next((name for name in LABEL_FILES if name in self.listing.files), None)
        if not (labels or inside):
            return self
        try:
            if labels:
                path = Path(labels).expanduser()
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
        name = _config_of(self.listing, id)
        for part in (id, name) if name else (id,):
            if reason := self.listing.refused.get(part):
                raise LoRAFormatError(f"{part}: {reason}")
        config = (name, self.listing.files[name]) if name else None
        return partial(load_blob, self.listing.files[id], id, config)

    def check(self) -> None:
        if "://" not in self.where and not Path(self.where).is_file():
            raise ZooError(
                f"{self.where} has gone while it was being read. Plug the drive in again, or open the collection anew."
            )

    def preview(self, id: str) -> Path | None:
        """A picture beside the file, else previews/NAME.webp; copied to the cache when it is asked for."""
        folder = id.rpartition("/")[0]
        shown = self.by_id[id].sidecar.preview
        beside_it = [f"{folder}/{shown}" if folder else shown] if shown else []
        named = f"previews/{self.names[id].rpartition('/')[2]}.webp"
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


def load_blob(blob: Blob, id: str, config: tuple[str, Blob] | None = None) -> LoRA:
    """Read one LoRA with its weights. Raises LoRAFormatError naming it by its id, also when it is not finite."""
    try:
        settings = (
            (config[0].rpartition("/")[2], _read(config[1].open(), config[0], MAX_CONFIG_BYTES)) if config else None
        )
        with blob.open() as file:
            lora = read_stream(file, id.rpartition("/")[2], _size(file), settings)
        lora.check_finite()
    except LoRAFormatError as error:
        raise type(error)(f"{id}: {error}") from error
    except OSError as error:
        raise LoRAFormatError(f"{id}: It cannot be read: {error.strerror or error}.") from error
    return lora


def _candidates(listing: Listing) -> list[Candidate]:
    candidates = []
    for name in {**listing.files, **listing.refused}:
        base = name.rpartition("/")[2]
        if not name.lower().endswith(SUFFIXES):
            continue
        if name in listing.refused:
            candidates.append(Candidate(name, name, -1, 0.0, reason=listing.refused[name]))
            continue
        config = _config_of(listing, name)
        folder = name[: len(name) - len(base)]
        others = [folder + other for other in beside(base) if folder + other in listing.files]
        parts = [name, *([config] if config else []), *others]
        mark = "\n".join(listing.files[part].identity if part in listing.files else "refused" for part in parts)
        mark = hashlib.sha256(mark.encode()).hexdigest()[:32]
        reason = OTHER_FILES.get(base)
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


def _describe(listing: Listing, silent: list[SourceSilentError], candidate: Candidate) -> Entry:
    """Probe one file. Whatever is wrong with it becomes the entry's `reason`; what may pass is tried again later.

    silent: why the place does not answer any more, added to when it does not; then no other file is asked for.
    """
    id, size = candidate.id, candidate.size
    if candidate.reason is not None:
        return Entry(id, size, 0.0, "", reason=candidate.reason)
    if silent:
        return Entry(id, size, UNSETTLED, "", reason=f"Its header has not been read. {silent[0]}")
    blob, sidecar, digest = listing.files[id], NONE, ""
    try:
        sidecar = _sidecar(listing, candidate)
        name = _config_of(listing, id)
        config = (name.rpartition("/")[2], _content(listing, name, MAX_CONFIG_BYTES)) if name else None
        with blob.glance() as file:
            size = _size(file)
            digest = blob.digest(file)
            file.seek(0)
            lora = probe_stream(file, id.rpartition("/")[2], size, config, sparing=blob.sparing)
        return Entry.of(lora, path=id, size=size, digest=digest, sidecar=sidecar)
    except LoRAFormatError as error:
        reason, time = str(error), 0.0
    except ZooError as error:
        reason, time = str(error), UNSETTLED
        if isinstance(error, SourceSilentError):
            silent.append(error)
    except OSError as error:
        reason, time = f"It cannot be read: {error.strerror or error}.", UNSETTLED
    except Exception as error:  # a file this strange is the file's fault, and must not stop the collection
        reason, time = f"An unexpected {type(error).__name__} while reading the header: {error}", 0.0
    return Entry(id, size, time, digest, reason=reason, details=KnownDetails(sidecar=sidecar))


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
