"""Archives and single files on the web, and folders and archives on whatever fsspec reaches (s3://, gs://, sftp://, …)
where its package is installed. Parts are read by ranges, and kept in the cache once they were read whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import BinaryIO, ClassVar, cast
from urllib.parse import unquote, urlsplit

from lol_core.collections import archive
from lol_core.collections.cache import bytes_allowed, cache_folder
from lol_core.collections.columns import size
from lol_core.collections.files import FileSource, Listing, OpenOptions
from lol_core.collections.http import BLOCK, PassingError, RemoteFile
from lol_core.collections.hub import READERS, open_hub
from lol_core.collections.hub_address import SCHEME, check_secrets
from lol_core.collections.remote_files import Budget, Kept
from lol_core.collections.source import Source
from lol_core.collections.walk import ARCHIVES
from lol_core.errors import ZooError
from lol_core.formats import SUFFIXES

_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(datasets/)?([^/?#]+)(?:/([^/?#]+))?(.*)")
_WRAPPERS = ("zip://", "tar://", "libarchive://")
_WITHIN = re.compile(r"/(?:tree|blob|resolve)/([^/?#]+)(/[^?#]*)?")


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file on the web, as it was when its size and ETag were asked for."""

    url: str
    size: int
    etag: str
    sparing: ClassVar[bool] = True

    @classmethod
    def of(cls, url: str) -> WebFile:
        file = RemoteFile(url, {}, url)
        return cls(url, file.seek(0, 2), file.etag)

    @property
    def identity(self) -> str:
        return f"{self.size} {self.etag}"

    def open(self) -> BinaryIO:
        return cast(BinaryIO, RemoteFile(self.url, {}, self.url, size=self.size, etag=self.etag))

    glance = open

    def digest(self, file: BinaryIO) -> str:
        return self.identity


@dataclass(frozen=True, slots=True)
class FsspecFile:
    """A file that fsspec reaches. identity: what its file system says of it, such as an ETag or a time."""

    url: str
    size: int
    identity: str
    sparing: ClassVar[bool] = True

    def open(self) -> BinaryIO:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.url)
        return cast(BinaryIO, system.open(path, "rb", block_size=BLOCK))

    glance = open

    def digest(self, file: BinaryIO) -> str:
        return f"{self.size} {self.identity}"


def open_url(address: str, options: OpenOptions) -> Source:
    """The LoRAs at a URL. Raises ZooError when there are none, with what to do."""
    check_secrets(address)
    if page := of_page(address):
        return open_hub(page, options)
    try:
        place = urlsplit(address)
    except ValueError as error:
        raise ZooError(f"{address} is no URL ({error}). Check the address.") from error
    if place.scheme == "memory":
        raise ZooError(f"{address}: LoRAs made in Python live in the program that made them. Write them to a folder.")
    if place.scheme in ("http", "https"):
        listing = _of_web(address, place.path)
    else:
        listing = _listed(address, place.path)
    budget, folder = Budget(bytes_allowed()), (options.cache or cache_folder()) / "members"
    kept = {name: Kept(blob, f"{address}\0{name}", folder, budget) for name, blob in listing.files.items()}
    budget.used = sum(blob.copy.stat().st_size for blob in kept.values() if blob.copy.is_file())
    name = archive.stem_of(place.path.rstrip("/").rpartition("/")[2]) or place.netloc
    options = replace(options, readers=options.readers or READERS)
    source = FileSource.open(address, name, replace(listing, files=kept), options)
    remarks = [budget.remark(len(source), size(source), "there")] if len(source) else []
    return replace(source, remarks=(*source.remarks, *remarks))


def _of_web(address: str, path: str) -> Listing:
    if path.lower().endswith(SUFFIXES):
        return Listing({unquote(path.rpartition("/")[2]): WebFile.of(address)})
    if path.lower().endswith((".zip", ".tar")):
        return archive.list_far_archive(WebFile.of(address), path.rpartition("/")[2])
    raise ZooError(f"{address}: of the web, .zip and .tar archives and single LoRA files are opened, and the hub.")


def of_page(url: str) -> str | None:
    """The address of what a page of the hub shows; None where the URL is of no such page."""
    if (page := _PAGE.fullmatch(url)) is None:
        return None
    within = _WITHIN.match(page[4] or "")
    name = f"/{page[3]}" if page[3] else ""
    revision = f"@{within[1]}" if within and within[1] != "main" else ""
    return f"{SCHEME}{page[1] or ''}{page[2]}{name}{revision}{(within[2] or '') if within else ''}"


def _listed(address: str, path: str) -> Listing:
    from fsspec.core import url_to_fs

    outer, _, inner = address.rpartition("::")
    if outer or address.startswith(_WRAPPERS):  # for fsspec one file system within another, whose files have no URLs
        within = inner.partition("://")[2] if inner.startswith(_WRAPPERS) else ""
        raise ZooError(f"{address}: addresses within addresses are not opened. Open {within or inner} itself.")
    try:
        system, root = url_to_fs(address)
        infos = system.find(root, detail=True)
        if not infos:
            raise FileNotFoundError("nothing is there")
        files = {
            name[len(root) :].strip("/") or name.rpartition("/")[2]: FsspecFile(
                system.unstrip_protocol(name), int(info["size"]), _identity(info)
            )
            for name, info in infos.items()
        }
    except ImportError as error:
        raise ZooError(f"{address} needs a package that is not installed. {error}, and open it again.") from error
    except ValueError as error:
        raise ZooError(
            f"{address}: {error}. Known are hf://, https:// and what fsspec reaches, such as s3://."
        ) from error
    except Exception as error:  # each file system has errors of its own
        raise PassingError(
            f"{address} cannot be listed ({type(error).__name__}: {str(error)[:200]}). Check the address, and whether"
            " you may read it."
        ) from error
    if len(files) == 1 and path.lower().endswith(ARCHIVES):
        return archive.list_far_archive(next(iter(files.values())), path.rpartition("/")[2])
    return Listing(files)


def _identity(info: dict[str, object]) -> str:
    keys = ("ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created")
    return f"{info['size']} " + " ".join(str(info[key]) for key in keys if info.get(key))
