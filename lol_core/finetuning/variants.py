"""The variants of LoRA (appendix E) that are fine-tuned side by side, as data: the people of the sample zoo Faces in
each, or sources of the sample zoo Glosses where images have no such layers, by one library's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from lol_core.errors import LoLError
from lol_core.finetuning.recipes import CELEBA, ImageRecipe

BASE = "small-diffusion"
STEPS, BATCH, PROMPT = 40, 1, "person"
SOURCES = ("noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.time")
"""Of Glosses, those that a LoRA may not have seen; noun.person, the largest, it always has."""
PARTS = (False, True, True)
"""Of a fused projection of queries, keys and values: those adapted."""
COPIES, UPCYCLED = 4, "upcycled"
"""Of the feed-forward, that become experts; the folder they are kept in."""
RATIO = 16.0
"""Of B's learning rate to A's, as LoRA+ recommends."""


class Library(StrEnum):
    """Whose code trains, saves and merges."""

    PEFT = "PEFT"
    LYCORIS = "LyCORIS"
    LORALIB = "loralib"


class Method(StrEnum):
    """Which of the library's adapters."""

    LORA = "LoRA"
    LOHA = "LoHa"
    LOKR = "LoKr"
    LOCON = "LoCon"
    MERGED_LINEAR = "MergedLinear"


class Learns(StrEnum):
    """Whose data a LoRA is fine-tuned on, and so what can be asked of it."""

    PERSON = "people"
    SOURCES = "subsets of sources"


class Place(StrEnum):
    """The layers that are adapted."""

    ATTENTION = "to_v and to_out of every attention"
    RESNETS = "the 3 × 3 convolutions of every residual block"
    EMBEDDING = "the text encoder's token embedding"
    KEY_VALUE = "the sentence encoder's last keys and values"
    FUSED = "keys and values of the sentence encoder's last, fused projection"
    FEED_FORWARD = "the sentence encoder's last feed-forward"
    EXPERTS = "the experts that the sentence encoder's last feed-forward was copied into"

    @property
    def learns(self) -> Learns:
        """What a LoRA here is fine-tuned on."""
        language = (Place.KEY_VALUE, Place.FUSED, Place.FEED_FORWARD, Place.EXPERTS)
        return Learns.SOURCES if self in language else Learns.PERSON


@dataclass(frozen=True)
class Variant:
    """How one zoo is made. options: as the library's configuration takes them. rate: what the drawn learning rates are
    multiplied by, since a variant's entries weigh more or less in ΔW than LoRA's; ratio: LoRA+'s.
    """

    key: str
    title: str
    method: Method = Method.LORA
    options: dict[str, Any] = field(default_factory=dict)
    library: Library = Library.PEFT
    place: Place = Place.ATTENTION
    rate: float = 1.0
    ratio: float = 1.0


VARIANTS = (
    Variant("lora", "LoRA"),
    Variant("pissa", "PiSSA", options={"init_lora_weights": "pissa"}, rate=0.3),
    Variant("lora-plus", "LoRA+", rate=0.2, ratio=RATIO),
    Variant("dora", "DoRA", options={"use_dora": True}),
    Variant("loha", "LoHa", Method.LOHA, {"r": 2, "alpha": 2}),
    Variant("lokr", "LoKr", Method.LOKR, {"r": 64, "alpha": 64}),
    Variant("lokr-factorised", "LoKr, factorised", Method.LOKR, {"r": 2, "alpha": 2, "decompose_both": True}, rate=2.0),
    Variant("locon", "LoCon", place=Place.RESNETS),
    Variant("locon-mid", "LoCon with lora_mid", Method.LOCON, {}, Library.LYCORIS, Place.RESNETS),
    Variant("embedding", "embedding", place=Place.EMBEDDING),
    Variant("sources", "LoRA, key and value", place=Place.KEY_VALUE),
    Variant("merged-linear", "MergedLinear", Method.MERGED_LINEAR, library=Library.LORALIB, place=Place.FUSED),
    Variant("sources-feed-forward", "LoRA, feed-forward", place=Place.FEED_FORWARD),
    Variant("experts", "experts", place=Place.EXPERTS),
)
"""LoHa of rank 2 stores as many numbers as LoRA of rank 4. Rates are those at which the loss of two people after 100
steps was about LoRA's, of a few that were tried.
"""


def named(keys: Sequence[str]) -> list[Variant]:
    """The variants of these keys, all when there are none. Raises LoLError naming those there are."""
    of_key = {variant.key: variant for variant in VARIANTS}
    if unknown := [key for key in keys if key not in of_key]:
        raise LoLError(f"No variant {', '.join(unknown)}. There are {', '.join(of_key)}.")
    return [of_key[key] for key in keys or of_key]


def recipe_of(samples: Path) -> ImageRecipe:
    """Faces' recipe, cut to forty steps of one picture each, under one prompt."""
    faces = CELEBA.with_settings(samples / "faces" / "recipe.json")
    return replace(faces, name="variants", base=BASE, steps=(STEPS,), batch_sizes=(BATCH,), prompts=(PROMPT,))
