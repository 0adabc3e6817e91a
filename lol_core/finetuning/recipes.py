"""The paper's recipes for LoRA zoos (appendix D, tables 6 to 8), as data; the sample zoos are the same recipes with
some numbers replaced.

A recipe and a data folder give a list of `Run`s: everything that one fine-tune depends on, drawn from the seed that is
also its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pandas as pd

from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.start import Start

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
PARTI_PROMPTS = (
    "a red sphere on top of a yellow box",
    "a chimpanzee sitting on a wooden bench",
    "a clock tower",
    "toy cars",
    (
        "a white rabbit in blue jogging clothes doubled over in pain while a turtle wearing a red tank top dashes"
        " confidently through the finish line"
    ),
    "a train going to the moon",
    "Four cats surrounding a dog",
    "the Eiffel Tower in a desert",
    "The Millennium Wheel next to the Statue of Liberty. The Sagrada Familia church is also visible.",
    (
        "A punk rock squirrel in a studded leather jacket shouting into a microphone while standing on a stump and"
        " holding a beer on dark stage."
    ),
    "The Statue of Liberty surrounded by helicopters",
    "A television made of water that displays an image of a cityscape at night.",
    "a family on a road trip",
    "the mona lisa wearing a cowboy hat and screaming a punk song into a microphone",
    "a family of four posing at Mount Rushmore",
    "force",
    (
        "an oil surrealist painting of a dreamworld on a seashore where clocks and watches appear to be inexplicably"
        " limp and melting in the desolate landscape. a table on the left, with a golden watch swarmed by ants. a"
        " strange fleshy creature in the center of the painting"
    ),
    "Downtown Austin at sunrise. detailed ink wash.",
    "A helicopter flies over Yosemite.",
    "A giraffe walking through a green grass covered field",
    "a corgi's head",
    "portrait of a well-dressed raccoon, oil painting in the style of Rembrandt",
    "a volcano",
    "happiness",
    "the words 'KEEP OFF THE GRASS' on a black sticker",
    "A heart made of wood",
    "a pixel art corgi pizza",
    "two wine bottles",
    "A funny Rube Goldberg machine made out of metal",
    "a horned owl with a graduation cap and diploma",
    "A celebrity in a park",
    "A person on the beach",
    "A thing in a city",
)
"""The 33 prompts of appendix D.1.1: thirty from PartiPrompts (Apache-2.0), three with words that the LoRAs are trained
on.
"""


class Settings:
    """A recipe whose values can be read from and written to JSON."""

    def with_settings(self, path: Path) -> Self:
        """The recipe with the values of a JSON file in place of its own. A file without `start` is older than that
        setting, and its LoRAs began each at its own. Raises TaskError when it names a setting that does not exist.
        """
        try:
            given = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataMissingError(f"{path}: no readable JSON there ({error}).") from error
        known = {field.name for field in fields(cast(Any, self))}
        if not isinstance(given, dict) or set(given) - known:
            unknown = sorted(set(given) - known) if isinstance(given, dict) else "no object"
            raise TaskError(f"{path}: {unknown} found; the settings of a recipe are {', '.join(sorted(known))}.")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        if (start := values.get("start", Start.OWN)) not in list(Start):
            raise TaskError(f"{path}: start is {start!r}. Choose {', '.join(Start)}.")
        values["start"] = Start(start)
        return cast(Self, replace(cast(Any, self), **values))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(cast(Any, self)), indent=1) + "\n")


@dataclass(frozen=True)
class ImageRecipe(Settings):
    """How a zoo of image LoRAs is made. Where a setting is a tuple, each run draws one of it with equal chance.

    targets: the ends of the names of the adapted projections. alpha: the scale is alpha / rank; None is the rank, so
    that the scale is 1.
    sampling_steps, guidance: how images are generated for the CLIP score (paper: 20 steps; guidance 1 is none).
    """

    name: str
    base: str
    data: str
    resolution: int
    rank: int
    targets: tuple[str, ...]
    learning_rates: tuple[float, ...]
    steps: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    prompts: tuple[str, ...]
    images_per_subject: int = 21
    attributes: tuple[str, ...] = ()
    subsets_repeated: int = 1
    weight_decay: float = 1e-2
    score_prompts: tuple[str, ...] = ()
    score_seed: int = 42
    sampling_steps: int = 20
    guidance: float = 7.5
    alpha: float | None = None
    preview_prompts: tuple[str, ...] = ()
    """Beside the run's own prompt; previews are drawn with the score's seed."""
    start: Start = Start.OWN

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


AUTHORS_TARGETS = ("to_q", "to_v")
AUTHORS_ALPHA = 27.0
"""At rank 4 and at rank 32: of the authors' code, the paper names neither projections nor alpha."""
CELEBA = ImageRecipe(
    name="celeba",
    base="CompVis/stable-diffusion-v1-4",
    data="celeba",
    resolution=512,
    rank=4,
    targets=AUTHORS_TARGETS,
    # table 6; the authors' code has 3e-3 in the place of 3e-4
    learning_rates=(1e-4, 3e-4, 1e-3, 3e-3),
    steps=(100, 133, 167, 200),
    # table 6; in the authors' code the batch is 1, and 1 or 2 are steps of gradient accumulation
    batch_sizes=(1, 2),
    prompts=("Celebrity", "Person", "thing", "skd"),
    # the five that Lingenfelter et al. (2022) found least noisy; their names are of the authors' code
    attributes=("Male", "Young", "Wearing_Lipstick", "Big_Lips", "No_Beard"),
    score_prompts=PARTI_PROMPTS,
    alpha=AUTHORS_ALPHA,
)
IMAGENETTE = ImageRecipe(
    name="imagenette",
    base="CompVis/stable-diffusion-v1-4",
    data="imagenette",
    resolution=512,
    rank=32,
    targets=AUTHORS_TARGETS,
    learning_rates=(3e-4,),
    steps=(150,),
    batch_sizes=(1,),
    prompts=("sks_photo",),
    subsets_repeated=2,
    alpha=AUTHORS_ALPHA,
)
SPLITS = {"celeba": (3000.0, 400.0, 499.0), "imagenette": (1534.0, 256.0, 256.0), "arc": (0.8, 0.1, 0.1)}
"""Of the authors' LoL models, as `TrainingConfig.fractions` takes them. Their CelebA parts are fixed lists, their
Imagenette parts one random draw in which the two LoRAs of a subset may part, their ARC parts the order of a folder's
listing; ours are drawn by seed.
"""
IMAGE_RECIPES = {recipe.name: recipe for recipe in (CELEBA, IMAGENETTE)}


@dataclass(frozen=True)
class Run:
    """One fine-tune. `images` are paths; `labels` what is known of the data before training."""

    number: int
    images: tuple[str, ...]
    prompt: str
    learning_rate: float
    steps: int
    batch_size: int
    labels: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.number:04d}"


def draw_run(recipe: ImageRecipe, number: int, images: Iterable[Path], labels: dict[str, Any]) -> Run:
    """Run `number` with hyperparameters drawn from that seed."""
    rng = np.random.default_rng(number)
    return Run(
        number=number,
        learning_rate=float(rng.choice(recipe.learning_rates)),
        steps=int(rng.choice(recipe.steps)),
        batch_size=int(rng.choice(recipe.batch_sizes)),
        prompt=str(rng.choice(recipe.prompts)),
        images=tuple(str(path) for path in images),
        labels=labels,
    )


def plan_runs(recipe: ImageRecipe, data: Path, count: int | None = None, after: int = 0) -> list[Run]:
    """The runs of a recipe on a data folder, the first `count` of them, numbered from `after` + 1: the number is the
    seed, so other numbers are other draws.

    Raises:
        DataMissingError: when the folder does not hold what the recipe reads.
    """
    if not data.is_dir():
        raise DataMissingError(f"{data}: no such folder. {recipe.name} reads {LAYOUTS[recipe.data]}.")
    runs = celeba_runs(recipe, data, after) if recipe.data == "celeba" else imagenette_runs(recipe, data, after)
    return runs if count is None else runs[:count]


LAYOUTS = {
    "celeba": (
        "a folder laid out as CelebA: identity_CelebA.txt, list_attr_celeba.txt and the pictures in img_align_celeba/"
    ),
    "imagenette": "a folder laid out as Imagenette: train/ with a folder of pictures for each class",
}


def celeba_runs(recipe: ImageRecipe, data: Path, after: int = 0) -> list[Run]:
    """A run for each identity with enough pictures, in the order of identities; labels are majorities over its pictures
    (appendix D.1.1).
    """
    identities, attributes, pictures = (
        data / "identity_CelebA.txt",
        data / "list_attr_celeba.txt",
        data / "img_align_celeba",
    )
    missing = [path.name for path in (identities, attributes, pictures) if not path.exists()]
    if missing:
        raise DataMissingError(f"{data}: {', '.join(missing)} not found. Expected {LAYOUTS['celeba']}.")
    people = pd.read_csv(identities, sep=r"\s+", header=None, names=["file", "identity"])
    shown = pd.read_csv(attributes, sep=r"\s+", skiprows=1)
    if unknown := [name for name in recipe.attributes if name not in shown]:
        raise DataMissingError(f"{attributes}: no column {', '.join(unknown)}. It has {', '.join(shown.columns)}.")
    runs: list[Run] = []
    for identity, group in people.groupby("identity", sort=True):
        files = group.file.tolist()[: recipe.images_per_subject]
        if len(files) < recipe.images_per_subject:
            continue
        majority = (shown.loc[files, list(recipe.attributes)] > 0).mean() >= 0.5
        number = after + len(runs) + 1
        runs.append(
            draw_run(
                recipe,
                number,
                [pictures / name for name in files],
                {"identity": int(str(identity))} | {str(name): int(most) for name, most in majority.items()},
            )
        )
    if not runs:
        raise DataMissingError(f"{data}: no identity has {recipe.images_per_subject} pictures.")
    return runs


def imagenette_runs(recipe: ImageRecipe, data: Path, after: int = 0) -> list[Run]:
    """A run for each nonempty subset of the classes, as often as the recipe repeats them, with one picture of each
    present class (appendix D.1.2).

    The subsets come in an order shuffled by a fixed seed, so that an unfinished zoo holds subsets of every size.
    """
    classes = {
        folder.name: sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
        for folder in sorted((data / "train").glob("*"))
        if folder.is_dir()
    }
    if not classes or not all(classes.values()):
        raise DataMissingError(
            f"{data}: {'a class has no pictures' if classes else 'no train/ folder with classes'}. Expected"
            f" {LAYOUTS['imagenette']}."
        )
    names = list(classes)
    subsets = [set(chosen) for size in range(1, len(names) + 1) for chosen in combinations(names, size)]
    runs: list[Run] = []
    for repeat in range(recipe.subsets_repeated):
        for place in np.random.default_rng(repeat).permutation(len(subsets)):
            present, number = subsets[place], after + len(runs) + 1
            rng = np.random.default_rng((number, 1))
            images = [classes[name][int(rng.integers(len(classes[name])))] for name in names if name in present]
            labels = {f"has {name}": int(name in present) for name in names} | {
                "n_images": len(images),
                "subset": int(place),
            }
            runs.append(draw_run(recipe, number, images, labels))
    return runs


@dataclass(frozen=True)
class LanguageRecipe(Settings):
    """How a zoo of language-model LoRAs is made (appendix D.2, table 8). learning_rate_exponents: the rate is 10^U(low,
    high).
    """

    name: str
    learning_rate_exponents: tuple[float, float] = (-5.0, -3.0)
    weight_decay_exponents: tuple[float, float] = (-6.0, -2.0)
    epochs: tuple[int, ...] = (2, 3, 4)
    batch_sizes: tuple[int, ...] = (32, 64, 128)
    lora_dropout: float = 0.1
    rank: int = 4
    targets: tuple[str, ...] = ("k_proj", "v_proj")
    start: Start = Start.OWN


@dataclass(frozen=True)
class Hyperparameters:
    """One draw of table 8."""

    seed: int
    learning_rate: float
    weight_decay: float
    epochs: int
    batch_size: int
    lora_dropout: float
    dropped: tuple[str, ...]

    @classmethod
    def draw(cls, recipe: LanguageRecipe, seed: int, droppable: list[str]) -> Hyperparameters:
        """Of the droppable sources a random number, at least one, is dropped."""
        rng = np.random.default_rng(seed)
        n_dropped = int(rng.integers(1, len(droppable) + 1))
        return cls(
            seed=seed,
            learning_rate=float(10 ** rng.uniform(*recipe.learning_rate_exponents)),
            weight_decay=float(10 ** rng.uniform(*recipe.weight_decay_exponents)),
            epochs=int(rng.choice(recipe.epochs)),
            batch_size=int(rng.choice(recipe.batch_sizes)),
            lora_dropout=float(rng.uniform(0, recipe.lora_dropout)),
            dropped=tuple(sorted(rng.choice(droppable, n_dropped, replace=False).tolist())),
        )
