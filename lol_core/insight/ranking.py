"""LoRAs in order of a score: a measured label, or what a model predicts of those it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lol_core.collections.source import Source
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.parts import parts_here

CLIP_SCORE = "clip_score"
"""The label by which LoRAs of diffusion models are ranked first."""


@dataclass(frozen=True)
class Ranking:
    """LoRAs by a score, the highest first. label: what is scored; scores: by id; measured: the labels, by id.
    predicted: whether the scores are predictions.
    """

    label: str
    scores: pd.Series
    measured: pd.Series
    predicted: bool

    def among(self, ids: Sequence[str]) -> Ranking:
        """The same of some LoRAs only."""
        return Ranking(self.label, self.scores[self.scores.index.isin(ids)], self.measured, self.predicted)

    def along(self, count: int) -> dict[str, str]:
        """LoRAs evenly spaced from the highest to the lowest, at most so many: "#" and the place → id."""
        places = np.linspace(0, len(self.scores) - 1, count).round().astype(int)
        return {f"#{place + 1}": str(self.scores.index[place]) for place in places}

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"score": self.scores, "measured": self.measured.reindex(self.scores.index)})

    def lines(self, id: str | None) -> list[str]:
        """Its scores, a line for each kind, which also says where there is none."""
        kinds = [("predicted", self.scores)] if self.predicted else []
        kinds += [("measured", self.measured)] if len(self.measured) else []
        return [f"{kind} {values[id]:.4g}" if id and id in values.index else f"not {kind}" for kind, values in kinds]


def measured_numbers(source: Source) -> list[str]:
    """The label columns that rank LoRAs: numbers with more than two values, CLIP scores first."""
    labels = source.labels
    numbers = [str(c) for c in labels if pd.api.types.is_numeric_dtype(labels[c]) and labels[c].nunique() > 2]
    return sorted(numbers, key=lambda name: name != CLIP_SCORE)


def by_label(source: Source, label: str) -> Ranking:
    """The ranking by a measured label."""
    measured = source.labels[label].dropna()
    return Ranking(label, measured.sort_values(ascending=False), measured, predicted=False)


def by_prediction(source: Source, label: str, predictions: pd.Series) -> Ranking:
    """The ranking by predictions, by id, of a label that may have been measured too."""
    known = label in source.labels
    measured = source.labels[label].dropna() if known else pd.Series(dtype=float)
    return Ranking(label, predictions.sort_values(ascending=False), measured, predicted=True)


def ways(source: Source, models: Mapping[str, Checkpoint]) -> dict[str, tuple[str, str | None]]:
    """What LoRAs can be ranked by: a title → (label, the title of the model that predicts it, or None for the label
    itself). Those of CLIP scores come first; models that predict no number give none.
    """
    by: dict[str, tuple[str, str | None]] = {}
    for title, model in models.items():
        if not model.task.probabilities:
            by |= {f"{label} predicted by {title}": (label, title) for label in model.task.targets}
    by |= {f"{label}, measured": (label, None) for label in measured_numbers(source)}
    return dict(sorted(by.items(), key=lambda way: way[1][0] != CLIP_SCORE))


def held_out(checkpoint: Checkpoint, source: Source, ids: Sequence[str]) -> list[str]:
    """Of these LoRAs the test part of a model's training; where none of it is here, those that took no part."""
    parts = parts_here(checkpoint, source)
    return [id for id in ids if parts.get(id) == "test"] or [id for id in ids if id not in parts]
