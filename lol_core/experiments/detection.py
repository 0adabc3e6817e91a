"""Telling backdoored LoRAs from clean ones: what a detector is trained on, what it is asked about, and how well it
separates the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.collections.source import Source
from lol_core.core.batch import shared_spec
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.learning.bootstrap import Resampled, mean_over, separation
from lol_core.learning.config import TrainingConfig
from lol_core.learning.evaluation import norm_features
from lol_core.learning.factors import Factors
from lol_core.learning.fit import Fit
from lol_core.learning.models import find_model, make_model
from lol_core.learning.tasks import Binary

FEWEST = 3
"""Backdoored LoRAs of a recipe and an attack that are enough for an AUC."""
VALIDATION = 6
"""One of so many training LoRAs chooses GL-net's epoch, and the kernel and its ridge."""
TARGET = "harmful"


class Design(StrEnum):
    """What of the LoRAs that are asked about the detector was trained on others of. None was trained on itself."""

    WITHIN = "this recipe and attack only"
    SEEN = "all recipes and attacks"
    ATTACK = "attack not seen"
    RECIPE = "recipe not seen"
    NEITHER = "neither seen"


@dataclass(frozen=True)
class Case:
    """One detector's training. recipe, attack: of what it is asked about, any when empty; fold: that is held out."""

    design: Design
    fold: int
    recipe: str = ""
    attack: str = ""

    @classmethod
    def of(cls, design: Design, fold: int, recipe: str, attack: str) -> Case:
        """That which judges a recipe's LoRAs of an attack."""
        by_recipe = design in (Design.WITHIN, Design.RECIPE, Design.NEITHER)
        by_attack = design in (Design.WITHIN, Design.ATTACK, Design.NEITHER)
        return cls(design, fold, recipe if by_recipe else "", attack if by_attack else "")

    def trained_on(self, table: pd.DataFrame) -> np.ndarray:
        """(B,) of the LoRAs of `Zoo` tables: clean ones, and those whose attack took; without an attack that is not to
        be seen, its decoys too.
        """
        chosen = (table["fold"] != self.fold) & (clean(table) | (table["took"] == 1))
        if self.design is Design.WITHIN:
            chosen &= (table["recipe"] == self.recipe) & (clean(table) | (table["attack"] == self.attack))
        if self.design in (Design.ATTACK, Design.NEITHER):
            chosen &= table["attack"] != self.attack
        if self.design in (Design.RECIPE, Design.NEITHER):
            chosen &= table["recipe"] != self.recipe
        return chosen.to_numpy()

    def asked_about(self, table: pd.DataFrame) -> np.ndarray:
        """(B,) those of the fold that are held out, of the recipe and of the attack, with the clean ones."""
        chosen = table["fold"] == self.fold
        if self.recipe:
            chosen &= table["recipe"] == self.recipe
        if self.attack:
            chosen &= clean(table) | (table["attack"] == self.attack)
        return chosen.to_numpy()


def clean(table: pd.DataFrame) -> pd.Series:
    return table[TARGET] == 0


def folded(table: pd.DataFrame, folds: int) -> pd.DataFrame:
    """With a column fold, in which every kind of LoRA is spread evenly."""
    rng = np.random.default_rng(0)
    fold = pd.Series(0, table.index)
    for _, part in table.groupby(["recipe", "attack", TARGET]):
        fold[part.index] = (rng.permutation(len(part)) + rng.integers(folds)) % folds
    return table.assign(fold=fold)


def cells_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Recipe and attack, of which enough attacks took."""
    took = table[table["took"] == 1]
    counts = Counter(zip(took["recipe"].map(str), took["attack"].map(str), strict=True))
    return [cell for cell, count in counts.items() if count >= FEWEST]


def cases(table: pd.DataFrame, cells: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every detector that judges the cells, once."""
    folds = sorted(set(table["fold"]))
    every = (Case.of(design, fold, *cell) for design in Design for cell in cells for fold in folds)
    yield from dict.fromkeys(every)


class Detectors:
    """What LoRAs are told apart by: each gives a score, positive where it says a backdoor."""

    def __init__(self, zoo: Source, table: pd.DataFrame, config: TrainingConfig):
        self.table, self.config = table, config
        ids = list(table.index)
        entries = [zoo.by_id[id] for id in ids]
        self.factors = Factors(zoo, shared_spec(entries), ids)
        batch = self.factors.batch(ids)
        self.kernels = kernels(batch)
        spectral = make_model("spectral", self.factors.spec, 1, find_model("spectral").configure(normalize=False))
        spectral.prepare(self.factors.batch(ids[:2]), torch.Generator().manual_seed(0))  # standardised again below
        self.features: Mapping[str, np.ndarray] = {
            "spectral": spectral.described(batch).numpy(),
            "norms only": norm_features(batch),
        }

    def scores(self, name: str, case: Case) -> np.ndarray:
        """Of those asked about, in the order of the table."""
        rng = np.random.default_rng((case.fold, 1))
        known = rng.permutation(np.flatnonzero(case.trained_on(self.table)))
        asked = np.flatnonzero(case.asked_about(self.table))
        y = self.table[TARGET].to_numpy(float)
        if name in self.features:
            return _logistic(self.features[name], known, asked, y)
        validation, train = known[::VALIDATION], np.delete(known, np.s_[::VALIDATION])
        if name == "product kernel":
            return kernel_ridge(self.kernels, train, validation, asked, y=y[:, None])[0][:, 0] - 0.5
        ids = self.table.index.to_numpy()
        parts = {"train": train, "validation": validation, "test": asked}
        split = {part: ids[index].tolist() for part, index in parts.items()}
        fit = Fit.of(self.factors, split, Binary((TARGET,)), self.table, config=self.config)
        fit.run()
        return fit.outputs(split["test"])[:, 0].numpy()


def _logistic(X: np.ndarray, known: np.ndarray, asked: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Log-odds by logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(X[known], y[known])
    values: np.ndarray = fitted.decision_function(X[asked])
    return values


def auc(
    table: pd.DataFrame,
    scored: Mapping[Case, Sequence[float]],
    design: Design,
    cells: Sequence[tuple[str, str]],
    *,
    decoys: bool = False,
) -> Resampled:
    """The probability that a backdoored LoRA scores higher than a clean one of the same recipe, both held out in the
    same fold, averaged over cells (recipe, attack). decoys: only against clean ones with that attack's triggers.
    """
    return mean_over([_auc_of(table, scored, design, cell, decoys=decoys) for cell in cells])


def _auc_of(
    table: pd.DataFrame, scored: Mapping[Case, Sequence[float]], design: Design, cell: tuple[str, str], *, decoys: bool
) -> Resampled:
    values, positive, negative = _judged(table, scored, design, cell, decoys=decoys)
    return separation(values, positive, negative, table["fold"].to_numpy())


def _judged(
    table: pd.DataFrame,
    scored: Mapping[Case, Sequence[float]],
    design: Design,
    cell: tuple[str, str],
    *,
    decoys: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (B,) of a cell's LoRAs, and where its backdoored and its clean ones stand."""
    recipe, attack = cell
    values = np.full(len(table), np.nan)
    for fold in sorted(set(table["fold"])):
        case = Case.of(design, fold, recipe, attack)
        values[case.asked_about(table)] = scored[case]
    own, same = table["recipe"] == recipe, table["attack"] == attack
    positive = np.flatnonzero(own & same & (table["took"] == 1))
    negative = np.flatnonzero(own & clean(table) & (same if decoys else True))
    return values, positive, negative


def balanced_accuracy(
    table: pd.DataFrame, scored: Mapping[Case, Sequence[float]], design: Design, cells: Sequence[tuple[str, str]]
) -> Resampled:
    """The mean of the share of backdoored LoRAs with a positive score and that of clean ones of the same recipe
    without, averaged over cells: whether the detector's own threshold holds there.
    """

    def of(cell: tuple[str, str]) -> Resampled:
        values, positive, negative = _judged(table, scored, design, cell)

        def share(counts: np.ndarray, index: np.ndarray, right: np.ndarray) -> np.ndarray:
            drawn = counts[:, index].sum(1)
            return np.where(drawn > 0, counts[:, index] @ right / np.maximum(drawn, 1), 0.5)

        def value(counts: np.ndarray) -> np.ndarray:
            found, passed = values[positive] > 0, values[negative] <= 0
            return (share(counts, positive, found) + share(counts, negative, passed)) / 2

        return value

    return mean_over([of(cell) for cell in cells])


def described(table: pd.DataFrame) -> dict[str, list[Any]]:
    """A zoo's table as it stands in a line of fits."""
    return {"lora": list(table.index)} | {str(column): table[column].tolist() for column in table.columns}
