"""LoRAs in order of a score: a measured label, or what a model predicts of those it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lol_core.collections.source import Source
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.parts import parts_here


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

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"score": self.scores, "measured": self.measured.reindex(self.scores.index)})

    def words(self, id: str | None) -> list[str]:
        """Its scores, a line for each kind, a dash where there is none."""
        kinds = [("predicted", self.scores)] if self.predicted else []
        kinds += [("measured", self.measured)] if len(self.measured) else []
        return [f"{kind} {values[id]:.4g}" if id and id in values.index else f"{kind} –" for kind, values in kinds]


def measured_numbers(source: Source) -> list[str]:
    """The label columns that rank LoRAs: numbers with more than two values."""
    labels = source.labels
    return [str(c) for c in labels if pd.api.types.is_numeric_dtype(labels[c]) and labels[c].nunique() > 2]


def by_label(source: Source, label: str) -> Ranking:
    """The ranking by a measured label."""
    measured = source.labels[label].dropna()
    return Ranking(label, measured.sort_values(ascending=False), measured, predicted=False)


def by_prediction(source: Source, label: str, predictions: pd.Series) -> Ranking:
    """The ranking by predictions, by id, of a label that may have been measured too."""
    known = label in source.labels
    measured = source.labels[label].dropna() if known else pd.Series(dtype=float)
    return Ranking(label, predictions.sort_values(ascending=False), measured, predicted=True)


def held_out(checkpoint: Checkpoint, source: Source, ids: Sequence[str]) -> list[str]:
    """Of these LoRAs the test part of a model's training; where none of it is here, those that took no part."""
    parts = parts_here(checkpoint, source)
    return [id for id in ids if parts.get(id) == "test"] or [id for id in ids if id not in parts]
