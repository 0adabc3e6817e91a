"""Zoos of several variants, made LoRA by LoRA, so that a build that is stopped has as many of each and goes on where
it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lol_core.core.progress import Reporter
from lol_core.finetuning.machine import GOES_ON, Machine, spread
from lol_core.finetuning.rows import append_row
from lol_core.finetuning.variants import Variant

Row = dict[str, Any]


def build_side_by_side(
    out: Path,
    variants: Sequence[Variant],
    runs: Mapping[str, Any],
    machine: Machine,
    *,
    start: Callable[..., None],
    started: tuple[Any, ...],
    finetune: Callable[[Path, str, Any], tuple[str, Row]],
    reporter: Reporter,
) -> Iterator[tuple[str, Row]]:
    """Each run (name → what a fine-tune depends on) in every variant: `out`/KEY/loras/NAME and its row in
    `out`/KEY/labels.csv, or in failures.csv when it has a reason. What is there is left alone.

    start, started: as `spread` takes them. finetune: (out, key, run) → (key, row). Yields (key, row) as they are
    written. Raises Stopped after an adapter when the reporter says so.
    """
    tables = {(v.key, name): out / v.key / name for v in variants for name in ("labels.csv", "failures.csv")}
    done = {
        (key, Path(lora).stem)
        for (key, _), path in tables.items()
        if path.is_file()
        for lora in pd.read_csv(path)["lora"]
    }
    every = [(v.key, name) for name in runs for v in variants]
    todo = [(out, key, runs[name]) for key, name in every if (key, name) not in done]
    finished = len(every) - len(todo)
    for variant in variants:
        (out / variant.key).mkdir(parents=True, exist_ok=True)
    for key, row in spread(machine, start, started, finetune, todo=todo):
        append_row(tables[key, "failures.csv" if "reason" in row else "labels.csv"], row)
        finished += 1
        reporter.count("Fine-tuning: adapter", finished, len(every))
        yield key, row
        reporter.check(GOES_ON)
