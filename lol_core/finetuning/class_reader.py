"""A reader of drawn things: which of the ten classes a picture shows, or none of them, by a small network that never
saw a LoRA.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.base_model import pixels
from lol_core.finetuning.people import Person, portrait
from lol_core.finetuning.picture_reader import WEIGHTS, PictureReader, ReaderSettings, fit_to_drawings
from lol_core.finetuning.pictures import CLASSES, FAMILIAR, Drawings, draw_many, one_of, one_thing

OTHERS = tuple(thing for thing in FAMILIAR if thing not in CLASSES)
SURE = 0.9
"""How probable a class must be to count as read."""


SETTINGS = ReaderSettings(pictures=2400, steps=800, seed=5)


class ClassReader(PictureReader):
    """Logits of `CLASSES` and of "none of them"."""

    answers = len(CLASSES) + 1
    title = "reader of classes"
    made_by = "`lol experiment merges` makes one."

    @torch.no_grad()
    def classes(self, images: list[Image.Image]) -> list[str | None]:
        """The class of each picture, None where none is sure."""
        small = np.stack([np.asarray(image.convert("RGB")) for image in images])
        sure, place = self(pixels(small)).softmax(-1)[:, : len(CLASSES)].max(-1)
        return [CLASSES[k] if p > SURE else None for k, p in zip(place.tolist(), sure.tolist(), strict=True)]


def read_picture(drawings: Drawings, seed: int) -> tuple[Image.Image, str]:
    """Picture number `seed` of the reader's and the place of its class: a tenth show another thing, a twentieth a
    person.
    """
    rng = np.random.default_rng((seed, 13))  # apart from every other picture here
    kind = rng.random()
    if kind < 0.05:
        return portrait(Person.draw(rng), rng)[0], str(len(CLASSES))
    thing = one_of(rng, OTHERS if kind < 0.15 else CLASSES)
    image = one_thing(drawings, thing, one_of(rng, tuple(drawings.designs)), rng)[0]
    return image, str(CLASSES.index(thing) if thing in CLASSES else len(CLASSES))


def train_class_reader(
    folder: Path,
    base: Path,
    drawings: Path,
    work: Path,
    *,
    settings: ReaderSettings = SETTINGS,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> float:
    """Fit a reader to drawn things, half of them through the autoencoder of `base`, and write it to `folder`; how often
    it is right on a tenth that it did not see. `work` keeps the state: a run that was stopped goes on.
    """
    images, places = draw_many(
        read_picture, drawings, range(settings.pictures), workers, reporter=reporter.part(0.0, 0.3)
    )
    torch.manual_seed(settings.seed)
    reader = ClassReader()
    seen, truth = fit_to_drawings(
        reader,
        images,
        torch.tensor([int(place) for place in places]),
        nn.functional.cross_entropy,
        base=base,
        work=work,
        settings=settings,
        reporter=reporter.part(0.3, 1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in reader.eval().state_dict().items()}, folder / WEIGHTS)
    with torch.no_grad():
        return float((reader(seen).argmax(-1) == truth).float().mean())
