"""From what a user writes to the collection it means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from lol_core.collections import archive, hub, hub_address, remote
from lol_core.collections.files import OpenOptions
from lol_core.collections.folder import Zoo
from lol_core.collections.index import Index, Readers
from lol_core.collections.layouts import as_rows, with_own_labels
from lol_core.collections.names import user_path
from lol_core.collections.page import Page
from lol_core.collections.pattern import is_pattern, open_pattern
from lol_core.collections.source import Source
from lol_core.collections.waiting import stopped_by
from lol_core.collections.walk import ARCHIVES, within
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError, needing
from lol_core.formats import SUFFIXES

Opener = Callable[[str, OpenOptions], Source]
"""Opens the addresses of one kind of place."""

OPENERS: dict[str, Opener] = {
    hub_address.SCHEME: hub.open_hub,
    **dict.fromkeys(ARCHIVES, archive.open_archive),
}
"""By the scheme or the suffix of an address, such as "hf://" or ".zip". A folder of such a name is a folder."""
_MEANT = re.compile(r"(?:hf:?/+|hf:|huggingface\.co/)?((?:datasets/)?[\w-][\w.-]*/[\w.-]+)/*", re.IGNORECASE)
"""What may be meant as an address of the hub, and is not written as one."""


def open_source(
    address: str | Path,
    labels: str | Path | None = None,
    cache: Path | None = None,
    reporter: Reporter = SILENT,
    *,
    readers: Readers = None,
) -> Source:
    """The collection at an address: the path of a folder or of one LoRA, or whatever an opener knows. readers: what
    reads headers; other machines read those of a folder only.

    Raises ZooError when nothing can be opened there, and Stopped when the reporter says so; what was read is kept.
    """
    if not str(address).strip():
        raise ZooError("No address: give a folder, a file or a collection's address (a dot is the folder you are in).")
    address = re.sub(r"^\w+://", lambda scheme: scheme[0].lower(), str(address))
    with needing("hub"), stopped_by(reporter):
        if opener := _opener(address):
            threads = readers if isinstance(readers, int) else None
            source = opener(address, OpenOptions(str(labels) if labels else None, cache, reporter, threads))
        elif not os.path.isdir(user_path(address)):
            raise ZooError(_nothing_at(address))
        else:
            source = Zoo.open(Path(address), labels, cache, reporter, readers=readers)
        return with_own_labels(as_rows(source, labels), reporter)


def so_far(address: str, limit: int) -> Page | None:
    """The first LoRAs of a folder, by path, that its index knows while headers are being read, and how many it knows;
    None of another kind of place.
    """
    if not os.path.isdir(user_path(address)):
        return None
    return Index(within(user_path(address))).page(limit=limit)


def without_loras(source: Source) -> str:
    """What to say of a collection that holds no LoRA: what was refused, or what was looked for."""
    if count := len(source.refused):
        first = source.refused[0]
        which = "the only file that may be one was" if count == 1 else f"all {count:,} files that may be one were"
        return f"There is no LoRA in {source.address}: {which} refused. {first.path}: {first.reason}"
    return (
        f"There is no LoRA in {source.address}: no file in it or below ends in {', '.join(SUFFIXES)}. Check the"
        " address, or whether a download has ended."
    )


def is_collection(address: str) -> bool:
    """Whether an address is of a folder, an archive or another place of many LoRAs, rather than of one file."""
    path = str(user_path(address))
    return os.path.isdir(path) or (_opener(address) is not None and not _is_lora(path))


def _opener(address: str) -> Opener | None:
    if "://" in address:
        return next((opener for mark, opener in OPENERS.items() if address.startswith(mark)), remote.open_url)
    path = str(user_path(address))
    if os.path.isdir(path) or "\0" in path:
        return None
    if is_pattern(address) or _is_lora(path):
        return open_pattern
    return next((opener for mark, opener in OPENERS.items() if address.lower().endswith(mark)), None)


def _is_lora(path: str) -> bool:
    """Whether there is a file that may be one LoRA."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(path)


def _nothing_at(address: str) -> str:
    """Why no collection is at the path of a folder."""
    path = os.path.abspath(user_path(address))
    if os.path.exists(path):
        return f"{path}: no folder, no archive ({', '.join(ARCHIVES)}) and no file of weights ({', '.join(SUFFIXES)})."
    hub = _MEANT.fullmatch(address)
    drive = f"or, if it is on the hub, write hf://{hub[1]}" if hub else "or plug the drive in again"
    return f"{path}: not a folder, or it has gone. Check the path, {drive}."
