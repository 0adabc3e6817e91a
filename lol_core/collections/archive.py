"""Zip and tar archives of LoRAs, read where they lie. Nothing is unpacked beside them.

Members that are stored as they are, and all members of a plain tar, are ranges of the archive. A deflated member is
unpacked in memory when its weights are read, a large one into a temporary file; a compressed tar, in which nothing can
be found without unpacking what comes before it, is unpacked once into the cache.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast
from uuid import uuid4

import orjson

from lol_core.collections.blob import Blob, LocalFile, Part, part_of
from lol_core.collections.cache import bytes_allowed, cache_folder
from lol_core.collections.describe import sampled_digest
from lol_core.collections.entry import SAMPLED_BYTES
from lol_core.collections.files import FileSource, Listing, OpenOptions
from lol_core.collections.index import uncollected
from lol_core.collections.names import counted, printable, user_path
from lol_core.collections.source import Source
from lol_core.collections.walk import ARCHIVES
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, ZooError
from lol_core.formats.container import SPARING_HEAD

_UNPACK: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
RATIO = 50
"""Trained weights hardly compress; what unpacks to more than this many times its size is no collection of them."""
HARMLESS_BYTES = 256 * 2**20
"""What unpacks to no more than this is unpacked whatever its ratio."""
IN_MEMORY = 64 * 2**20
_CHUNK = 2**20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)
Member = tuple[str, Blob, str | None]
"""Name, content, and why it may not be read."""


def open_archive(address: str, options: OpenOptions) -> Source:
    """The LoRAs in an archive on this machine.

    Raises ZooError when it is not there, is damaged, or would unpack to far more than it is, and Stopped when the
    reporter says so.
    """
    path = user_path(address)
    listing = list_archive(path, options.cache, options.reporter)
    path = path.resolve()
    return FileSource.open(str(path), stem_of(path.name), listing, options)


def list_archive(path: Path, cache: Path | None = None, reporter: Reporter = SILENT) -> Listing:
    """The members of an archive on this machine. Raises ZooError and Stopped as `open_archive` does."""
    try:
        path = path.resolve(strict=True)
        archive = LocalFile.of(path)
        if unpack := _UNPACK.get(path.suffix.lower()):
            archive = _unpacked(archive, unpack, cache, reporter)
        with uncollected():
            return (list_zip if path.suffix.lower() == ".zip" else list_tar)(archive, path.name)
    except (OSError, LoRAFormatError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ZooError(f"{path}: the archive cannot be read ({reason}). Check the path.") from error


def list_far_archive(archive: Blob, name: str) -> Listing:
    """The members of an archive of which parts are read from elsewhere. Raises ZooError when it is damaged or a
    compressed tar, in which nothing can be found without reading all before it.
    """
    if name.lower().endswith(".zip"):
        return list_zip(archive, name)
    if name.lower().endswith(".tar"):
        return list_tar(archive, name)
    raise ZooError(f"{name}: a compressed tar is read from this computer only. Download it and open it from here.")


def stem_of(name: str) -> str:
    """The name of an archive without its suffix."""
    return next((name[: -len(suffix)] for suffix in ARCHIVES if name.lower().endswith(suffix)), name)


def list_zip(archive: Blob, name: str) -> Listing:
    """The members of a zip archive. Raises ZooError when its directory is damaged."""
    try:
        with archive.glance() as file, zipfile.ZipFile(file) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
    except (*_DAMAGED, RuntimeError) as error:
        raise ZooError(f"{name}: a zip archive that cannot be opened ({error}): damaged or cut off.") from error
    return _listing((_zip_name(info), ZipMember(archive, info), _zip_problem(info)) for info in infos)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member, in UTF-8 also where no flag says so, as macOS and Info-ZIP write it."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "It is encrypted. Unpack the archive with its password and open the folder."
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        return "A link, which is not followed in an archive."
    if info.compress_type not in _METHODS:
        return f"It is compressed by method {info.compress_type}, which is not read here. Unpack the archive."
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return "The archive contradicts itself on its size: it is damaged."
    if info.file_size > max(HARMLESS_BYTES, RATIO * info.compress_size):
        return (
            f"It declares {info.file_size:,} bytes in {info.compress_size:,}: no weights compress so far. It was not"
            " unpacked."
        )
    return None


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of a zip archive, stored or compressed."""

    archive: Blob
    info: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return self.info.file_size

    @property
    def identity(self) -> str:
        return f"{self.info.file_size} {self.info.CRC:08x} {self.info.date_time}"

    @property
    def sparing(self) -> bool:
        return self.archive.sparing

    @property
    def stored(self) -> bool:
        return self.info.compress_type == zipfile.ZIP_STORED

    def open(self) -> BinaryIO:
        """Raises LoRAFormatError when it is damaged."""
        file = self._member()
        if self.stored:
            return file
        whole = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115, whoever asked for it closes it
        try:
            with file:
                while chunk := file.read(_CHUNK):
                    whole.write(chunk)
            if whole.tell() != self.size:
                raise EOFError(f"{whole.tell():,} bytes of {self.size:,}")
        except (*_DAMAGED, RuntimeError) as error:
            whole.close()
            raise LoRAFormatError(f"It cannot be unpacked ({error}): the archive is damaged or cut off.") from error
        whole.seek(0)
        return cast(BinaryIO, whole)

    def glance(self) -> BinaryIO:
        """Of safetensors the header comes first, so that what follows need not be unpacked."""
        return self._member() if self.info.filename.lower().endswith((".safetensors", ".sft")) else self.open()

    def _member(self) -> BinaryIO:
        whole = self.archive.glance()
        whole.seek(self.info.header_offset)
        header = whole.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            whole.close()
            raise LoRAFormatError("The archive has no such member where its directory says: it is damaged or cut off.")
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        packed = part_of(whole, self.info.header_offset + 30 + names, self.info.compress_size)
        if self.stored:
            return packed
        return cast(BinaryIO, zipfile.ZipExtFile(packed, "r", self.info, None, True))

    def digest(self, file: BinaryIO) -> str:
        """Of head and tail as of a file, or, where the tail would cost, of the head and the archive's checksum."""
        if self.stored and not self.sparing:
            return sampled_digest(file, self.size)
        try:
            head = file.read(SPARING_HEAD if self.sparing else SAMPLED_BYTES)
        except (*_DAMAGED, RuntimeError) as error:
            raise LoRAFormatError(f"It cannot be unpacked ({error}): the archive is damaged or cut off.") from error
        return hashlib.sha256(f"{self.size} {self.info.CRC}\0".encode() + head).hexdigest()


def list_tar(archive: Blob, name: str) -> Listing:
    """The members of a plain tar archive; those before the damage, where it is damaged further on.

    Raises ZooError when not one can be listed.
    """
    members: list[Member] = []
    remarks: tuple[str, ...] = ()
    with archive.glance() as file:
        length = file.seek(0, 2)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for info in opened:
                    if not info.isdir():
                        blob = Part(archive, info.offset_data, info.size, f"{info.size} {info.mtime}")
                        members.append((info.name, blob, _tar_problem(info, length)))
                file.seek(opened.offset)
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    listed = counted(len(members), "file")
                    remarks = (f"{name} is damaged or cut off after {listed}: the mark of its end is not there.",)
        except (*_DAMAGED, OSError) as error:
            if not members:
                raise ZooError(f"{name}: a tar archive that cannot be opened ({error}): damaged or cut off.") from error
            remarks = (f"{name} is damaged ({error}) after {counted(len(members), 'file')}; the rest is not listed.",)
    return _listing(members, remarks)


def _tar_problem(info: tarfile.TarInfo, length: int) -> str | None:
    if not info.isreg() or info.issparse():
        kind = "A link, which is not followed in an archive" if info.islnk() or info.issym() else "No plain file"
        return f"{kind}. Unpack the archive and open the folder."
    if info.offset_data + info.size > length:
        return "The archive is cut off within it."
    return None


_ZIP_FIELDS = ("header_offset", "compress_size", "file_size", "CRC", "compress_type")


def listing_to_json(identity: str, listing: Listing) -> bytes:
    """The members of an archive of that identity, to be kept for when it cannot be read."""
    members: dict[str, Any] = {}
    for name, blob in listing.files.items():
        if isinstance(blob, ZipMember):
            numbers = [getattr(blob.info, field) for field in _ZIP_FIELDS]
            members[name] = [blob.info.filename, list(blob.info.date_time), *numbers]
        elif isinstance(blob, Part):
            members[name] = [blob.start, blob.size, blob.identity]
    return orjson.dumps(
        {"archive": identity, "members": members, "refused": dict(listing.refused), "remarks": listing.remarks}
    )


def listing_from_json(content: bytes, archive: Blob) -> Listing | None:
    """The same again; None when it is of another archive."""
    kept = orjson.loads(content)
    if kept["archive"] != archive.identity:
        return None
    files: dict[str, Blob] = {}
    for name, values in kept["members"].items():
        if len(values) == 3:
            files[name] = Part(archive, *values)
            continue
        year, month, day, hour, minute, second = values[1]
        info = zipfile.ZipInfo(values[0], (year, month, day, hour, minute, second))
        for field, value in zip(_ZIP_FIELDS, values[2:], strict=True):
            setattr(info, field, value)
        files[name] = ZipMember(archive, info)
    return Listing(files, kept["refused"], tuple(kept.get("remarks", ())))


def _unpacked(archive: LocalFile, unpack: Callable[..., Any], cache: Path | None, reporter: Reporter) -> LocalFile:
    """A compressed tar as a plain one in the cache. Raises ZooError when it is damaged or grows beyond what may be."""
    name = archive.path.name
    place = hashlib.sha256(os.fsencode(archive.path)).hexdigest()[:16]
    version = hashlib.sha256(archive.identity.encode()).hexdigest()[:16]
    copy = (cache or cache_folder()) / "archives" / f"{place}-{version}.tar"
    if copy.is_file():
        return LocalFile.of(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f"{copy.name}.{uuid4().hex[:12]}.part")
    limit = min(bytes_allowed(), max(HARMLESS_BYTES, RATIO * archive.size))
    written = 0
    try:
        with archive.open() as packed, unpack(packed) as content, part.open("wb") as out:
            while chunk := content.read(_CHUNK):
                written += len(chunk)
                if written > limit:
                    raise ZooError(
                        f"{name} of {archive.size:,} bytes unpacks to more than {limit:,} bytes, so it was not opened."
                        " Unpack it yourself and open the folder, or set LOL_CACHE_LIMIT_GB."
                    )
                out.write(chunk)
                reporter.show(f"Unpacking {name} into the cache: {written / 1e9:.2f} GB", packed.tell() / archive.size)
                reporter.check("Nothing of the archive is kept.")
        for older in copy.parent.glob(f"{place}-*.tar"):
            older.unlink()
        part.replace(copy)
    except (*_DAMAGED, OSError) as error:
        raise ZooError(f"{name}: the archive cannot be unpacked ({error}): damaged or cut off.") from error
    finally:
        part.unlink(missing_ok=True)
    return LocalFile.of(copy)


def _listing(members: Iterable[Member], remarks: tuple[str, ...] = ()) -> Listing:
    """Members by their names below the folder that all share, if one does."""
    members = [member for member in members if not _of_macos(member[0])]
    named = [(printable(name), *_safe(name), blob, problem) for name, blob, problem in members]
    counts = Counter(safe for _, safe, *_ in named)
    files: dict[str, Blob] = {}
    refused: dict[str, str] = {}
    for shown, safe, odd, blob, problem in named:
        twice = "The archive holds it more than once, so it is not clear which is meant." if counts[safe] > 1 else None
        if reason := odd or problem or twice:
            refused[shown if odd else safe] = reason
        else:
            files[safe] = blob
    root = _shared_folder([safe for _, safe, odd, *_ in named if not odd])
    return Listing(
        {name[len(root) :]: blob for name, blob in files.items()},
        {name.removeprefix(root): reason for name, reason in refused.items()},
        remarks,
    )


def _of_macos(name: str) -> bool:
    """What macOS adds to archives: attributes of the files, under their names."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def _safe(name: str) -> tuple[str, str | None]:
    """(the name in plain form, why it is refused)."""
    parts = name.split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:|\\", name) or "\\" in name or ".." in parts or "\0" in name:
        return printable(name), "Its name leads out of the archive, as no archive of LoRAs needs. It was not read."
    return printable("/".join(part for part in parts if part not in ("", "."))), None


def _shared_folder(names: list[str]) -> str:
    """The folders that all names begin with, with a slash; empty when there are none."""
    shared = ""
    while names and len(first := {name[len(shared) :].partition("/")[0] for name in names}) == 1:
        deeper = f"{shared}{first.pop()}/"
        if len(names) == 1 or not all(name.startswith(deeper) for name in names):
            break
        shared = deeper
    return shared
