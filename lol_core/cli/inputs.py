"""The LoRAs that arguments of the command line mean: files, and the members of collections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lol_core.cli.console import err, open_collection
from lol_core.collections.names import short_name, stem_of, user_path
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError

if TYPE_CHECKING:
    from lol_core.collections.source import Source
    from lol_core.core.lora import LoRA


def loras_of(
    inputs: Sequence[str], reporter: Reporter = SILENT, readers: int | None = None, *, written: Sequence[Path] = ()
) -> Iterator[tuple[str, Callable[[], LoRA]]]:
    """(name, what reads it) of every LoRA that the inputs mean; a name is its place there, without its suffix. Files
    that are refused are named on the terminal. readers: as `open_source` takes them; written: where the command writes
    to, which is left out where it lies within a folder or a pattern.

    Raises DataMissingError when a pattern matches nothing, or an input is what is written, ZooError when a collection
    cannot be opened.
    """
    from lol_core.collections.folder import load_file
    from lol_core.collections.opening import is_collection
    from lol_core.collections.pattern import is_pattern, matches
    from lol_core.formats import IN_FOLDER

    targets = [user_path(place).resolve() for place in written]
    left_out = False

    def written_below(root: Path) -> list[Path]:
        return [target for target in targets if root in target.parents]

    for text in inputs:
        root, _, found = matches(text) if is_pattern(text) else (None, None, [Path(text)])
        below = [] if root is None else written_below(root.resolve())
        places = [text] if root is None else [str(match) for match in found if not _within(match.resolve(), below)]
        left_out |= len(places) < len(found)
        if not found:
            raise DataMissingError(f"{text}: no file has such a name.")
        for place in places:
            path = user_path(place).resolve()  # "." and ".." have names too
            if not is_collection(place) or any((path / name).is_file() for name in IN_FOLDER):
                if path in targets:
                    raise DataMissingError(f"{place} is read and would be written. Name another place by --out.")
                yield path.name if path.is_dir() else stem_of(path.name), partial(load_file, path, place)
                continue
            source = open_collection(place, reporter=reporter, readers=readers)
            for entry in source.refused:
                err.print(f"{entry.path}: {entry.reason}", highlight=False, soft_wrap=True)
            below = written_below(path)
            for id in source.ids:
                if below and _within(path / id, below):
                    left_out = True
                else:
                    yield source.names[id], source.reader(id)
    if left_out:
        err.print(f"Left out, for this command writes there: {written[0]}.", highlight=False, soft_wrap=True)


def _within(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def only_of(address: str, command: str, reporter: Reporter = SILENT, readers: int | None = None) -> Callable[[], LoRA]:
    """What reads the one LoRA of an address. Raises DataMissingError, with the command that names one of several, where
    it holds another number of them.
    """
    loras = list(loras_of([address], reporter, readers))
    if len(loras) != 1:
        raise DataMissingError(f"{address} holds {len(loras)} LoRAs. Say which: `{command}`.")
    return loras[0][1]


def read_all(
    loads: Sequence[Callable[[], LoRA]], reporter: Reporter = SILENT, readers: int | None = None
) -> list[LoRA]:
    """LoRAs with their weights, in their order, so many read at a time, in threads. Raises what the first that cannot
    be read raises, and Stopped.
    """
    from lol_core.collections.index import READERS
    from lol_core.collections.waiting import begin_thread

    loras = []
    with ThreadPoolExecutor(readers or READERS, initializer=begin_thread, initargs=(reporter.stop,)) as pool:
        try:
            for reading in [pool.submit(load) for load in loads]:
                loras.append(reading.result())
                reporter.count("Reading: LoRA", len(loras), len(loads))
                reporter.check("Nothing was written.")
        finally:
            pool.shutdown(cancel_futures=True)
    return loras


def id_of(source: Source, lora: str) -> str:
    """The id of a LoRA that is named by its path in a collection, its short name, or the last part of it. Raises
    DataMissingError, also where several are called so.
    """
    by_name = {name: id for id, name in source.names.items()}
    if (known := lora if lora in source.by_id else by_name.get(lora)) is not None:
        return known
    called = [id for id in source.ids if short_name(id).rpartition("/")[2] == lora]
    if not called:
        raise DataMissingError(f"{lora}: no such LoRA in {source.address}. `lol scan` lists them.")
    if len(called) > 1:
        some = ", ".join(called[:3]) + (", …" if len(called) > 3 else "")
        raise DataMissingError(f"{lora}: {len(called)} LoRAs are called so. Name one by its path: {some}.")
    return called[0]
