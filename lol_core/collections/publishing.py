"""A collection as a folder ready to upload as a data set: its LoRAs, labels, parts, card, licence and checksums."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from lol_core.collections import columns
from lol_core.collections.folder import Zoo
from lol_core.collections.labels import as_table
from lol_core.collections.names import counted
from lol_core.collections.splits import parts_of
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError
from lol_core.formats import configs_of
from lol_core.formats.container.shards import shards_of

CHECKSUMS = "SHA256SUMS"
TABLES = ("labels", "splits")
"""Tables of other columns, which the hub and `datasets` would take for one."""
FEWEST = 5
"""LoRAs, each counted once, of which every part gets one; fewer are all for training."""


def publish(
    zoo: Zoo,
    out: Path,
    *,
    licence: str,
    title: str | None = None,
    seed: int = 0,
    group: str | None = None,
    split: str | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Write the data set folder `out`, whole or not at all. licence: as the hub names it, such as "cc-by-4.0"; seed and
    group: of the parts in splits.csv, as training draws them; split: the label that they are taken from instead.

    Raises ZooError when there is nothing to publish, the licence is no name or `out` is there already, TaskError as
    `parts_of` does; Stopped when the reporter says so.
    """
    check_licence(licence)
    if not len(zoo):
        raise ZooError(f"{zoo.address}: no LoRA to publish.")
    parts, told = _parts(zoo, seed, group, split)

    def fill(folder: Path) -> None:
        for done, id in enumerate(zoo.ids):
            reporter.count("Copying LoRA", done + 1, len(zoo))
            reporter.check("Nothing was written.")
            _copy(zoo, id, folder)
        if len(zoo.labels.columns):
            as_table(zoo.labels).to_csv(folder / "labels.csv", index=False)
        rows = [(id, part) for part, ids in parts.items() for id in ids]
        pd.DataFrame(rows, columns=["path", "split"]).to_csv(folder / "splits.csv", index=False)
        (folder / "README.md").write_text(card(zoo, licence, title or zoo.name, told), encoding="utf-8")

    return written(out, fill)


def _parts(zoo: Zoo, seed: int, group: str | None, split: str | None) -> tuple[dict[str, list[str]], str]:
    """The parts, and a card's words for them. Raises TaskError as `parts_of` does."""
    if group is None and split is None and columns.values(zoo, "digest").nunique() < FEWEST:
        return {"train": zoo.ids}, "all for training, as they are few"
    grouped = f", LoRAs of one {group} on one side" if group else ""
    came = f"drawn with seed {seed}{grouped}" if split is None else f"as the label {split} has them"
    return parts_of(zoo, zoo.ids, seed=seed, group=group, split=split), f"training, validation and test, {came}"


def check_licence(licence: str) -> None:
    """Raises ZooError for what is no name of a licence on the hub, which refuses the card then."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ZooError(
            f"{licence!r} is no licence by the hub's names, which are such as cc-by-4.0, apache-2.0, mit, or other."
        )


def written(out: Path, fill: Callable[[Path], None]) -> Path:
    """A folder with checksums of all its files, made under another name and then moved to `out`."""
    if out.exists():
        raise ZooError(f"{out} is there already. Name a folder that is not, or move it away.")
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        fill(part)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        sums = [f"{_sha256(path)}  {path.relative_to(part).as_posix()}\n" for path in files]
        (part / CHECKSUMS).write_text("".join(sums), encoding="utf-8")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _copy(zoo: Zoo, id: str, folder: Path) -> None:
    """A LoRA with its configuration and its picture. Only what was read is copied, and nothing is linked."""
    source, target = zoo.path(id), folder / id
    target.parent.mkdir(parents=True, exist_ok=True)
    shards = shards_of(source)
    names = shards.names if shards else (source.name,)
    for name in (*names, f"adapter_model{source.suffix}.index.json", *configs_of(source.name)):
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, target.parent / name)
    if preview := zoo.preview(id):
        beside = preview.parent == source.parent
        place = target.with_suffix(preview.suffix) if beside else folder / "previews" / preview.name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(preview, place)


def card(zoo: Zoo, licence: str, title: str, parts: str) -> str:
    """The data set card, with the fields that the hub reads at its head. parts: what splits.csv holds, in words."""
    from huggingface_hub import DatasetCardData

    tables = TABLES if len(zoo.labels.columns) else TABLES[1:]
    configs: list[dict[str, Any]] = [{"config_name": name, "data_files": f"{name}.csv"} for name in tables]
    configs[0]["default"] = True
    about = DatasetCardData(license=licence, pretty_name=title, tags=["lora", "learning-on-loras"], configs=configs)
    claimed, suggested = columns.values(zoo, "base_model"), columns.values(zoo, "suggested_base")
    bases = claimed.fillna(suggested).fillna("unknown").value_counts()
    dialects = columns.values(zoo, "dialect").fillna("unknown").unique()
    ranks = sorted({int(rank) for text in columns.values(zoo, "ranks").unique() for rank in text.split(", ") if rank})
    labels = zoo.labels.replace([np.inf, -np.inf], np.nan)
    place = "A path is where the base model lay when they were trained: name it, here and in the files of the LoRAs."
    placed = [place, ""] if any(map(_is_path, bases.index)) else []
    lines = [
        "---",
        about.to_yaml(),
        "---",
        "",
        f"# {title}",
        "",
        f"{counted(len(zoo), 'LoRA')}, {columns.size(zoo) / 1e6:,.1f} MB, of rank {', '.join(map(str, ranks))},"
        f" in the form of {', '.join(dialects)}.",
        "",
        "| base model | LoRAs |",
        "|---|---|",
        *(f"| {_cell(base)} | {count:,} |" for base, count in bases.items()),
        "",
        *placed,
        *(_labelled(labels) if len(labels.columns) else ()),
        f"- `splits.csv`: {parts}.",
        f"- `{CHECKSUMS}`: check the files by `sha256sum -c {CHECKSUMS}`.",
        "",
        "Who trained them, on what and for what, and what they must not be used for: to be written by who uploads it.",
    ]
    return "\n".join(lines) + "\n"


def _labelled(labels: pd.DataFrame) -> list[str]:
    return [
        "| label | known of | values |",
        "|---|---|---|",
        *(
            f"| {_cell(name)} | {column.notna().sum():,} | {_cell(_values(column))} |"
            for name, column in labels.items()
        ),
        "",
        "- `labels.csv`: one row a LoRA, by its path.",
    ]


def _is_path(base: str) -> bool:
    """Whether a base model is named by its place on a computer, which says nothing elsewhere."""
    return PurePosixPath(base).is_absolute() or PureWindowsPath(base).is_absolute()


def _cell(content: object) -> str:
    """As a cell of a table, whose rows are lines and whose cells end at a bar."""
    return " ".join(str(content).split()).replace("|", r"\|")


def _values(column: pd.Series) -> str:
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")  # whole numbers, of which some are missing
    if pd.api.types.is_float_dtype(column) or column.nunique() > 12:
        if pd.api.types.is_numeric_dtype(column):
            return f"{column.min():.4g} to {column.max():.4g}"
        return f"{column.nunique():,} different"
    return ", ".join(f"{value} ({count:,})" for value, count in column.value_counts().items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
