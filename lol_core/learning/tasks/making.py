"""From a labels table to a task, and from JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from lol_core.errors import CheckpointError, TaskError
from lol_core.learning.tasks.base import TASKS, Task
from lol_core.learning.tasks.classes import class_name

MIN_LABELLED = 10


def kind_of(values: pd.Series) -> type[Task]:
    """The kind of task that suits a column; those registered last are asked first. Yes and no with gaps, which pandas
    keeps as objects, are yes and no.
    """
    present = values.dropna().infer_objects()
    return next(task for task in reversed(TASKS.values()) if task.suits(present))


def make_task(labels: pd.DataFrame, targets: Sequence[str], kind: type[Task] | None = None) -> tuple[Task, list[str]]:
    """A task on columns of a zoo's labels, and the ids of the LoRAs that have all of them (NaN, infinite and missing
    labels are left out).

    kind: found from the values when None. Raises TaskError, before anything long starts, when the labels cannot be
    learnt.
    """
    targets = [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
    if not targets:
        raise TaskError("No target chosen. Choose at least one label column.")
    if labels.shape[1] == 0:
        raise TaskError(
            "This collection has no labels. Put a labels.csv beside the files, with a column of file names and a column"
            " per label."
        )
    if missing := [target for target in targets if target not in labels.columns]:
        raise TaskError(f"No label column {missing[0]!r}. The labels table has {', '.join(map(repr, labels.columns))}.")
    if kind is None:
        kinds = {target: kind_of(labels[target]) for target in targets}
        kind = kinds[targets[0]]
        if len(set(kinds.values())) > 1:
            raise TaskError(
                f"The targets are of different kinds ({', '.join(f'{t}: {k.kind}' for t, k in kinds.items())}). Train"
                " one model for each kind."
            )
    chosen = labels[targets]
    chosen = chosen[kind.usable(chosen)]
    if len(chosen) < MIN_LABELLED:
        raise TaskError(
            f"Only {len(chosen)} of {len(labels)} LoRAs have a usable label in {', '.join(targets)}; at least"
            f" {MIN_LABELLED} are needed. Label more of them."
        )
    return kind.of(chosen), list(chosen.index)


def labels_digest(labels: pd.DataFrame, targets: Sequence[str]) -> str:
    """Identity of LoRAs and what is to be learnt of them, in whatever order and type the table has them."""

    def plain(values: pd.Series) -> pd.Series:
        values = values.infer_objects()
        text = not pd.api.types.is_numeric_dtype(values)
        return values.map(class_name).astype(object) if text else values.astype(np.float64)

    rows = pd.util.hash_pandas_object(pd.DataFrame({target: plain(labels[target]) for target in targets}))
    return hashlib.sha256(np.sort(rows.to_numpy()).tobytes()).hexdigest()[:16]


def task_from_dict(data: Mapping[str, Any]) -> Task:
    """What `Task.to_dict` gave, also as it was written when all kinds were one class. Raises KeyError or TypeError when
    something is missing, and CheckpointError for a kind that is not registered.
    """
    if data["kind"] not in TASKS:
        raise CheckpointError(
            f"There is no task {data['kind']!r}; known are {', '.join(TASKS)}. One of your own is registered by a file"
            " that LOL_MODELS names."
        )
    kind = TASKS[data["kind"]]
    names = {field.name for field in fields(kind)}
    return kind(**{name: tuple(value) for name, value in data.items() if name in names})
