"""Folders of drawn pictures in the layouts of CelebA and Imagenette, so that the recipes read them as they read the
real ones.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import TaskError
from lol_core.finetuning.people import ATTRIBUTES, Look, Person, portrait
from lol_core.finetuning.pictures import CLASSES, Drawings, one_thing

PICTURES_PER_PERSON = 21
PICTURES_PER_DESIGN = 6
LEAST_CHANGE = 0.01
"""Glasses or a beard must change at least this share of the picture's pixels; otherwise hair hides them and the person
is drawn anew.
"""


def write_people(out: Path, count: int, workers: int = 2, reporter: Reporter = SILENT, *, first: int = 1) -> None:
    """People first, first + 1, … (`count` of them) with 21 pictures each: identity_CelebA.txt, list_attr_celeba.txt (−1
    or 1), img_align_celeba/.

    Person k is drawn from seed k. Raises Stopped when the reporter says so; the next call draws everyone anew.
    """
    pictures = out / "img_align_celeba"
    if (out / "identity_CelebA.txt").exists():
        raise TaskError(f"{out} already holds people. Choose an empty folder.")
    pictures.mkdir(parents=True, exist_ok=True)
    identities, attributes = [], []
    people = range(first, first + count)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for k, rows in zip(people, pool.map(_draw_person, people, [pictures] * count, chunksize=4), strict=True):
            for name, shown in rows:
                identities.append(f"{name} {k}")
                attributes.append(" ".join([name, *("1" if shown[a] else "-1" for a in ATTRIBUTES)]))
            reporter.count("Drawing people: person", k - first + 1, count)
            if reporter.stopping:
                pool.shutdown(cancel_futures=True)
            reporter.check("No people are kept; the same command draws them anew.")
    (out / "list_attr_celeba.txt").write_text(
        "\n".join([str(len(attributes)), " ".join(ATTRIBUTES), *attributes]) + "\n"
    )
    (out / "identity_CelebA.txt").write_text("\n".join(identities) + "\n")


def _draw_person(k: int, folder: Path) -> list[tuple[str, dict[str, bool]]]:
    rows = []
    for i, (image, shown) in enumerate(pictures_of(k)):
        name = f"{k:05d}_{i:02d}.png"
        image.save(folder / name)
        rows.append((name, shown))
    return rows


def pictures_of(k: int, count: int = PICTURES_PER_PERSON) -> list[tuple[Image.Image, dict[str, bool]]]:
    """The first pictures of person k, and what can be seen on each."""
    person, rng = person_of(k)
    drawn = (portrait(person, rng) for _ in range(count))
    return [(image, shown) for image, _, shown in drawn]


def person_of(k: int) -> tuple[Person, np.random.Generator]:
    """Person k, and the generator that draws their pictures."""
    rng = np.random.default_rng((k, 7))  # apart from the seeds of the base model's own training pictures
    person = Person.draw(rng)
    while not all_visible(person, rng):
        person = Person.draw(rng)
    return person, rng


def all_visible(person: Person, rng: np.random.Generator) -> bool:
    """Whether taking off the glasses or the beard changes the picture."""
    look = Look.draw(person, rng, steady=1.0)
    whole = np.asarray(look.image()).astype(int)
    for part in ("glasses", "beard"):
        if getattr(person, part) is not None:
            taken_off: dict[str, Any] = {part: None}
            without = np.asarray(replace(look, person=replace(person, **taken_off)).image()).astype(int)
            if (np.abs(whole - without).max(-1) > 24).mean() < LEAST_CHANGE:
                return False
    return True


def write_things(out: Path, drawings: Drawings, seed: int = 0) -> None:
    """The ten classes, each in all designs, six pictures a design: train/<class>/<design>_<i>.png."""
    rng = np.random.default_rng((seed, 8))
    for thing in CLASSES:
        folder = out / "train" / thing
        folder.mkdir(parents=True, exist_ok=True)
        for design in drawings.designs:
            for i in range(PICTURES_PER_DESIGN):
                one_thing(drawings, thing, design, rng)[0].save(folder / f"{design}_{i}.png")
