"""A reader of drawn things: which of the ten classes a picture shows, or none of them, by a small network that never
saw a LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.base_model import decode, encode, pixels
from lol_core.finetuning.fitting import fit
from lol_core.finetuning.judge import WEIGHTS, Judge
from lol_core.finetuning.people import Person, portrait
from lol_core.finetuning.pictures import CLASSES, FAMILIAR, Drawings, draw_many, one_of, one_thing

OTHERS = tuple(thing for thing in FAMILIAR if thing not in CLASSES)
SURE = 0.9
"""How probable a class must be to count as read."""


@dataclass(frozen=True)
class ReaderSettings:
    pictures: int = 2400
    steps: int = 800
    batch: int = 64
    rate: float = 2e-3
    seed: int = 5


class ClassReader(Judge):
    """The judge's network with a softmax over `CLASSES` and "none of them"."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(self.answer.in_features, len(CLASSES) + 1)

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
    settings: ReaderSettings = ReaderSettings(),
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> float:
    """Fit a reader to drawn things, half of them through the autoencoder of `base`, and write it to `folder`; how often
    it is right on a tenth that it did not see. `work` keeps the state: a run that was stopped goes on.
    """
    from diffusers import AutoencoderKL

    images, places = draw_many(read_picture, drawings, range(settings.pictures), workers, reporter.part(0.0, 0.3))
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32).eval()
    seen = torch.cat([pixels(images), decode(vae, encode(vae, images))])
    shown = torch.tensor([int(place) for place in places]).repeat(2)
    unseen = (torch.arange(len(images)) >= int(0.9 * len(images))).repeat(2)
    train, test = (torch.nonzero(part).flatten() for part in (~unseen, unseen))
    torch.manual_seed(settings.seed)
    reader = ClassReader()

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        index = train[torch.randint(len(train), (settings.batch,), generator=generator)]
        x = seen[index]
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        return nn.functional.cross_entropy(reader(x), shown[index])

    reader.train()
    fit(
        work,
        reader,
        loss_of,
        steps=settings.steps,
        rate=settings.rate,
        seed=settings.seed,
        reporter=reporter.part(0.3, 1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in reader.state_dict().items()}, folder / WEIGHTS)
    with torch.no_grad():
        return float((reader(seen[test]).argmax(-1) == shown[test]).float().mean())
