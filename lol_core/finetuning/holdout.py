"""LoRAs that no model was trained, chosen or looked at on: people, pictures and draws of hyperparameters beyond those
of the sample zoos, by the same recipes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import TaskError
from lol_core.finetuning.image_zoos import ImageZoo
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.picture_data import write_people, write_things
from lol_core.finetuning.pictures import Drawings
from lol_core.finetuning.recipes import CELEBA, IMAGENETTE
from lol_core.finetuning.rounds import Round
from lol_core.finetuning.rows import sort_by_lora

Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class HoldoutZoos:
    """The held-out zoos in the making. samples: the folder of the sample zoos, whose recipes, base models and questions
    they share; encoder: all-MiniLM-L6-v2, a folder or hub id.
    """

    round: Round
    samples: Path
    out: Path
    encoder: str
    machine: Machine

    def build(self, names: Sequence[str], reporter: Reporter = SILENT) -> Iterator[Row]:
        """Make zoos by name, what is there left alone; yields the name of the zoo and each new row of its labels.
        Raises TaskError for a name that is none, Stopped, and what the making of a zoo raises.
        """
        makers = {"glosses": self._glosses, "emojinette": self._emojinette, "faces": self._faces}
        if unknown := [name for name in names if name not in makers]:
            raise TaskError(f"No held-out zoo {unknown[0]!r}. There are {', '.join(makers)}.")
        for name in names:
            for row in makers[name](self.round.counts[name], reporter):
                yield name, row
            sort_by_lora(self.out / name / "labels.csv")

    def _glosses(self, count: int, reporter: Reporter) -> Iterator[dict[str, Any]]:
        from lol_core.finetuning.glosses import build  # imports peft

        folder = self.out / "glosses"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.samples / "glosses" / "questions.csv", folder / "questions.csv")
        machine = self.machine
        yield from build(
            self.encoder,
            folder,
            count,
            machine.workers,
            threads=machine.threads,
            reporter=reporter,
            after=self.round.after,
        )

    def _emojinette(self, count: int, reporter: Reporter) -> Iterator[dict[str, Any]]:
        """Pictures are drawn anew too. Previews are not: nothing is measured on them."""
        recipe = IMAGENETTE.with_settings(self.samples / "emojinette" / "recipe.json")
        data = self.out / "things"
        if not (data / "train").is_dir():
            write_things(data, Drawings(self.samples / "pictures" / "drawings.json"), seed=self.round.after)
        zoo = ImageZoo(self.out / "emojinette", recipe, str(self.samples / "small-diffusion"))
        yield from zoo.build(data, count, self.machine, reporter, after=self.round.after)

    def _faces(self, count: int, reporter: Reporter) -> Iterator[dict[str, Any]]:
        recipe = CELEBA.with_settings(self.samples / "faces" / "recipe.json")
        data = self.out / "people"
        if not (data / "identity_CelebA.txt").exists():
            write_people(data, count, 1, reporter, first=self.round.after + 1)
        zoo = ImageZoo(self.out / "faces", recipe, str(self.samples / "small-diffusion"))
        yield from zoo.build(data, count, self.machine, reporter, after=self.round.after)
        yield from zoo.measure(str(self.samples / "small-clip"), self.machine, reporter)
