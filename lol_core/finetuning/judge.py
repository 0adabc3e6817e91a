"""A judge of pictures: whether each of the five attributes of a drawn person is to be seen, by a small network that
never saw a LoRA, a LoL model or the people of the sample zoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.base_model import pixels
from lol_core.finetuning.people import ATTRIBUTES, Person, portrait
from lol_core.finetuning.picture_reader import WEIGHTS, PictureReader, ReaderSettings, fit_to_drawings
from lol_core.finetuning.pictures import SIDE, Drawings, draw_many

SETTINGS = ReaderSettings(pictures=9000, steps=2500, seed=3)


class Judge(PictureReader):
    """Logits (k, 5), one for each of `ATTRIBUTES`."""

    answers = len(ATTRIBUTES)
    title = "judge of pictures"
    made_by = "`lol finetune judge` makes one."

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """How sure it is that each picture shows each attribute: (k, 5). Pictures are brought to 64 × 64."""
        small = [np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in images]
        device = next(self.parameters()).device
        return self(pixels(np.stack(small)).to(device)).sigmoid().cpu()


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
    *,
    settings: ReaderSettings = SETTINGS,
    workers: int = 1,
    reporter: Reporter = SILENT,
) -> dict[str, float]:
    """Fit a judge to drawn people and write it to `folder`; how often it is right on pictures that it did not see, for
    each attribute, see `fit_to_drawings`. `work` keeps the pictures and the state: a run that was stopped goes on.
    Raises Stopped, DataMissingError.
    """
    kept = work / "pictures.npz"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        seeds = range(settings.pictures)
        images, digits = draw_many(judged_picture, drawings, seeds, workers, reporter=reporter.part(0.0, 0.5))
        np.savez_compressed(kept, images=images, shown=np.array([[int(d) for d in text] for text in digits], bool))
    found = np.load(kept)
    images, shown = found["images"], torch.from_numpy(found["shown"]).float()
    torch.manual_seed(settings.seed)
    judge = Judge()
    seen, truth = fit_to_drawings(
        judge,
        images,
        shown,
        nn.functional.binary_cross_entropy_with_logits,
        base=base,
        work=work,
        settings=settings,
        reporter=reporter.part(0.5, 1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}, folder / WEIGHTS)
    with torch.no_grad():
        right = ((Judge.load(folder)(seen) > 0).float() == truth).float().mean(0)
    return dict(zip(ATTRIBUTES, right.tolist(), strict=True))
