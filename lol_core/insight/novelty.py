"""Whether a LoRA is like those that a model was trained on. Where it is not, the model's prediction is a guess."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lol_core.collections.source import Source
from lol_core.core.batch import stack
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError, TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.evaluation import norm_features
from lol_core.learning.parts import parts_here

NEIGHBOURS = 5
OUTSIDE = 0.99
"""A LoRA is outside when it is farther from the training LoRAs than this share of those held out from the training."""


def _views(checkpoint: Checkpoint, loras: Sequence[LoRA]) -> tuple[np.ndarray, np.ndarray]:
    """Latent vectors (B, width) and log norms of the updates (B, L)."""
    batches = [stack(loras[i : i + 64], checkpoint.spec) for i in range(0, len(loras), 64)]
    return checkpoint.outputs(loras, embed=True).cpu().numpy(), np.concatenate(
        [norm_features(batch) for batch in batches]
    )


if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler


@dataclass(frozen=True)
class Known:
    """The training LoRAs of a model in two views: its own latent vectors, and the norms of the updates by module, which
    a latent may hide. distances: from them, of LoRAs that the training held out. The training LoRAs' own would not do:
    a model moves apart the latents that it learns from, so that every other LoRA lies far from them. others: whose
    distances they are, in words.
    """

    checkpoint: Checkpoint
    views: tuple[NearestNeighbors, NearestNeighbors]
    scales: tuple[StandardScaler, StandardScaler]
    distances: tuple[np.ndarray, np.ndarray]
    others: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, zoo: Source) -> Known:
        """Reads the training LoRAs of a checkpoint from its zoo, and those held out; where there are fewer than twice
        the neighbours of these, distances are of the training LoRAs from each other. Raises TaskError when fewer than
        that of the training LoRAs are there.
        """
        from sklearn.neighbors import NearestNeighbors  # takes a second to import
        from sklearn.preprocessing import StandardScaler

        trained, held_out = list[LoRA](), list[LoRA]()
        for id, part in parts_here(checkpoint, zoo).items():
            with suppress(LoLError):
                (trained if part == "train" else held_out).append(zoo.load(id))
        if len(trained) < 2 * NEIGHBOURS:
            raise TaskError(
                f"Of the LoRAs the model was trained on {len(trained)} are here; at least {2 * NEIGHBOURS} are needed"
                " to know what is usual."
            )
        enough = len(held_out) >= 2 * NEIGHBOURS
        others = _views(checkpoint, held_out) if enough else (None, None)
        scales, views, distances = [], [], []
        for values, of_others in zip(_views(checkpoint, trained), others, strict=True):
            scales.append(StandardScaler().fit(values))
            views.append(NearestNeighbors(n_neighbors=NEIGHBOURS).fit(scales[-1].transform(values)))
            asked = None if of_others is None else scales[-1].transform(of_others)
            distances.append(np.sort(views[-1].kneighbors(asked)[0].mean(1)))
        words = "those held out" if enough else "these from each other"
        return cls(checkpoint, (views[0], views[1]), (scales[0], scales[1]), (distances[0], distances[1]), words)

    def strangeness(self, loras: Sequence[LoRA]) -> pd.DataFrame:
        """For each LoRA the share of those held out that are nearer to their five neighbours among the training LoRAs
        than it is to its own: columns "latent" and "norms", and "outside", whether one of them exceeds 0.99. A training
        LoRA finds itself among its neighbours, so it looks more usual than it is. Of LoRAs like the training's about
        2 % are outside, where n < 100 are held out up to 2 in n + 1.
        """
        shares = {}
        for name, values, scale, view, known in zip(
            ("latent", "norms"), _views(self.checkpoint, loras), self.scales, self.views, self.distances, strict=True
        ):
            distance = view.kneighbors(scale.transform(values))[0].mean(1)
            shares[name] = np.searchsorted(known, distance) / len(known)
        table = pd.DataFrame(shares)
        table["outside"] = (table > OUTSIDE).any(axis=1)
        return table

    def remark(self, lora: LoRA) -> str:
        """Whether a LoRA is like those of the training, in words."""
        mark = self.strangeness([lora]).iloc[0]
        return in_words(bool(mark["outside"]), mark["latent"], mark["norms"], self.others)


def in_words(outside: bool, latent: float, norms: float, others: str) -> str:
    """A row of `Known.strangeness` as a sentence's end; others: see `Known`."""
    like = "unlike the LoRAs it was trained on: take it as a guess" if outside else "like those it knows"
    return f"{like} (farther from them than {latent:.0%} of {others} in its latent, {norms:.0%} in norms)"
