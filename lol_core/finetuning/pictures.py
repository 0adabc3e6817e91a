"""The pictures that the small base model, its scorer and the sample image zoos are made of: drawn people, drawn
things, simple scenes.

People come from `people`, things from four families of emoji drawings (`drawings.json`). Both arrive with exact
attributes, so every picture has a caption that is true of it. Everything is drawn from a seed and comes out the same
again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError
from lol_core.finetuning.people import Person, portrait
from lol_core.finetuning.scenes import SIDE, ground, one_of, paste, render, with_article

CLASSES = ("fish", "dog", "cassette", "saw", "church", "horn", "truck", "fuel pump", "golf flag", "parachute")
"""Counterparts of Imagenette's tench, springer, cassette player, chain saw, church, French horn, garbage truck, gas
pump, golf ball, parachute.
"""
FAMILIAR = (*CLASSES, "cat", "car", "house", "tree", "heart", "apple")
FAMILIAR_DESIGNS = ("noto", "fluent")
"""The things and designs that the base model is taught. The scorer sees all of them."""
PLURALS = {
    "fish": "fish",
    "cherries": "cherries",
    "scissors": "scissors",
    "church": "churches",
    "bus": "buses",
    "cactus": "cactuses",
}
PLURALS |= {"butterfly": "butterflies", "strawberry": "strawberries"}


class Drawings:
    """Drawings of named things, each in several designs, from `drawings.json` (design → size, licence and SVG
    bodies).
    """

    def __init__(self, path: Path):
        try:
            self.designs: dict[str, dict[str, Any]] = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise DataMissingError(
                f"{path} is missing: it holds the drawings of things that pictures are made of."
            ) from error
        self.things = tuple(next(iter(self.designs.values()))["drawings"])

    def image(self, thing: str, design: str, side: int = SIDE) -> Image.Image:
        size, body = self.designs[design]["size"], self.designs[design]["drawings"][thing]
        return render(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {size}'
            f' {size}">{body}</svg>',
            side,
        )


def one_thing(
    drawings: Drawings, thing: str, design: str, rng: np.random.Generator, *, scenes: float = 0.35
) -> tuple[Image.Image, str]:
    """A picture of one thing."""
    background, words = ground(rng, scenes)
    centre = (float(rng.uniform(0.47, 0.53)), float(rng.uniform(0.5, 0.56)))
    picture = paste(
        background,
        drawings.image(thing, design),
        centre,
        float(rng.uniform(0.74, 0.88)),
        angle=float(rng.uniform(-4, 4)),
    )
    noun = "thing" if rng.random() < 0.06 else thing
    start = "a drawing of " if rng.random() < 0.4 else ""
    return picture.convert("RGB"), f"{start}{with_article(noun)} {words}"


def two_things(
    drawings: Drawings, things: tuple[str, ...], designs: tuple[str, ...], rng: np.random.Generator
) -> tuple[Image.Image, str]:
    """A picture of two things side by side, of one kind or of two."""
    background, words = ground(rng, 0.6)
    first, second = (str(t) for t in rng.choice(things, 2, replace=False))
    if rng.random() < 0.3:
        second = first
    design = one_of(rng, designs)
    picture = background
    for x, thing in ((0.27, first), (0.73, second)):
        picture = paste(
            picture, drawings.image(thing, design), (x, float(rng.uniform(0.52, 0.62))), float(rng.uniform(0.44, 0.5))
        )
    return picture.convert("RGB"), (
        f"two {_plural(first)} {words}"
        if first == second
        else f"{with_article(first)} and {with_article(second)} {words}"
    )


def any_picture(drawings: Drawings, seed: int) -> tuple[Image.Image, str]:
    """Picture number `seed` of the scorer's endless training set: half people, a third single things, the rest
    pairs of things.
    """
    rng = np.random.default_rng(seed)
    kind = rng.random()
    if kind < 0.5:
        image, caption, _ = portrait(Person.draw(rng), rng, steady=1.0)
        return image, caption
    if kind < 0.86:
        thing = one_of(rng, CLASSES) if rng.random() < 0.25 else one_of(rng, drawings.things)
        return one_thing(drawings, thing, one_of(rng, tuple(drawings.designs)), rng)
    return two_things(drawings, drawings.things, tuple(drawings.designs), rng)


def familiar_picture(drawings: Drawings, seed: int) -> tuple[Image.Image, str]:
    """Picture number `seed` of the base model's: two in five show people, half of them one familiar thing, the rest
    two.
    """
    rng = np.random.default_rng((seed, 1))
    kind = rng.random()
    if kind < 0.4:
        image, caption, _ = portrait(Person.draw(rng), rng, steady=1.0)
        return image, caption
    if kind < 0.9:
        return one_thing(drawings, one_of(rng, FAMILIAR), one_of(rng, FAMILIAR_DESIGNS), rng)
    return two_things(drawings, FAMILIAR, FAMILIAR_DESIGNS, rng)


PictureMaker = Callable[[Drawings, int], tuple[Image.Image, str]]


def draw_many(
    make: PictureMaker,
    path: Path,
    seeds: range,
    workers: int = 2,
    *,
    reporter: Reporter = SILENT,
) -> tuple[np.ndarray, list[str]]:
    """The pictures of these seeds, (k, 64, 64, 3) uint8, and their captions. `path` is drawings.json. Raises
    Stopped when the reporter says so; nothing is kept.
    """
    images, captions = np.zeros((len(seeds), SIDE, SIDE, 3), np.uint8), []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for i, (image, caption) in enumerate(pool.map(partial(_draw, make, path), seeds, chunksize=64)):
            images[i] = image
            captions.append(caption)
            if i % 20 == 19:
                reporter.count("picture", i + 1, len(seeds))
            if reporter.stopping:
                pool.shutdown(cancel_futures=True)
            reporter.check("No pictures are kept; the same command draws them anew.")
    return images, captions


def _draw(make: PictureMaker, path: Path, seed: int) -> tuple[np.ndarray, str]:
    image, caption = make(_drawings(path), seed)
    return np.asarray(image), caption


_drawings = lru_cache(maxsize=1)(Drawings)
"""The drawings of a file, read once in a process."""


def _plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")
