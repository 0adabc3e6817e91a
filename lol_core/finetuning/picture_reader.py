"""Small networks that read drawn pictures and never saw a LoRA. They are trained on drawings as they are and as an
autoencoder gives them back, whose marks all images of its diffusion model bear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError
from lol_core.finetuning.base_model import decode, encode, pixels
from lol_core.finetuning.fitting import fit
from lol_core.finetuning.pictures import SIDE

WEIGHTS = "model.safetensors"
CHANNELS = (16, 32, 64, 64)


@dataclass(frozen=True)
class ReaderSettings:
    pictures: int
    steps: int
    seed: int
    batch: int = 64
    rate: float = 2e-3


class PictureReader(nn.Module):
    """Four convolutions of stride 2, then one hidden layer: (k, 3, 64, 64) in [−1, 1] → logits (k, answers)."""

    answers: ClassVar[int]
    title: ClassVar[str]
    made_by: ClassVar[str]
    """A sentence: what makes one."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        size = CHANNELS[-1] * (SIDE // 2 ** len(CHANNELS)) ** 2
        self.look = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(size, 64), nn.SiLU())
        self.answer = nn.Linear(64, self.answers)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.answer(self.look(x))
        return answer

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises DataMissingError when there is none."""
        reader = cls()
        try:
            reader.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataMissingError(f"{folder}: no {cls.title} there ({error}). {cls.made_by}") from error
        return reader.eval()


def fit_to_drawings(
    reader: PictureReader,
    images: np.ndarray,
    shown: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    base: Path,
    work: Path,
    settings: ReaderSettings,
    reporter: Reporter = SILENT,
) -> tuple[Tensor, Tensor]:
    """Fit a reader to nine tenths of the drawings (N, 64, 64, 3) and to what they show, (N, …); returns the other
    tenth, as drawn and as decoded by the autoencoder of `base`, and what it shows. `work` keeps the state: a run that
    was stopped goes on. Raises Stopped.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=torch.float32).eval()
    seen, shown = torch.cat([pixels(images), decode(vae, encode(vae, images))]), torch.cat([shown, shown])
    unseen = (torch.arange(len(images)) >= int(0.9 * len(images))).repeat(2)
    train, test = (torch.nonzero(part).flatten() for part in (~unseen, unseen))

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        index = train[torch.randint(len(train), (settings.batch,), generator=generator)]
        x = seen[index]
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        return loss(reader(x), shown[index])

    reader.train()
    fit(work, reader, loss_of, steps=settings.steps, rate=settings.rate, seed=settings.seed, reporter=reporter)
    return seen[test], shown[test]
