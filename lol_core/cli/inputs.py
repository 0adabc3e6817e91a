"""The LoRAs that arguments of the command line mean: files, and the members of collections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from lol_core.cli.console import err, open_collection
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError

if TYPE_CHECKING:
    from lol_core.collections.source import Source
    from lol_core.core.lora import LoRA


def loras_of(inputs: Sequence[str], reporter: Reporter = SILENT) -> Iterator[tuple[str, Callable[[], LoRA]]]:
    """(name, what reads it) of every LoRA that the inputs mean; a name is its place there, without its suffix. Files
    that are refused are named on the terminal.

    Raises DataMissingError when a pattern matches nothing, ZooError when a collection cannot be opened.
    """
    from lol_core.collections.folder import load_file
    from lol_core.collections.names import stem_of
    from lol_core.collections.opening import is_collection
    from lol_core.collections.pattern import is_pattern
    from lol_core.formats import IN_FOLDER

    for text in inputs:
        places = sorted(glob(str(Path(text).expanduser()), recursive=True)) if is_pattern(text) else [text]
        if not places:
            raise DataMissingError(f"{text}: no file has such a name.")
        for place in places:
            path = Path(place).expanduser().resolve()  # "." and ".." have names too
            if not is_collection(place) or any((path / name).is_file() for name in IN_FOLDER):
                yield path.name if path.is_dir() else stem_of(path.name), partial(load_file, path, place)
                continue
            source = open_collection(place, reporter=reporter)
            for entry in source.refused:
                err.print(f"{entry.path}: {entry.reason}", highlight=False, soft_wrap=True)
            for id in source.ids:
                yield source.names[id], source.reader(id)


def id_of(source: Source, lora: str) -> str:
    """The id of a LoRA that is named by its path in a collection or by its short name. Raises DataMissingError."""
    by_name = {name: id for id, name in source.names.items()}
    id = lora if lora in source.by_id else by_name.get(lora)
    if id is None:
        raise DataMissingError(f"{lora}: no such LoRA in {source.address}. `lol scan` lists them.")
    return id
