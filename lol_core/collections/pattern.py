"""The LoRAs that a pattern of file names matches, such as `loras/000*.safetensors` or `runs/**/adapter_model.*`."""

from __future__ import annotations

import os
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path

from lol_core.collections.blob import Blob, LocalFile
from lol_core.collections.files import FileSource, Listing, OpenOptions, list_folder
from lol_core.collections.labels import LABEL_FILES
from lol_core.collections.source import Source
from lol_core.errors import ZooError
from lol_core.formats import SUFFIXES


def is_pattern(address: str) -> bool:
    """Whether an address is a pattern, and not the name of something that is there."""
    return "://" not in address and has_magic(address) and not os.path.lexists(os.path.expanduser(address))


def open_pattern(address: str, options: OpenOptions) -> Source:
    """The matching files, and all that lies in matching folders, by their paths below the folder that the pattern
    begins with; with what lies beside them, and a table of labels in that folder.

    Raises ZooError when nothing matches, Stopped when the reporter says so.
    """
    pattern = Path(address).expanduser().absolute()
    root = Path(*takewhile(lambda part: not has_magic(part), pattern.parts))
    matches = sorted(map(Path, glob(str(pattern), recursive=True)))
    if not matches:
        raise ZooError(f"{address}: nothing matches. Check the pattern; on a command line it stands in quotes.")
    files: dict[str, Blob] = {name: LocalFile.of(root / name) for name in LABEL_FILES if (root / name).is_file()}
    for folder in {match.parent for match in matches if match.is_file()}:
        beside = (path for path in folder.iterdir() if not path.name.lower().endswith(SUFFIXES) and path.is_file())
        files |= {path.relative_to(root).as_posix(): LocalFile.of(path) for path in beside}
    for match in matches:
        name = match.relative_to(root).as_posix()
        if match.is_dir():
            files |= {f"{name}/{below}": blob for below, blob in list_folder(match).files.items()}
        elif match.is_file():
            files[name] = LocalFile.of(match)
    return FileSource.open(str(pattern), f"{root.name}/{pattern.name}", Listing(files), options)
