"""A folder of LoRAs with the labels people have for them. The folder is only ever read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from lol_core.collections.entries import Entries
from lol_core.collections.entry import Entry, compact
from lol_core.collections.index import Index, Readers
from lol_core.collections.indexed import Indexed
from lol_core.collections.labels import join_labels, labels_file, read_labels
from lol_core.collections.names import user_path
from lol_core.collections.walk import name_of, within
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ChangedError, LoRAFormatError, ZooError
from lol_core.formats import naming, read_file


@dataclass(frozen=True, eq=False)
class Zoo(Indexed):
    """A folder as a source. `entries` could be read, `refused` could not (with reasons); both in order of path, which
    is their id.

    unjoined_labels: rows of the labels table that belong to no file; labels_problem: why the table in the folder could
    not be used, if so.
    """

    folder: Path
    entries: Entries
    labels: pd.DataFrame
    refused: Sequence[Entry] = ()
    labels_path: Path | None = None
    join_column: str | None = None
    unjoined_labels: tuple[str, ...] = ()
    labels_problem: str | None = None
    remarks: Sequence[str] = ()
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", name_of(self.folder))

    @classmethod
    def open(
        cls,
        folder: Path | str,
        labels: Path | str | None = None,
        cache: Path | None = None,
        reporter: Reporter = SILENT,
        *,
        readers: Readers = None,
    ) -> Zoo:
        """Open any folder, recursively; of a repository in a hub's cache its snapshot. `labels`: a CSV or Parquet
        table; found by itself when labels.csv or labels.parquet lies in the folder; readers: what reads headers.

        Raises ZooError when the folder is gone, or the table given as `labels` cannot be read or joined (one found by
        itself is left out, and says so), and Stopped when the reporter says so; the headers read so far are kept.
        """
        folder = within(user_path(folder))
        described = Index(folder, cache).update(reporter, readers)
        folder = folder.resolve()
        entries, refused = described.parted()
        ids = entries.ids
        path = user_path(labels) if labels else labels_file(folder)
        if path is None:
            return cls(folder, entries, pd.DataFrame(index=ids), refused)
        try:
            table, column, unjoined = join_labels(read_labels(path), ids, path)
        except ZooError as error:
            if labels:
                raise
            return cls(folder, entries, pd.DataFrame(index=ids), refused, labels_problem=str(error))
        return cls(folder, entries, table, refused, path, column, unjoined)

    @property
    def address(self) -> str:
        return str(self.folder)

    def path(self, id: str) -> Path:
        """Where the file of a LoRA is."""
        entry = self.by_id.get(id)
        return self.folder / (id if entry is None or entry.place is None else entry.place)

    def preview_of(self, entry: Entry) -> Path | None:
        """A picture beside the file, else previews/NAME.webp in the folder."""
        beside = entry.sidecar.preview
        named = self.folder / "previews" / f"{self.names[entry.path].rpartition('/')[2]}.webp"
        places = [self.path(entry.path).parent / beside] if beside else []
        return next((place for place in (*places, named) if place.is_file()), None)

    def check(self) -> None:
        if not self.folder.is_dir():
            raise ZooError(
                f"{self.folder} has gone while it was being read. Plug the drive in again, or open the collection anew."
            )

    def store(self, cache: Path | None = None) -> Path:
        return Index(self.folder, cache).path

    def load(self, id: str) -> LoRA:
        """Read one LoRA with its weights. Raises LoRAFormatError naming the file, also when it has vanished since, and
        ChangedError when it is another one since.
        """
        return self.reader(id)()

    def reader(self, id: str) -> Callable[[], LoRA]:
        entry = self.by_id.get(id)
        if entry is None:
            return partial(load_file, self.path(id), id)
        scales = compact(entry.scales)
        return partial(load_indexed, self.path(id), id, size=entry.size, mtime=entry.mtime, scales=scales)


CHANGED = "The file has changed since the collection was opened. Open it again."
CHANGED_BESIDE = "The file beside it that tells its scale has changed since the collection was opened. Open it again."


def load_indexed(path: Path, id: str, *, size: int, mtime: float, scales: str | None) -> LoRA:
    """`load_file`, of a file that is as it was indexed: what is computed from it is kept under that content. scales: of
    its modules, by `compact`.
    """
    try:
        lora = load_file(path, id)
    except LoRAFormatError as error:
        if _changed(path, size, mtime):
            raise ChangedError(f"{id}: {CHANGED}") from error
        raise
    if _changed(path, size, mtime):
        raise ChangedError(f"{id}: {CHANGED}")
    if compact(tuple(layer.scale for layer in lora.layers)) != scales:
        raise ChangedError(f"{id}: {CHANGED_BESIDE}")
    return lora


def _changed(path: Path, size: int, mtime: float) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False  # gone, as reading it has told
    return (status.st_size, status.st_mtime) != (size, mtime)


def load_file(path: Path, id: str) -> LoRA:
    """Read one file with its weights. Raises LoRAFormatError naming it by its id, also when it is not finite."""
    with naming(id):
        lora = read_file(path)
        lora.check_finite()
    return lora
