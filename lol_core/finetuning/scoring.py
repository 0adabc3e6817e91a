"""Further CLIP scores of a zoo that is made: of other prompts, or from another image seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.image_zoos import ImageZoo, start_measuring, worker
from lol_core.finetuning.machine import GOES_ON, Machine, spread
from lol_core.finetuning.rows import append_row, write_table
from lol_core.insight.generation import Sampling


def score_again(
    zoo: ImageZoo,
    column: str,
    prompts: Sequence[str],
    *,
    seed: int,
    scorer: str,
    machine: Machine,
    count: int | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[dict[str, Any]]:
    """Draw the first `count` LoRAs of labels.csv, all when None, by these prompts from one seed and score the images,
    as the zoo's recipe has it otherwise; each row goes to COLUMN.csv (a column for each prompt, in order) and is
    yielded. Once all are there the mean is a column of labels.csv. What is in COLUMN.csv already is left alone.

    Raises DataMissingError when the zoo has no labels.csv, TaskError when the column is one of its own, and Stopped
    after a LoRA when the reporter says so.
    """
    if not zoo.labels.is_file():
        raise DataMissingError(f"{zoo.labels}: not found. Fine-tune the zoo first.")
    labels, place = pd.read_csv(zoo.labels), zoo.folder / f"{column}.csv"
    if column in labels and not place.is_file():
        raise TaskError(f"{zoo.labels} has a column {column!r} of its own. Choose another name.")
    done = set(pd.read_csv(place)["lora"]) if place.is_file() else set()
    sampling = Sampling(seed=seed, steps=zoo.recipe.sampling_steps, guidance=zoo.recipe.guidance)
    wanted = labels["lora"].iloc[:count]
    todo = [(zoo.folder, str(lora)) for lora in wanted if lora not in done]
    finished = len(wanted) - len(todo)
    score = partial(_score, column=column, prompts=tuple(prompts), sampling=sampling)
    for row in spread(machine, start_measuring, (zoo.recipe, zoo.base, scorer, machine), score, todo=todo):
        append_row(place, row)
        yield row
        finished += 1
        reporter.count("Scoring: LoRA", finished, len(wanted))
        reporter.check(GOES_ON)
    labels = pd.read_csv(zoo.labels)  # which may have grown
    labels[column] = labels["lora"].map(pd.read_csv(place).set_index("lora")[column])
    write_table(zoo.labels, labels)


def _score(folder: Path, lora: str, *, column: str, prompts: tuple[str, ...], sampling: Sampling) -> dict[str, Any]:
    images = worker["painter"].draw(folder / lora, list(prompts), sampling, keep=False)
    scores = worker["scorer"].scores(images, list(prompts)).tolist()
    rounded = {f"{i + 1:02d}": round(score, 5) for i, score in enumerate(scores)}
    return {"lora": lora, column: round(sum(scores) / len(scores), 6)} | rounded
