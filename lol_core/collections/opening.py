"""From what a user writes to the collection it means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lol_core.collections import archive, hub, hub_address, remote
from lol_core.collections.files import OpenOptions
from lol_core.collections.folder import Zoo
from lol_core.collections.layouts import as_rows, with_own_labels
from lol_core.collections.pattern import is_pattern, open_pattern
from lol_core.collections.source import Source
from lol_core.collections.waiting import stopped_by
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import needing

Opener = Callable[[str, OpenOptions], Source]
"""Opens the addresses of one kind of place."""

OPENERS: dict[str, Opener] = {
    hub_address.SCHEME: hub.open_hub,
    **dict.fromkeys(archive.SUFFIXES, archive.open_archive),
}
"""By the scheme or the suffix of an address, such as "hf://" or ".zip". A folder of such a name is a folder."""


def open_source(
    address: str | Path,
    labels: str | Path | None = None,
    cache: Path | None = None,
    reporter: Reporter = SILENT,
    *,
    readers: int | None = None,
) -> Source:
    """The collection at an address: a folder's path, or whatever an opener knows. readers: headers that are
    read at a time, in threads; None for as many as suit the place.

    Raises ZooError when nothing can be opened there, and Stopped when the reporter says so; what was read is kept.
    """
    address = str(address)
    with needing("hub"), stopped_by(reporter):
        if opener := _opener(address):
            source = opener(address, OpenOptions(str(labels) if labels else None, cache, reporter, readers))
        else:
            source = Zoo.open(Path(address), labels, cache, reporter, readers=readers)
        return with_own_labels(as_rows(source), reporter)


def is_collection(address: str) -> bool:
    """Whether an address is of a folder, an archive or another place of many LoRAs, rather than of one file."""
    return _opener(address) is not None or Path(address).expanduser().is_dir()


def _opener(address: str) -> Opener | None:
    if "://" in address:
        return next((opener for mark, opener in OPENERS.items() if address.startswith(mark)), remote.open_url)
    if Path(address).expanduser().is_dir():
        return None
    if is_pattern(address):
        return open_pattern
    return next((opener for mark, opener in OPENERS.items() if address.lower().endswith(mark)), None)
