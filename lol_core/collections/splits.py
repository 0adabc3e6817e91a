"""Training, validation and test parts of a collection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lol_core.collections.columns import values
from lol_core.collections.source import Source
from lol_core.errors import TaskError

FRACTIONS = (0.7, 0.15, 0.15)
"""Of training, validation and test."""
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""What a column of labels may call a part, in any case."""


def parts_of(
    source: Source,
    ids: Sequence[str],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    group: str | None = None,
    split: str | None = None,
) -> dict[str, list[str]]:
    """The parts of some LoRAs: drawn, with those of one value of the label `group` and copies of one on one side, or as
    the label `split` has them.

    Raises TaskError when there is no such label, when both are named, and when a part would be empty.
    """
    for column, use in ((group, "group by"), (split, "take the parts from")):
        if column is not None and column not in source.labels.columns:
            raise TaskError(
                f"No label column {column!r} to {use}. There are"
                f" {', '.join(map(repr, source.labels.columns)) or 'none'}."
            )
    if split is None:
        return split_ids(ids, fractions, seed, kept_together(source, ids, group))
    if group is not None:
        raise TaskError("The parts are drawn by groups or taken from a column: name one of the two.")
    return named_parts(source.labels.loc[list(ids), split])


def named_parts(column: pd.Series) -> dict[str, list[str]]:
    """The parts that a column of labels, indexed by LoRA, gives them; those of which it says nothing are in none.

    Raises TaskError for another name, and when a part would be empty.
    """
    part_of = {name: part for part, called in PARTS.items() for name in called}
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for id, name in column.dropna().items():
        part = part_of.get(str(name).strip().lower())
        if part is None:
            raise TaskError(f"{column.name!r} is {name!r} for {id}; a part is called {', '.join(map(repr, part_of))}.")
        parts[part].append(str(id))
    if empty := [part for part, members in parts.items() if not members]:
        raise TaskError(
            f"{column.name!r} puts none of the {len(column)} labelled LoRAs into {' and '.join(empty)}. Each part"
            " needs some: the validation part chooses the epoch."
        )
    return parts


def groups_of(column: pd.Series) -> list[str]:
    """What each LoRA is kept together with, by a column of labels; those without are a group."""
    return list(column.astype(str).where(column.notna(), "(none)"))


def kept_together(source: Source, ids: Sequence[str], column: str | None) -> list[str] | None:
    """What each of these LoRAs is kept together with, by a column of labels if one is named, and its copies; see
    `with_copies`.
    """
    groups = None if column is None else groups_of(source.labels.loc[list(ids), column])
    return with_copies(ids, values(source, "digest").loc[list(ids)].tolist(), groups)


def with_copies(ids: Sequence[str], digests: Sequence[str], groups: Sequence[str] | None = None) -> list[str] | None:
    """What each LoRA is kept together with: those of its group, and those of the same content with their groups. None
    where each stands for itself. digests: of the contents.
    """
    if groups is None and len(set(digests)) == len(ids):
        return None
    units = ids if groups is None else groups
    first: dict[str, str] = {}
    joined: dict[str, str] = {}

    def joint(unit: str) -> str:
        while unit in joined:
            unit = joined[unit]
        return unit

    for unit, digest in zip(units, digests, strict=True):
        one, other = joint(first.setdefault(digest, unit)), joint(unit)
        if one != other:
            joined[other] = one
    return list(map(joint, units))


def split_ids(
    ids: Sequence[str],
    fractions: tuple[float, float, float] = FRACTIONS,
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
        kept = ", or group them by another column: those of one group and copies of one file stay together"
        other = "" if groups is None else kept
        raise TaskError(
            f"{len(ids)} LoRAs in {len(distinct)} groups are too few for training, validation and test parts:"
            f" {', '.join(empty)} would be empty. Label more LoRAs{other}."
        )
    return parts
