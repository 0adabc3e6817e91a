"""Files that come slowly: what came is kept when the program ends, and the next one goes on from there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lol_core.collections.durable import sync_folder
from lol_core.collections.waiting import stopping
from lol_core.core.progress import Stopped

PARTIAL = ".partial"


def complete(path: Path, append: Callable[[Path], object]) -> None:
    """Make a file whole: `append` adds what is lacking to the part that is beside it, which then takes its place in one
    step. `path` must name one content for ever, such as by its checksum. Raises what `append` raises; what came stays,
    unless `append` deletes it. Of several threads and processes one appends, and the others wait for it.
    """
    part = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = Path(f"{part}.lock")
    try:
        lock = FileLock(own).acquire(cancel_check=stopping)
    except Timeout as error:
        raise Stopped("Stopped while another window or command was downloading the same.") from error
    with lock:
        if path.is_file():
            return
        append(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
        with suppress(OSError):  # while it is held; who waits for it finds the file whole
            own.unlink()
