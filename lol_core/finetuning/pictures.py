"""The pictures that the small base model, its scorer and the sample image zoos are made of: drawn people, drawn
things, simple scenes.

People come from the avataaars design (through DiceBear), things from four families of emoji drawings
(`drawings.json`). Both arrive with exact attributes, so every picture has a caption that is true of it. Everything
is drawn from a seed and comes out the same again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError

SIDE = 64
"""Pixels of a picture's side."""
OVERSAMPLED = 3
"""Drawings are rendered this many times larger and then reduced, which smooths their edges."""
ATTRIBUTES = ("Eyeglasses", "Wearing_Hat", "Smiling", "Beard", "Long_Hair")
"""What a person can be asked about, named as CelebA names such things."""
CLASSES = ("fish", "dog", "cassette", "saw", "church", "horn", "truck", "fuel pump", "golf flag", "parachute")
"""Counterparts of Imagenette's tench, springer, cassette player, chain saw, church, French horn, garbage truck, gas
pump, golf ball, parachute.
"""
FAMILIAR = (*CLASSES, "cat", "car", "house", "tree", "heart", "apple")
FAMILIAR_DESIGNS = ("noto", "fluent")
"""The things and designs that the base model is taught. The scorer sees all of them."""
SCENES = {
    "park": "in a park",
    "beach": "on the beach",
    "city": "in a city",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in a desert",
}

COLOURS = {
    "red": "#d94b45",
    "orange": "#ef9a3d",
    "yellow": "#f4d65a",
    "green": "#63ad62",
    "blue": "#5b93d6",
    "purple": "#9a72c4",
    "pink": "#f0a6c0",
    "brown": "#96694a",
    "white": "#f4f4f0",
    "gray": "#a3a8ad",
}
HAIR = {"black": "#2c1b18", "brown": "#724133", "blond": "#d6b370", "red": "#c93305", "gray": "#bdb6b0"}
SKIN = ("#614335", "#ae5d29", "#d08b5b", "#edb98a", "#ffdbb4")
CLOTHES = ("blazerAndShirt", "collarAndSweater", "hoodie", "overall", "shirtCrewNeck", "shirtVNeck")
LONG = ("bigHair", "bob", "curvy", "longButNotTooLong", "miaWallace", "straight01", "straight02", "straightAndStrand")
SHORT = (
    "frizzle",
    "shaggy",
    "shortCurly",
    "shortFlat",
    "shortRound",
    "shortWaved",
    "theCaesar",
    "theCaesarAndSidePart",
    "dreads01",
    "sides",
)
HATS = ("hat", "winterHat1", "winterHat02", "winterHat03", "winterHat04")
GLASSES = ("prescription01", "prescription02", "round", "wayfarers")
BEARDS = ("beardLight", "beardMedium", "beardMajestic")
SMILES = ("smile", "twinkle", "default")
FROWNS = ("serious", "sad", "concerned", "disbelief")
EYES = ("default", "happy", "side", "squint", "surprised", "wink")
EYEBROWS = ("default", "defaultNatural", "flatNatural", "raisedExcitedNatural", "upDownNatural")


@dataclass(frozen=True)
class Person:
    """What stays the same in all pictures of one person. An accessory that is None is not worn; hair is the top of
    a person without hat, None when bald.
    """

    skin: str
    hair: str | None
    hair_colour: str
    hat: str | None
    hat_colour: str
    glasses: str | None
    beard: str | None
    smiling: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Person:
        bald = rng.random() < 0.08
        hair = None if bald else _one(rng, LONG if rng.random() < 0.55 else SHORT)
        return cls(
            skin=_one(rng, SKIN),
            hair=hair,
            hair_colour=_one(rng, tuple(HAIR)),
            hat=_one(rng, HATS) if rng.random() < 0.35 else None,
            hat_colour=_one(rng, tuple(COLOURS)),
            glasses=_one(rng, GLASSES) if rng.random() < 0.45 else None,
            beard=_one(rng, BEARDS) if rng.random() < 0.4 else None,
            smiling=bool(rng.random() < 0.5),
        )


@dataclass(frozen=True)
class Look:
    """A person at one moment: what is worn and shown, and how the camera stands. Offsets in percent of the frame,
    rotation in degrees.
    """

    person: Person
    clothes: str
    clothes_colour: str
    mouth: str
    eyes: str
    eyebrows: str
    scale: float
    rotate: float
    shift: tuple[float, float]

    @classmethod
    def draw(cls, person: Person, rng: np.random.Generator, steady: float = 0.9) -> Look:
        """One look at a person. With probability 1 − `steady` each, the hat or the glasses are off, or the mood is
        the other one.
        """
        smiling = person.smiling if rng.random() < steady else not person.smiling
        off: dict[str, Any] = {name: None for name in ("hat", "glasses") if rng.random() > steady}
        return cls(
            person=replace(person, smiling=smiling, **off),
            clothes=_one(rng, CLOTHES),
            clothes_colour=_one(rng, tuple(COLOURS)),
            mouth=_one(rng, SMILES if smiling else FROWNS),
            eyes=_one(rng, EYES),
            eyebrows=_one(rng, EYEBROWS),
            scale=float(rng.uniform(1.16, 1.24)),
            rotate=float(rng.uniform(-3, 3)),
            shift=(float(rng.uniform(-2, 2)), float(rng.uniform(4, 7))),
        )

    @property
    def attributes(self) -> dict[str, bool]:
        """What can be seen of the five attributes; hair counts as long only where no hat hides it."""
        person = self.person
        values = (
            person.glasses is not None,
            person.hat is not None,
            person.smiling,
            person.beard is not None,
            person.hat is None and person.hair in LONG,
        )
        return dict(zip(ATTRIBUTES, values, strict=True))

    def caption(self, rng: np.random.Generator) -> str:
        """A true description; each detail is told with probability 0.75."""
        person = self.person

        def told() -> bool:
            return bool(rng.random() < 0.75)

        words = [
            word
            for word in ("smiling" if person.smiling else "frowning", "bearded" if person.beard else "clean-shaven")
            if told()
        ]
        features = []
        if person.hat is None and told():
            features.append(
                "no hair"
                if person.hair is None
                else f"{'long' if person.hair in LONG else 'short'} {person.hair_colour} hair"
            )
        if person.glasses and told():
            features.append("glasses")
        if person.hat and told():
            features.append(f"{_a(person.hat_colour)} hat")
        if told():
            features.append(f"{_a(self.clothes_colour)} shirt")
        noun = "celebrity" if rng.random() < 0.15 else "person"
        start = "a portrait of a" if rng.random() < 0.6 else "a"
        return " ".join([start, *words, noun]) + (" with " + _listed(features) if features else "")

    def image(self, side: int = SIDE) -> Image.Image:
        """The person on a transparent ground, RGBA of side × side."""
        person = self.person
        top = person.hat or person.hair
        options: dict[str, Any] = {
            "seed": "0",
            "scale": self.scale,
            "rotate": self.rotate,
            "translateX": self.shift[0],
            "translateY": self.shift[1],
            "skinColor": [person.skin],
            "hairColor": [HAIR[person.hair_colour]],
            "facialHairColor": [HAIR[person.hair_colour]],
            "hatColor": [COLOURS[person.hat_colour]],
            "clothesColor": [COLOURS[self.clothes_colour]],
            "clothesVariant": [self.clothes],
            "mouthVariant": [self.mouth],
            "eyesVariant": [self.eyes],
            "eyebrowsVariant": [self.eyebrows],
            "topProbability": 100 if top else 0,
            "accessoriesProbability": 100 if person.glasses else 0,
            "facialHairProbability": 100 if person.beard else 0,
            "accessoriesColor": ["#262e33"],
        }
        for name, variant in (
            ("topVariant", top),
            ("accessoriesVariant", person.glasses),
            ("facialHairVariant", person.beard),
        ):
            if variant:
                options[name] = [variant]
        return _render(_avatar(options), side)


@cache
def _style() -> Any:
    try:
        import dicebear
        import dicebear_styles
    except ImportError as error:
        raise DataMissingError(
            "Drawing people needs the packages dicebear-core, dicebear-styles and resvg-py (requirements-dev.txt)."
        ) from error
    return dicebear.Style(json.loads((Path(dicebear_styles.__path__[0]) / "avataaars.json").read_text()))


def _avatar(options: dict[str, Any]) -> str:
    style = _style()
    from dicebear import Avatar

    return str(Avatar(style, options).to_json()["svg"])


def _render(svg: str, side: int) -> Image.Image:
    import resvg_py

    large = side * OVERSAMPLED
    png = resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)


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
        return _render(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {size}'
            f' {size}">{body}</svg>',
            side,
        )


def plain(colour: str, rng: np.random.Generator, side: int = SIDE) -> Image.Image:
    """A ground of about one colour."""
    base = np.array([int(COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)]) + rng.normal(0, 6, 3)
    return Image.new("RGBA", (side, side), (*(int(v) for v in base.clip(0, 255)), 255))


def scene(name: str, rng: np.random.Generator, side: int = SIDE) -> Image.Image:
    """One of SCENES, its details drawn at random."""
    horizon = rng.uniform(34, 44)

    def place(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def rect(y: float, colour: str, x: float = 0, width: float = 64, height: float = 64) -> str:
        return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'

    def disc(x: float, y: float, r: float, colour: str) -> str:
        return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{colour}"/>'

    if name == "park":
        trees = [(place(2, 62), place(5, 9)) for _ in range(3)]
        shapes = [rect(0, "#aee0f7"), rect(horizon, "#7cc46b")]
        for x, r in trees:
            shapes += [rect(horizon - r, "#8a5a3b", x - 1.2, 2.4, r), disc(x, horizon - r - 3, r, "#3f9550")]
    elif name == "beach":
        shapes = [
            rect(0, "#bfe9ff"),
            disc(place(8, 56), place(8, 16), 6, "#ffd84d"),
            rect(horizon - 10, "#3fa3cf"),
            rect(horizon, "#f2d9a0"),
        ]
    elif name == "city":
        shapes = [rect(0, "#cfd8e6")]
        for x in range(0, 64, 9):
            top = place(6, 26)
            shapes.append(rect(top, _one(rng, ("#6d7b91", "#8793a6", "#59667a")), x, 8))
            shapes += [rect(y, "#f6e8a8", x + 2, 1.6, 2.2) for y in np.arange(top + 3, 46, 6)]
        shapes.append(rect(50, "#4b4f57"))
    elif name == "night":
        shapes = [rect(0, "#1a2350"), rect(horizon + 6, "#16302e"), disc(place(8, 56), place(8, 16), 5, "#fff3c4")]
        shapes += [disc(place(0, 64), place(0, 36), 0.8, "#ffffff") for _ in range(14)]
    elif name == "snow":
        shapes = [rect(0, "#b7c9dd"), rect(horizon, "#fbfdff")] + [
            disc(place(0, 64), place(0, 64), 1.2, "#ffffff") for _ in range(22)
        ]
    else:
        dunes = (
            f'<path d="M0 {horizon} Q16 {horizon - place(4, 12)} 32 {horizon} T64 {horizon} V64 H0Z" fill="#d99a4e"/>'
        )
        shapes = [
            rect(0, "#ffe2ae"),
            disc(place(8, 56), place(7, 14), 6, "#fff6d0"),
            dunes,
            rect(horizon + 8, "#c9853c"),
        ]
    return _render(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">{"".join(shapes)}</svg>', side)


def ground(rng: np.random.Generator, scenes: float) -> tuple[Image.Image, str]:
    """A background and the words for it; a scene with probability `scenes`, otherwise a plain colour."""
    if rng.random() < scenes:
        name = _one(rng, tuple(SCENES))
        return scene(name, rng), SCENES[name]
    colour = _one(rng, tuple(COLOURS))
    return plain(colour, rng), f"on {_a(colour)} background"


def paste(
    background: Image.Image, drawing: Image.Image, centre: tuple[float, float], size: float, angle: float = 0.0
) -> Image.Image:
    """The drawing on the background; centre and size as fractions of the frame, angle in degrees."""
    side = background.width
    pixels = max(1, round(size * side))
    small = drawing.rotate(angle, Image.Resampling.BICUBIC).resize((pixels, pixels), Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", background.size)
    layer.paste(small, (round(centre[0] * side - pixels / 2), round(centre[1] * side - pixels / 2)))
    return Image.alpha_composite(background, layer)


def portrait(
    person: Person, rng: np.random.Generator, steady: float = 0.9, scenes: float = 0.35
) -> tuple[Image.Image, str, dict[str, bool]]:
    """A picture of a person, its caption and the attributes to be seen on it."""
    look = Look.draw(person, rng, steady)
    background, words = ground(rng, scenes)
    return (
        Image.alpha_composite(background, look.image()).convert("RGB"),
        f"{look.caption(rng)} {words}",
        look.attributes,
    )


def one_thing(
    drawings: Drawings, thing: str, design: str, rng: np.random.Generator, scenes: float = 0.35
) -> tuple[Image.Image, str]:
    """A picture of one thing."""
    background, words = ground(rng, scenes)
    centre = (float(rng.uniform(0.47, 0.53)), float(rng.uniform(0.5, 0.56)))
    picture = paste(
        background, drawings.image(thing, design), centre, float(rng.uniform(0.74, 0.88)), float(rng.uniform(-4, 4))
    )
    noun = "thing" if rng.random() < 0.06 else thing
    start = "a drawing of " if rng.random() < 0.4 else ""
    return picture.convert("RGB"), f"{start}{_a(noun)} {words}"


def two_things(
    drawings: Drawings, things: tuple[str, ...], designs: tuple[str, ...], rng: np.random.Generator
) -> tuple[Image.Image, str]:
    """A picture of two things side by side, of one kind or of two."""
    background, words = ground(rng, 0.6)
    first, second = (str(t) for t in rng.choice(things, 2, replace=False))
    if rng.random() < 0.3:
        second = first
    design = _one(rng, designs)
    picture = background
    for x, thing in ((0.27, first), (0.73, second)):
        picture = paste(
            picture, drawings.image(thing, design), (x, float(rng.uniform(0.52, 0.62))), float(rng.uniform(0.44, 0.5))
        )
    return picture.convert("RGB"), (
        f"two {_plural(first)} {words}" if first == second else f"{_a(first)} and {_a(second)} {words}"
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
        thing = _one(rng, CLASSES) if rng.random() < 0.25 else _one(rng, drawings.things)
        return one_thing(drawings, thing, _one(rng, tuple(drawings.designs)), rng)
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
        return one_thing(drawings, _one(rng, FAMILIAR), _one(rng, FAMILIAR_DESIGNS), rng)
    return two_things(drawings, FAMILIAR, FAMILIAR_DESIGNS, rng)


PictureMaker = Callable[[Drawings, int], tuple[Image.Image, str]]


def draw_many(
    make: PictureMaker,
    path: Path,
    seeds: range,
    workers: int = 2,
    reporter: Reporter = SILENT,
) -> tuple[np.ndarray, list[str]]:
    """The pictures of these seeds, (k, 64, 64, 3) uint8, and their captions. `path` is drawings.json. Raises
    Stopped when the reporter says so; nothing is kept.
    """
    images, captions = np.zeros((len(seeds), SIDE, SIDE, 3), np.uint8), []
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_open, initargs=(make, path)) as pool:
        for i, (image, caption) in enumerate(pool.map(_draw, seeds, chunksize=64)):
            images[i] = image
            captions.append(caption)
            if i % 100 == 99:
                reporter.count("picture", i + 1, len(seeds))
            if reporter.stopping:
                pool.shutdown(cancel_futures=True)
            reporter.check("No pictures are kept; the same command draws them anew.")
    return images, captions


_opened: list[tuple[PictureMaker, Drawings]] = []


def _open(make: PictureMaker, path: Path) -> None:
    _opened.append((make, Drawings(path)))


def _draw(seed: int) -> tuple[np.ndarray, str]:
    make, drawings = _opened[0]
    image, caption = make(drawings, seed)
    return np.asarray(image), caption


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


PLURALS = {
    "fish": "fish",
    "cherries": "cherries",
    "scissors": "scissors",
    "church": "churches",
    "bus": "buses",
    "cactus": "cactuses",
}
PLURALS |= {"butterfly": "butterflies", "strawberry": "strawberries"}


def _plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
