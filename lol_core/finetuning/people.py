"""Drawn people with exact attributes, in the avataaars design (through DiceBear)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lol_core.errors import DataMissingError
from lol_core.finetuning.scenes import COLOURS, SIDE, ground, one_of, render, with_article

ATTRIBUTES = ("Eyeglasses", "Wearing_Hat", "Smiling", "Beard", "Long_Hair")
"""What a person can be asked about, named as CelebA names such things."""
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
        hair = None if bald else one_of(rng, LONG if rng.random() < 0.55 else SHORT)
        return cls(
            skin=one_of(rng, SKIN),
            hair=hair,
            hair_colour=one_of(rng, tuple(HAIR)),
            hat=one_of(rng, HATS) if rng.random() < 0.35 else None,
            hat_colour=one_of(rng, tuple(COLOURS)),
            glasses=one_of(rng, GLASSES) if rng.random() < 0.45 else None,
            beard=one_of(rng, BEARDS) if rng.random() < 0.4 else None,
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
            clothes=one_of(rng, CLOTHES),
            clothes_colour=one_of(rng, tuple(COLOURS)),
            mouth=one_of(rng, SMILES if smiling else FROWNS),
            eyes=one_of(rng, EYES),
            eyebrows=one_of(rng, EYEBROWS),
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
        """A true description; each detail is mentioned with probability 0.75."""
        person = self.person

        def mentioned() -> bool:
            return bool(rng.random() < 0.75)

        words = [
            word
            for word in ("smiling" if person.smiling else "frowning", "bearded" if person.beard else "clean-shaven")
            if mentioned()
        ]
        features = []
        if person.hat is None and mentioned():
            features.append(
                "no hair"
                if person.hair is None
                else f"{'long' if person.hair in LONG else 'short'} {person.hair_colour} hair"
            )
        if person.glasses and mentioned():
            features.append("glasses")
        if person.hat and mentioned():
            features.append(f"{with_article(person.hat_colour)} hat")
        if mentioned():
            features.append(f"{with_article(self.clothes_colour)} shirt")
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
        return render(_avatar(options), side)


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


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
