"""A zoo: a folder of LoRAs, the labels people have for them, and how to split them. The folder is only ever read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lol_core.collections.index import Entry, Index
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, TaskError, ZooError
from lol_core.formats import read

LABEL_FILES = ("labels.csv", "labels.parquet")
MODEL_FILE_NAMES = ("adapter_model", "pytorch_lora_weights", "adapters")
"""File names that say nothing: such a file goes by its folder's name."""


@dataclass(frozen=True)
class Zoo:
    """A collection of LoRAs. `entries` could be read, `refused` could not (with reasons); both in order of path.

    labels: one row per entry, indexed by its path, NaN where there is none; unjoined_labels: rows of the labels table
    that belong to no file; labels_problem: why the table found in the folder could not be used, if so.
    """

    folder: Path
    entries: tuple[Entry, ...]
    refused: tuple[Entry, ...]
    labels: pd.DataFrame
    labels_path: Path | None = None
    join_column: str | None = None
    unjoined_labels: tuple[str, ...] = ()
    labels_problem: str | None = None

    @classmethod
    def open(
        cls,
        folder: Path | str,
        labels: Path | str | None = None,
        cache: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Zoo:
        """Open any folder, recursively. `labels`: a CSV or Parquet table; found by itself when labels.csv or
        labels.parquet lies in the folder.

        Raises ZooError when the folder is gone, or the table given as `labels` cannot be read or joined; one found by
        itself is left out, and says so.
        """
        folder = Path(folder).expanduser()
        described = Index(folder, cache).update(progress)
        folder = folder.resolve()
        entries = tuple(entry for entry in described if entry.reason is None)
        refused = tuple(entry for entry in described if entry.reason is not None)
        path = (
            Path(labels).expanduser()
            if labels
            else next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)
        )
        if path is None:
            return cls(folder, entries, refused, pd.DataFrame(index=[entry.path for entry in entries]))
        try:
            table, column, unjoined = join_labels(read_labels(path), [entry.path for entry in entries], path)
        except ZooError as error:
            if labels:
                raise
            return cls(
                folder,
                entries,
                refused,
                pd.DataFrame(index=[entry.path for entry in entries]),
                labels_problem=str(error),
            )
        return cls(folder, entries, refused, table, path, column, unjoined)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def ids(self) -> list[str]:
        return [entry.path for entry in self.entries]

    @cached_property
    def by_id(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.entries}

    @cached_property
    def names(self) -> dict[str, str]:
        """What to call each LoRA: its short name, or its path where two share one."""
        counts = Counter(short_name(entry.path) for entry in self.entries)
        return {e.path: short_name(e.path) if counts[short_name(e.path)] == 1 else e.path for e in self.entries}

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the collection's content: paths and digests of its readable files, whatever their times or the
        folder's place.
        """
        found = hashlib.sha256()
        for entry in self.entries:
            found.update(f"{entry.path}\0{entry.digest}\n".encode())
        return found.hexdigest()[:16]

    @cached_property
    def labels_digest(self) -> str:
        """Identity of the labels: names of the columns and every value."""
        values = pd.util.hash_pandas_object(self.labels).to_numpy().tobytes()
        return hashlib.sha256("\0".join(map(str, self.labels.columns)).encode() + values).hexdigest()[:16]

    def load(self, id: str) -> LoRA:
        """Read one LoRA with its weights. Raises LoRAFormatError naming the file, also when it has vanished since."""
        try:
            lora = read(self.folder / id)
            lora.check_finite()
        except LoRAFormatError as error:
            raise type(error)(f"{id}: {error}") from error
        return lora

    def table(self) -> pd.DataFrame:
        """One row per readable LoRA: its name, dialect and ranks, its labels, and what else its header says."""
        first = ["name", "dialect", "ranks", "modules", *self.labels.columns]
        rows = [
            {
                "name": self.names[e.path],
                "dialect": e.dialect,
                "ranks": ", ".join(map(str, e.ranks)),
                "modules": e.modules,
                "base model": e.base_model,
                "suggested base": e.suggested_base,
                "parameters": e.parameters,
                "dtype": ", ".join(e.dtypes),
                "size (kB)": e.size / 1000,
                "path": e.path,
            }
            for e in self.entries
        ]
        table = pd.DataFrame(rows, index=self.ids).join(self.labels, rsuffix=" (label)")
        return table[[c for c in first if c in table.columns] + [c for c in table.columns if c not in first]]


def short_name(path: str) -> str:
    """What people call a LoRA: its file name, or its folder's name when the file's says nothing."""
    pure = PurePosixPath(path)
    return (
        pure.parent.as_posix()
        if pure.stem in MODEL_FILE_NAMES and pure.parent.name
        else pure.with_suffix("").as_posix()
    )


STEP = re.compile(
    r"(.*?)[-_/. ]?(?:(?:checkpoint|steps?|epochs?|ep)[-_"
    r" ]?(\d+)|(?<=[-_/])(\d{6,}))(?:[-_]?(?:steps?|epochs?|adapters?))?$",
    re.IGNORECASE,
)


def training_runs(names: Mapping[str, str]) -> pd.DataFrame:
    """LoRAs that are checkpoints of one training run, by their names: style-000010, run/checkpoint-500, cat_step200.
    names: id → name.

    Index ids; columns run (the name without the step) and step, in order of both. Only runs of two checkpoints or more.
    """
    found = {id: STEP.fullmatch(name) for id, name in names.items()}
    rows = {
        id: (match[1].rstrip("-_/. ") or "(unnamed)", int(match[2] or match[3])) for id, match in found.items() if match
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["run", "step"])
    table = table[table.groupby("run")["step"].transform("nunique") > 1]
    return table.sort_values(["run", "step"])


def read_labels(path: Path) -> pd.DataFrame:
    """Read a labels table. Raises ZooError naming the file when it cannot be read or is empty."""
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError, ImportError) as error:
        raise ZooError(
            f"{path}: the labels cannot be read ({error}). Expected a CSV file with a header line, or Parquet."
        ) from error
    if table.empty or table.shape[1] < 2:
        raise ZooError(
            f"{path}: expected at least one row, a column that names LoRAs and a column of labels; found"
            f" {table.shape[0]} rows, {list(table.columns)}."
        )
    return table


def _aliases(path: str) -> list[str]:
    """What a labels table may call a file, most specific first: relative path, path without suffix, folder, file name,
    stem, folder name.
    """
    pure = PurePosixPath(path)
    aliases = [path, pure.with_suffix("").as_posix(), pure.name, pure.stem]
    if pure.stem in MODEL_FILE_NAMES and pure.parent.name:
        aliases[1:] = [pure.parent.as_posix(), pure.parent.name]
    return aliases


def join_labels(table: pd.DataFrame, ids: Sequence[str], path: Path) -> tuple[pd.DataFrame, str, tuple[str, ...]]:
    """Join a table to files by the column that names most of them: (labels indexed by id, that column, names that
    belong to no file).

    A name that several files share joins none of them. Raises ZooError when nothing joins or a LoRA has two rows.
    """
    targets: dict[str, set[str]] = {}
    for id in ids:
        for alias in _aliases(id):
            targets.setdefault(alias, set()).add(id)

    def matched(column: str) -> pd.Series:
        def find(value: object) -> str | None:
            found = targets.get(str(value).removeprefix("./"), set())
            return next(iter(found)) if len(found) == 1 else None

        return table[column].map(find)

    textual = [column for column in table.columns if not pd.api.types.is_float_dtype(table[column])]
    matches = {column: matched(column) for column in textual}
    column = max(matches, key=lambda c: matches[c].notna().sum(), default=None)
    if column is None or (ids and matches[column].notna().sum() == 0):
        raise ZooError(
            f"{path}: none of its columns ({', '.join(map(str, table.columns))}) names a file of the folder. "
            f"One column must hold relative paths or file names, such as {ids[0] if ids else 'loras/a.safetensors'!r}."
        )
    joined = matches[column]
    twice = joined[joined.notna() & joined.duplicated()]
    if len(twice):
        raise ZooError(
            f"{path}: {len(twice)} LoRAs have more than one row in column {column!r}, first {twice.iloc[0]!r}. Keep one"
            " row each."
        )
    labels = (
        table[joined.notna()]
        .set_index(joined[joined.notna()].astype(str).rename(None))
        .drop(columns=column)
        .reindex(list(ids))
    )
    return labels, str(column), tuple(table.loc[joined.isna(), column].astype(str))


def split_ids(
    ids: Sequence[str],
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    groups: Sequence[object] | None = None,
) -> dict[str, list[str]]:
    """Random training, validation and test ids; LoRAs of one group (a subject, author or run) never fall on two sides.

    Raises TaskError when a part would be empty.
    """
    units = [str(group) for group in groups] if groups is not None else list(ids)
    if len(units) != len(ids):
        raise TaskError(f"{len(ids)} LoRAs but {len(units)} group names.")
    distinct = sorted(set(units))
    order = np.random.default_rng(seed).permutation(len(distinct))
    sizes = dict.fromkeys(distinct, 0)
    for unit in units:
        sizes[unit] += 1
    lacking = {
        name: len(ids) * share / sum(fractions)
        for name, share in zip(("train", "validation", "test"), fractions, strict=True)
    }
    side = {}
    for i in order:  # each group goes to the part that lacks most
        part = max(lacking, key=lambda name: lacking[name])
        side[distinct[i]] = part
        lacking[part] -= sizes[distinct[i]]
    parts: dict[str, list[str]] = {
        name: [id for id, unit in zip(ids, units, strict=True) if side[unit] == name] for name in lacking
    }
    if empty := [name for name, part in parts.items() if not part]:
        raise TaskError(
            f"{len(ids)} LoRAs in {len(distinct)} groups are too few for training, validation and test parts:"
            f" {', '.join(empty)} would be empty. Label more"
            f" LoRAs{', or group them by another column' if groups is not None else ''}."
        )
    return parts
