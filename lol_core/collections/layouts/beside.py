"""What a layout of a public collection may look at: the LoRAs, and the small files that lie beside them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import torch

from lol_core.collections.durable import replace_file
from lol_core.collections.entry import Entry
from lol_core.collections.files import FileSource, Silence
from lol_core.collections.folder import Zoo
from lol_core.collections.hub import READERS
from lol_core.collections.source import Source
from lol_core.collections.waiting import begin_thread, stopping
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, ZooError

MAX_BYTES = 200_000_000
_KEPT = ["name", "identity", "content"]
Labels = dict[str, dict[str, Any]]
"""id → column → value; a column that a LoRA lacks is NaN."""


@dataclass(frozen=True)
class Beside:
    """A collection as layouts see it."""

    source: Source
    failed: list[str] = field(default_factory=list)
    """Files that are there and could not be read."""
    reporter: Reporter = SILENT
    asked: set[str] = field(default_factory=set)
    fetched: dict[str, bytes] = field(default_factory=dict)
    silence: Silence = field(default_factory=Silence)

    @property
    def ids(self) -> Sequence[str]:
        return self.source.ids

    @property
    def entries(self) -> Sequence[Entry]:
        return self.source.entries

    @cached_property
    def names(self) -> Sequence[str]:
        """The paths of all files, also of those that are no LoRAs."""
        if isinstance(self.source, FileSource):
            return list(self.source.listing.files)
        if not isinstance(self.source, Zoo):
            return []
        names = []
        for place, _, files in os.walk(self.source.folder):
            below = Path(place).relative_to(self.source.folder).as_posix()
            names += [name if below == "." else f"{below}/{name}" for name in files]
        return names

    def fetch(self, names: Iterable[str]) -> None:
        """Read what `read` will be asked for, many files at a time, where a server must be waited for. When some fail,
        the others are kept for the next time. Raises Stopped.
        """
        if not isinstance(self.source, FileSource) or "://" not in self.source.address:
            return
        kept = self.source.database.with_suffix(".beside.parquet")
        marks = {name: self.source.listing.files[name].identity for name in {*names} & {*self.names}}
        self.fetched.update(_kept(kept, marks))
        wanted = sorted(marks.keys() - self.fetched.keys())
        pool = ThreadPoolExecutor(READERS, initializer=begin_thread, initargs=(self.reporter.stop,))
        try:
            for done, (name, content) in enumerate(zip(wanted, pool.map(self._content, wanted), strict=True), 1):
                if content is not None:
                    self.fetched[name] = content
                self.reporter.count("Reading labels: file", done, len(wanted))
                self.reporter.check("The files read so far are kept.")
        finally:
            pool.shutdown(cancel_futures=True)
            came = [(name, mark, self.fetched[name]) for name, mark in marks.items() if name in self.fetched]
            with suppress(OSError, pa.ArrowException):  # they are read anew the next time
                if len(came) == len(marks):
                    kept.unlink(missing_ok=True)
                else:
                    replace_file(kept, pd.DataFrame(came, columns=_KEPT).to_parquet, shared=True)

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None when there is none that can be read. Raises Stopped."""
        if name in self.fetched or name in self.failed:
            return self.fetched.get(name)
        self.asked.add(name)
        self.reporter.count("Reading labels beside LoRA", min(len(self.asked), len(self.ids)), len(self.ids))
        self.reporter.check("The headers read so far are kept.")
        return self._content(name)

    def _content(self, name: str) -> bytes | None:
        """Of a place that does not answer, no other file is asked for."""
        if self.silence.error or stopping():
            self.failed.append(name)
            return None
        try:
            if isinstance(self.source, FileSource):
                return self.source.content(name, MAX_BYTES)
            if isinstance(self.source, Zoo):
                path = self.source.folder / name
                return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else None
        except (LoRAFormatError, ZooError, OSError) as error:
            self.failed.append(name)
            if isinstance(error, ZooError):
                self.silence.note(error)
        return None

    def find(self, name: str) -> bytes | None:
        """The content of the only file of that name, wherever it lies in the collection; else of one that lies beside
        the archive that the collection is.
        """
        places = [path for path in self.names if path == name or path.endswith(f"/{name}")]
        if len(places) == 1:
            return self.read(places[0])
        outside = Path(self.source.address).parent / name
        if not places and "://" not in self.source.address and isinstance(self.source, FileSource):
            return outside.read_bytes() if outside.is_file() and outside.stat().st_size <= MAX_BYTES else None
        return None

    def table(self, name: str) -> pd.DataFrame | None:
        """A CSV or Parquet file of that name, None when there is none, or it is none."""
        content = self.find(name)
        if content is None:
            return None
        try:
            return (pd.read_parquet if name.endswith(".parquet") else pd.read_csv)(BytesIO(content))
        except (ValueError, OSError):
            return None

    def splits(self, key: Callable[[str], str]) -> Mapping[str, str]:
        """id → "train", "validation" or "test", from `train.pt`, `valid.pt` and `test.pt`: lists of names as PyTorch
        saved them. key: from an id to the name in those lists.
        """
        owners = only({id: key(id) for id in self.ids})
        parts: dict[str, str] = {}
        for part, name in (("train", "train.pt"), ("validation", "valid.pt"), ("test", "test.pt")):
            names = saved(self.find(name))
            if isinstance(names, list):
                parts |= {owners[str(name)]: part for name in names if str(name) in owners}
        return parts

    def frame(self, labels: Labels) -> pd.DataFrame:
        return pd.DataFrame.from_dict(labels, orient="index").reindex(list(self.ids))


def _kept(place: Path, marks: Mapping[str, str]) -> dict[str, bytes]:
    """What an earlier opening fetched of those files. marks: the identities that they have now."""
    try:
        table = pd.read_parquet(place, columns=_KEPT)
    except (OSError, ValueError):
        return {}
    rows = zip(*(table[column] for column in _KEPT), strict=True)
    return {name: content for name, mark, content in rows if marks.get(name) == mark}


def only(names: Mapping[str, str]) -> dict[str, str]:
    """Name → id of what has a name of its own: of two that share one, it is not known whose a row is."""
    counts = Counter(names.values())
    return {name: id for id, name in names.items() if counts[name] == 1}


def json_object(content: bytes | None) -> dict[str, Any]:
    """A JSON object; empty when there is nothing, or something else."""
    try:
        loaded = orjson.loads(content or b"{}")
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def saved(content: bytes | None) -> Any:
    """What PyTorch saved of plain values; None when there is nothing, or more than plain values."""
    if content is None:
        return None
    try:
        stream = BytesIO(content)
        return torch.load(stream, weights_only=True)
    except Exception:  # damaged pickles raise anything at all
        return None


def number(content: bytes | None) -> float:
    """A text of one number; NaN when it is none."""
    try:
        return float(content or b"nan")
    except ValueError:
        return math.nan


def folder_of(id: str, up: int = 1) -> str:
    """The name of the folder that many levels above a file."""
    parts = id.split("/")
    return parts[-1 - up] if len(parts) > up else ""
