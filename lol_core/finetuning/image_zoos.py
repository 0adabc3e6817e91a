"""Making a zoo of image LoRAs from a recipe: fine-tune, measure, draw previews. A build that is stopped goes on where
it was.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.dreambooth import Base, Outcome, finetune_one, finetune_stack, write_lora
from lol_core.finetuning.machine import GOES_ON, Machine, spread
from lol_core.finetuning.recipes import ImageRecipe, Run, plan_runs
from lol_core.finetuning.rows import append_row, write_table
from lol_core.finetuning.scorer import Scorer
from lol_core.insight.generation import Painter, Sampling


@dataclass
class ImageZoo:
    """A zoo folder in the making: loras/NNNN.safetensors, previews/NNNN.webp, labels.csv, clip_scores.csv,
    failures.csv, recipe.json.
    """

    folder: Path
    recipe: ImageRecipe
    base: str

    @property
    def labels(self) -> Path:
        return self.folder / "labels.csv"

    @property
    def clip_scores(self) -> Path:
        return self.folder / "clip_scores.csv"

    def build(
        self, data: Path, count: int | None, machine: Machine, reporter: Reporter = SILENT, *, after: int = 0
    ) -> Generator[dict[str, Any], None, None]:
        """Fine-tune runs after + 1 … after + count, those already in labels.csv or failures.csv left alone; yields each
        new row of labels once it is written. Raises Stopped after a stack when the reporter says so.
        """
        runs = plan_runs(self.recipe, data, count, after)
        self._settle_recipe()
        failures = self.folder / "failures.csv"
        done = {
            Path(name).stem for path in (self.labels, failures) if path.is_file() for name in pd.read_csv(path)["lora"]
        }
        todo = [run for run in runs if run.name not in done]
        finished = len(runs) - len(todo)
        for rows in spread(
            machine,
            _start_finetuning,
            (self.recipe, self.base, machine),
            _finetune_stack,
            todo=[(self.folder, stack) for stack in stacks(todo, machine.stack)],
        ):
            for row in rows:
                if "reason" in row:
                    append_row(failures, row)
                else:
                    append_row(self.labels, row)
                    yield row
            finished += len(rows)
            reporter.count("Fine-tuning: LoRA", finished, len(runs))
            reporter.check(GOES_ON)

    def measure(self, scorer: str | None, machine: Machine, reporter: Reporter = SILENT) -> Iterator[dict[str, Any]]:
        """Draw previews and, where the recipe has prompts for it, CLIP scores of every LoRA of labels.csv that has
        none; then put them into labels.csv.

        Raises DataMissingError when there is nothing to measure, or nothing to score with, and Stopped after a LoRA
        when the reporter says so.
        """
        if self.recipe.score_prompts and scorer is None:
            raise DataMissingError("The CLIP score needs a CLIP model: name its folder or hub id with --scorer.")
        if not self.labels.is_file():
            raise DataMissingError(f"{self.labels}: not found. Fine-tune the zoo first.")
        labels = pd.read_csv(self.labels)
        scored = set(pd.read_csv(self.clip_scores)["lora"]) if self.clip_scores.is_file() else set()
        todo = [
            (self.folder, str(lora), str(prompt))
            for lora, prompt in zip(labels["lora"], labels["prompt"], strict=True)
            if (self.recipe.score_prompts and lora not in scored) or not self.preview(lora).is_file()
        ]
        finished = len(labels) - len(todo)
        for row in spread(machine, start_measuring, (self.recipe, self.base, scorer, machine), _measure, todo=todo):
            if self.recipe.score_prompts and row["lora"] not in scored:
                append_row(self.clip_scores, row)
            yield row
            finished += 1
            reporter.count("Measuring: LoRA", finished, len(labels))
            reporter.check(GOES_ON)
        if self.clip_scores.is_file():
            scores = pd.read_csv(self.clip_scores).set_index("lora")["clip_score"]
            labels = pd.read_csv(self.labels)  # which may have grown
            labels["clip_score"] = labels["lora"].map(scores)
            write_table(self.labels, labels.sort_values("lora"))

    def preview(self, lora: str) -> Path:
        return self.folder / "previews" / f"{Path(lora).stem}.webp"

    def _settle_recipe(self) -> None:
        """A zoo has one recipe: the one its first LoRA was made with."""
        path = self.folder / "recipe.json"
        asked = replace(self.recipe, base=name_of(self.base))
        if path.is_file() and self.labels.is_file():
            if self.recipe.with_settings(path) not in (asked, self.recipe):
                raise TaskError(
                    f"{path} differs from the recipe or the base asked for. Choose another folder, or go on with"
                    f" --settings {path}."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        asked.write(path)


def name_of(base: str) -> str:
    """A hub id, or the name of a folder, whose path is nobody's business."""
    return Path(base).resolve().name if Path(base).is_dir() else base


def stacks(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """Runs gathered by batch size and number of steps into stacks of at most `size`, in the order of their first
    numbers.
    """

    def kind(run: Run) -> tuple[int, int]:
        return run.batch_size, run.steps

    gathered = []
    for _, same in groupby(sorted(runs, key=lambda run: (kind(run), run.number)), key=kind):
        members = list(same)
        gathered += [members[i : i + size] for i in range(0, len(members), size)]
    return sorted(gathered, key=lambda stack: stack[0].number)


worker: dict[str, Any] = {}
"""What a process keeps between its LoRAs."""


def _start_finetuning(recipe: ImageRecipe, base: str, machine: Machine, *, device: str) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(machine.threads)
    worker.update(
        recipe=recipe, mixed_precision=machine.mixed_precision, base_name=name_of(base), base=Base(base, device)
    )


def start_measuring(recipe: ImageRecipe, base: str, scorer: str | None, machine: Machine, *, device: str) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(machine.threads)
    worker.update(
        recipe=recipe, painter=Painter(base, device), scorer=None if scorer is None else Scorer(scorer, device)
    )


def _finetune_stack(folder: Path, runs: list[Run]) -> list[dict[str, Any]]:
    recipe, base = worker["recipe"], worker["base"]
    outcomes: list[Outcome] = (
        finetune_stack(base, recipe, runs)
        if len(runs) > 1
        else [finetune_one(base, recipe, runs[0], worker["mixed_precision"])]
    )
    rows = []
    for outcome in outcomes:
        run = outcome.run
        lora = f"loras/{run.name}.safetensors"
        row: dict[str, Any] = {"lora": lora, **run.labels}
        row |= {
            "learning_rate": run.learning_rate,
            "steps": run.steps,
            "batch_size": run.batch_size,
            "prompt": run.prompt,
            "seed": run.number,
        }
        try:
            write_lora(folder / lora, outcome.factors, worker["base_name"], recipe.alpha)
            row["final_train_loss"] = outcome.final_loss
        except TaskError as error:
            row = {"lora": lora, "reason": str(error)}
        rows.append(row)
    return rows


def _measure(folder: Path, lora: str, prompt: str) -> dict[str, Any]:
    recipe, painter = worker["recipe"], worker["painter"]
    sampling = Sampling(seed=recipe.score_seed, steps=recipe.sampling_steps, guidance=recipe.guidance)
    own = [prompt] if prompt not in recipe.preview_prompts else []
    prompts = [*recipe.score_prompts, *own, *recipe.preview_prompts]
    images = painter.draw(folder / lora, prompts, sampling, keep=False)
    row: dict[str, Any] = {"lora": lora}
    if recipe.score_prompts:
        n = len(recipe.score_prompts)
        scores = worker["scorer"].scores(images[:n], list(recipe.score_prompts)).tolist()
        row |= {"clip_score": sum(scores) / n} | {f"{i + 1:02d}": score for i, score in enumerate(scores)}
        images = images[n:]
    write_strip(folder / "previews" / f"{Path(lora).stem}.webp", images)
    return row


def write_strip(path: Path, images: Sequence[Image.Image]) -> None:
    """Pictures of equal size in a row, as one WebP file."""
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for i, image in enumerate(images):
        strip.paste(image, (i * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=80, method=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
