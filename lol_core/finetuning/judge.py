"""A judge of pictures: whether each of the five attributes of a drawn person is to be seen, by a small network that
never saw a LoRA, a LoL model or the people of the sample zoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError
from lol_core.finetuning.base_model import encode, pixels
from lol_core.finetuning.fitting import fit
from lol_core.finetuning.people import ATTRIBUTES, Person, portrait
from lol_core.finetuning.pictures import SIDE, Drawings, draw_many

WEIGHTS = "model.safetensors"
CHANNELS = (16, 32, 64, 64)


@dataclass(frozen=True)
class JudgeSettings:
    pictures: int = 9000
    steps: int = 2500
    batch: int = 64
    rate: float = 2e-3
    seed: int = 3


class Judge(nn.Module):
    """Four convolutions of stride 2, then one hidden layer: (k, 3, 64, 64) in [−1, 1] → logits (k, 5), one for each of
    `ATTRIBUTES`.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        size = CHANNELS[-1] * (SIDE // 2 ** len(CHANNELS)) ** 2
        self.look = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(size, 64), nn.SiLU())
        self.answer = nn.Linear(64, len(ATTRIBUTES))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.answer(self.look(x))
        return answer

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """How sure it is that each picture shows each attribute: (k, 5). Pictures are brought to 64 × 64."""
        small = [np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in images]
        device = next(self.parameters()).device
        return self(pixels(np.stack(small)).to(device)).sigmoid().cpu()

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Raises DataMissingError when there is none."""
        judge = cls()
        try:
            judge.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataMissingError(
                f"{folder}: no judge of pictures there ({error}). `lol finetune judge` makes one."
            ) from error
        return judge.eval()


def judged_picture(_drawings: Drawings, seed: int) -> tuple[Image.Image, str]:
    """Picture number `seed` of the judge's, of a person of its own, and its attributes as five digits."""
    rng = np.random.default_rng((seed, 11))  # apart from the base model's pictures and the people of zoos
    image, _, shown = portrait(Person.draw(rng), rng, steady=0.9)
    return image, "".join(str(int(shown[name])) for name in ATTRIBUTES)


def train_judge(
    folder: Path,
    base: Path,
    drawings: Path,
    work: Path,
    settings: JudgeSettings = JudgeSettings(),
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> dict[str, float]:
    """Fit a judge to drawn people and write it to `folder`; how often it is right on pictures that it did not see, for
    each attribute. Half of the pictures have been through the autoencoder of `base`, whose marks all its images bear.

    `work` keeps the pictures and the state: a run that was stopped goes on. Raises Stopped, DataMissingError.
    """
    from diffusers import AutoencoderKL

    kept = work / "pictures.npz"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        seeds = range(settings.pictures)
        images, digits = draw_many(judged_picture, drawings, seeds, workers, reporter.part(0.0, 0.5))
        np.savez_compressed(kept, images=images, shown=np.array([[int(d) for d in text] for text in digits], bool))
    found = np.load(kept)
    images, shown = found["images"], torch.from_numpy(found["shown"]).float()
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32).eval()
    seen = torch.cat([pixels(images), _decoded(vae, images)])
    unseen = torch.arange(len(images)) >= int(0.9 * len(images))  # the same pictures, as drawn and as decoded
    train, shown = torch.nonzero(~unseen.repeat(2)).flatten(), shown.repeat(2, 1)
    torch.manual_seed(settings.seed)
    judge = Judge()

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        index = train[torch.randint(len(train), (settings.batch,), generator=generator)]
        x = seen[index]
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        return nn.functional.binary_cross_entropy_with_logits(judge(x), shown[index])

    judge.train()
    fit(
        work,
        judge,
        loss_of,
        steps=settings.steps,
        rate=settings.rate,
        seed=settings.seed,
        reporter=reporter.part(0.5, 1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}, folder / WEIGHTS)
    test = torch.nonzero(unseen.repeat(2)).flatten()
    with torch.no_grad():
        right = ((Judge.load(folder)(seen[test]) > 0).float() == shown[test]).float().mean(0)
    return dict(zip(ATTRIBUTES, right.tolist(), strict=True))


@torch.no_grad()
def _decoded(vae: Any, images: np.ndarray) -> Tensor:
    """The pictures as the autoencoder gives them back, in [−1, 1]."""
    latents = encode(vae, images) / vae.config.scaling_factor
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(64)])
