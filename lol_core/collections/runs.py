"""Checkpoints of one training run, told by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

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
    matches = {id: STEP.fullmatch(name) for id, name in names.items()}
    rows = {
        id: (match[1].rstrip("-_/. ") or "(unnamed)", int(match[2] or match[3]))
        for id, match in matches.items()
        if match
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["run", "step"])
    table = table[table.groupby("run")["step"].transform("nunique") > 1]
    return table.sort_values(["run", "step"])
