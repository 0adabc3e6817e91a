"""What can be had again, kept within bounds where many people open what they like: downloads of the hub, drawn
pictures, and indexes.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

from lol_core.collections.remote_files import GIGABYTE

INDEX_IDLE_S = 2 * 86400
"""An index that was used since may belong to a collection that is open. Systems note a use once a day."""
_CONTENT = ("blobs", "snapshots")
"""Where a repository's files are, which are linked from the second, or, where there are no links, are there."""


class _Kept(NamedTuple):
    used: float
    size: int
    delete: Callable[[], object]


def trim(gigabytes: float, *, repositories: Path, files: Iterable[Path], indexes: Path) -> None:
    """Delete what was unused the longest until no more than that is there. repositories: a cache of the hub library,
    each repository whole; files: folders of single files; indexes: a folder of SQLite files and of what
    lies beside them, those that nobody has open.

    Who is reading one of the others meanwhile is told to open it again. What goes meanwhile is no error.
    """
    kept = [*_repositories(repositories), *(file for folder in files for file in _files(folder)), *_indexes(indexes)]
    excess = sum(each.size for each in kept) - gigabytes * GIGABYTE
    for each in sorted(kept, key=lambda each: each.used):
        if excess <= 0:
            return
        with suppress(OSError):
            each.delete()
            excess -= each.size


def _repositories(folder: Path) -> Iterator[_Kept]:
    """With what is half downloaded or damaged in them."""
    for place in _in(folder):
        if "--" in place.name:
            files = [Path(top, name) for part in _CONTENT for top, _, names in os.walk(place / part) for name in names]
            found = [status for file in files if (status := _status(file))]
            used = max((_used(status) for status in found), default=0.0)
            size = sum(status.st_size for status in found)
            yield _Kept(used, size, partial(rmtree, place, ignore_errors=True))


def _files(folder: Path) -> Iterator[_Kept]:
    for file in _in(folder):
        if status := _status(file):
            yield _Kept(_used(status), status.st_size, partial(file.unlink, missing_ok=True))


def _indexes(folder: Path) -> Iterator[_Kept]:
    """Without those that are open, which have their latest changes in a file beside them, or were lately."""
    files, lately = set(_in(folder)), time.time() - INDEX_IDLE_S
    for file in files:
        open_now = file.with_name(f"{file.name}-wal") in files or file.name.endswith(("-wal", "-shm"))
        status = None if open_now else _status(file)
        if status and _used(status) < lately:
            yield _Kept(_used(status), status.st_size, partial(file.unlink, missing_ok=True))


def _in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _status(file: Path) -> os.stat_result | None:
    """Of a file that is there and no link."""
    with suppress(OSError):
        if stat.S_ISREG((status := file.lstat()).st_mode):
            return status
    return None


def _used(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)
