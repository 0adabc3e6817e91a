"""Where LoRAs come from. Everything that learns from a collection, looks at it or shows it takes a `Source`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import pandas as pd

from lol_core.collections.cache import cache_folder
from lol_core.collections.entry import Entry
from lol_core.collections.labels import with_labels
from lol_core.collections.names import display_names
from lol_core.core.lora import LoRA

FACTS = [
    "name",
    "dialect",
    "ranks",
    "modules",
    "base model",
    "suggested base",
    "parameters",
    "dtype",
    "size (kB)",
    "path",
]
"""Columns of a table of LoRAs that their headers give."""


class Source(Protocol):
    """A collection of LoRAs. A class that inherits from this one brings `name`, `entries`, `labels` and `load`; the
    rest follows from them.

    entries: what is known of each LoRA without its weights, in a fixed order; labels: one row per entry, indexed by its
    id, NaN where there is none; labels_problem: why the labels that people have for it could not be used, if so;
    labels_path: the table that they come from; join_column: its column that names LoRAs, and unjoined_labels: the names
    in it that no LoRA has; refused: what could not be read, with the reason; remarks: sentences on the whole that
    people should read, such as that it was opened without a network.
    """

    name: str
    entries: Sequence[Entry]
    labels: pd.DataFrame
    labels_problem: str | None = None
    labels_path: Path | None = None
    join_column: str | None = None
    unjoined_labels: tuple[str, ...] = ()
    refused: Sequence[Entry] = ()
    remarks: Sequence[str] = ()

    @property
    def address(self) -> str:
        """What `open_source` opens it by, and what tells it from every other collection of this user."""
        return f"memory://{self.name}"

    def load(self, id: str) -> LoRA:
        """One LoRA with its weights. Raises LoRAFormatError naming it when it cannot be read, or is not finite."""
        ...

    def reader(self, id: str) -> Callable[[], LoRA]:
        """`load` of one LoRA as a function that can be sent to another process."""
        return partial(self.load, id)

    def check(self) -> None:
        """Raises ZooError, with what to do, when the source itself can no longer be read."""
        return

    def path(self, id: str) -> Path | None:
        """The file or folder that holds nothing but this LoRA, where there is one on this computer."""
        return None

    def preview(self, id: str) -> Path | None:
        """The picture that came with a LoRA, if one did."""
        return self.preview_of(self.by_id[id])

    def preview_of(self, entry: Entry) -> Path | None:
        """The same where its entry is at hand, as `detailed` reads them many at a time."""
        return None

    def store(self, cache: Path | None = None) -> Path:
        """The SQLite file that keeps what is computed from the weights, by digest."""
        return (cache or cache_folder()) / "index" / f"{self.name}-{self.fingerprint}.sqlite"

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def ids(self) -> list[str]:
        return [entry.path for entry in self.entries]

    @cached_property
    def by_id(self) -> Mapping[str, Entry]:
        return {entry.path: entry for entry in self.entries}

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What to call each LoRA: its short name, or its id where two share one."""
        return display_names(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the collection's content: ids and digests of its LoRAs, whatever their times or their place."""
        return fingerprint_of((entry.path, entry.digest) for entry in self.entries)

    @cached_property
    def labels_digest(self) -> str:
        """Identity of the labels: names of the columns and every value."""
        values = pd.util.hash_pandas_object(self.labels).to_numpy().tobytes()
        return hashlib.sha256("\0".join(map(str, self.labels.columns)).encode() + values).hexdigest()[:16]

    def facts(self, entries: Sequence[Entry] | None = None) -> pd.DataFrame:
        """One row per LoRA, or for each of these; see `facts_of`."""
        return facts_of(self.entries if entries is None else entries, self.names)

    def table(self, entries: Sequence[Entry] | None = None) -> pd.DataFrame:
        """One row per LoRA, or for each of these: its name, dialect and ranks, its labels, and what else its header
        says. See `with_labels` for labels of the same names.
        """
        return with_labels(self.facts(entries), self.labels, after="modules")


def facts_of(entries: Iterable[Entry], names: Mapping[str, str]) -> pd.DataFrame:
    """One row for each: what it is called and what its header says, in the columns `FACTS`."""
    rows = [
        (
            names[e.path],
            e.dialect,
            ", ".join(map(str, e.ranks)),
            e.modules,
            e.base_model,
            e.suggested_base,
            e.parameters,
            ", ".join(e.dtypes),
            e.size / 1000,
            e.path,
        )
        for e in entries
    ]
    return pd.DataFrame(rows, index=[row[-1] for row in rows], columns=FACTS)


def fingerprint_of(identities: Iterable[tuple[str, str]]) -> str:
    """The fingerprint of LoRAs given as (id, digest), in their order."""
    return hashlib.sha256("".join(f"{id}\0{digest}\n" for id, digest in identities).encode()).hexdigest()[:16]
