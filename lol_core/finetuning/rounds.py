"""Rounds of held-out LoRAs: how many of each zoo, and from which number on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Round(NamedTuple):
    """Held-out zoos that are made at one time. name: of their folder; after: LoRAs, and people, are numbered from here:
    a number is a seed, and no other zoo has the same ones; counts: zoo → LoRAs, in the order in which they are made: a
    LoRA takes about 2, 7 and 30 seconds of one core.
    """

    name: str
    after: int
    counts: Mapping[str, int]


FIRST = Round("holdout", 20_000, {"emojinette": 150, "faces": 100, "glosses": 48})
SECOND = Round("holdout-2", 30_000, {"emojinette": 600, "faces": 300, "glosses": 48})
"""Made when the two-order kernel was frozen too."""
ROUNDS = {each.name: each for each in (FIRST, SECOND)}
