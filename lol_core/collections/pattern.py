"""The LoRAs that a pattern of file names matches, such as `loras/000*.safetensors` or `runs/**/adapter_model.*`, or
the one that a file is.
"""

from __future__ import annotations

import os
from glob import glob, has_magic
from pathlib import Path

from lol_core.collections.blob import Blob, LocalFile
from lol_core.collections.files import FileSource, Listing, OpenOptions, list_folder
from lol_core.collections.labels import LABEL_FILES
from lol_core.collections.names import user_path
from lol_core.collections.source import Source
from lol_core.collections.walk import LISTED
from lol_core.errors import ZooError


def is_pattern(address: str) -> bool:
    """Whether an address is a pattern, and not the name of something that is there."""
    return "://" not in address and has_magic(address) and not os.path.lexists(user_path(address))


def matches(address: str) -> tuple[Path, Path, list[Path]]:
    """The folder that a pattern begins with, the rest of it, and what it matches. A folder whose name looks like a
    pattern is taken by its name, as in `loras [XL]/*.safetensors`, and what is there is its own only match.
    """
    place = user_path(address).absolute()
    root = next(folder for folder in place.parents if not has_magic(str(folder)) or os.path.lexists(folder))
    pattern = place.relative_to(root)
    names = [pattern] if os.path.lexists(place) else glob(str(pattern), root_dir=root, recursive=True)
    return root, pattern, sorted(root / name for name in names)


def open_pattern(address: str, options: OpenOptions) -> Source:
    """The matching files, and all that lies in matching folders, by their paths below the folder that the pattern
    begins with; with what lies beside them, and a table of labels in that folder.

    Raises ZooError when nothing matches, Stopped when the reporter says so.
    """
    root, pattern, found = matches(address)
    if not found:
        raise ZooError(f"{address}: nothing matches. Check the pattern; on a command line it stands in quotes.")
    files: dict[str, Blob] = {name: LocalFile.of(root / name) for name in LABEL_FILES if (root / name).is_file()}
    for folder in {match.parent for match in found if match.is_file()}:
        beside = (path for path in folder.iterdir() if not path.name.lower().endswith(LISTED) and path.is_file())
        files |= {path.relative_to(root).as_posix(): LocalFile.of(path) for path in beside}
    for match in found:
        name = match.relative_to(root).as_posix()
        if match.is_dir():
            files |= {f"{name}/{below}": blob for below, blob in list_folder(match).files.items()}
        elif match.is_file():
            files[name] = LocalFile.of(match)
    return FileSource.open(str(root / pattern), f"{root.name}/{pattern.name}", Listing(files), options)
