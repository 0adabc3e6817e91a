"""One file of a collection: its identity, and what its header says."""

from __future__ import annotations

import hashlib
from functools import partial
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from lol_core.collections.entry import SAMPLED_BYTES, Entry, KnownDetails
from lol_core.collections.sidecar import read_sidecar
from lol_core.collections.walk import Candidate
from lol_core.errors import LoRAFormatError
from lol_core.formats import SUFFIXES, probe_file

ATTEMPTS = 3
UNSETTLED = -1.0
"""The time of a file that is to be asked again next time, whatever its own says."""


def content_digest(path: Path, size: int) -> str:
    with path.open("rb", buffering=0) as file:
        return sampled_digest(file, size)


def sampled_digest(file: BinaryIO | FileIO, size: int) -> str:
    """Identity of an open file's content by its size, head and tail."""
    digest = hashlib.sha256(str(size).encode())
    digest.update(file.read(SAMPLED_BYTES))
    if size > 2 * SAMPLED_BYTES:
        file.seek(size - SAMPLED_BYTES)
    digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def _digest(path: Path, size: int, beside: tuple[str, ...]) -> str:
    """The digest of a file, or of all shards of one LoRA."""
    shards = [path.parent / name for name in beside if name.lower().endswith(SUFFIXES)]
    own = content_digest(path, size)
    if not shards:
        return own
    parts = [own, *(content_digest(shard, shard.stat().st_size) for shard in shards)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def describe(folder: Path, candidate: Candidate) -> Entry:
    """Probe one file. Whatever is wrong with it becomes the entry's `reason`. One that changes meanwhile is read
    again.
    """
    path, size, mtime = folder / candidate.place, candidate.size, candidate.mtime
    details = KnownDetails(sidecar=read_sidecar(path, candidate.beside)) if candidate.beside else KnownDetails()
    place = None if candidate.place == candidate.id else candidate.place
    refused = partial(Entry, candidate.id, place=place, details=details)
    if candidate.reason is not None:
        return refused(size, mtime, "", reason=candidate.reason)
    digest = ""
    for _ in range(ATTEMPTS):
        try:
            digest = _digest(path, size, candidate.beside)
            lora = probe_file(path)
            entry = Entry.of(
                lora, path=candidate.id, size=size, mtime=mtime, digest=digest, place=place, sidecar=details.sidecar
            )
        except LoRAFormatError as error:
            entry = refused(size, mtime, digest, reason=str(error))
        except OSError as error:
            entry = refused(size, UNSETTLED, digest, reason=f"The file cannot be read: {error.strerror or error}.")
        except Exception as error:  # a file this strange is the file's fault, and must not stop the collection
            reason = f"An unexpected {type(error).__name__} while reading the header: {error}"
            entry = refused(size, mtime, digest, reason=reason)
        try:
            status = path.stat()
        except OSError:
            return entry
        if (status.st_size, status.st_mtime) == (size, mtime):
            return entry
        size, mtime = status.st_size, status.st_mtime
    return refused(
        size, UNSETTLED, "", reason="The file changes while it is read. Open the collection again when it is done."
    )
