"""The LoRAs of the sample zoos fine-tuned again from one start of A: by the same recipes, from the same data, with the
same draws of everything else, so that a LoRA differs from that of its number in the sample zoo by its start alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import TaskError
from lol_core.finetuning.image_zoos import ImageZoo
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.picture_data import write_things
from lol_core.finetuning.pictures import Drawings
from lol_core.finetuning.recipes import IMAGENETTE
from lol_core.finetuning.rows import sort_by_lora
from lol_core.finetuning.start import Start

COUNTS = {
    ("emojinette", Start.COMMON): 600,
    ("emojinette", Start.FROZEN): 600,
    ("glosses", Start.COMMON): 318,
}
"""Sample zoo, start → LoRAs, the first of the zoo: one takes about 2 seconds of one core, in Glosses 30."""


def named(zoo: str, start: Start) -> str:
    return f"{zoo}-{start}"


@dataclass(frozen=True)
class StartZoos:
    """The zoos in the making. samples: the folder of the sample zoos; encoder: all-MiniLM-L6-v2, a folder or hub id."""

    samples: Path
    out: Path
    encoder: str
    machine: Machine

    def build(self, names: Sequence[str], reporter: Reporter = SILENT) -> Iterator[tuple[str, dict[str, Any]]]:
        """Make zoos by name, what is there left alone; yields the name of the zoo and each new row of its labels.
        Raises TaskError for a name that is none, Stopped, and what the making of a zoo raises.
        """
        zoos = {named(*key): (*key, count) for key, count in COUNTS.items()}
        if unknown := [name for name in names if name not in zoos]:
            raise TaskError(f"No zoo {unknown[0]!r}. There are {', '.join(zoos)}.")
        for name in names:
            zoo, start, count = zoos[name]
            make = self._glosses if zoo == "glosses" else self._emojinette
            for row in make(self.out / name, start, count, reporter):
                yield name, row
            sort_by_lora(self.out / name / "labels.csv")

    def _glosses(self, folder: Path, start: Start, count: int, reporter: Reporter) -> Iterator[dict[str, Any]]:
        from lol_core.finetuning.glosses import build  # imports peft

        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.samples / "glosses" / "questions.csv", folder / "questions.csv")
        machine = self.machine
        yield from build(
            self.encoder, folder, count, machine.workers, threads=machine.threads, reporter=reporter, start=start
        )

    def _emojinette(self, folder: Path, start: Start, count: int, reporter: Reporter) -> Iterator[dict[str, Any]]:
        recipe = IMAGENETTE.with_settings(self.samples / "emojinette" / "recipe.json")
        data = self.out / "things"
        if not (data / "train").is_dir():
            write_things(data, Drawings(self.samples / "pictures" / "drawings.json"))
        zoo = ImageZoo(folder, replace(recipe, start=start), str(self.samples / "small-diffusion"))
        yield from zoo.build(data, count, self.machine, reporter)
