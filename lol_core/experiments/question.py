"""What an experiment asks of a zoo, and the folds of a question that is asked of every LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lol_core.experiments.kept import Scores
from lol_core.learning.config import TrainingConfig
from lol_core.learning.tasks import Task

FOLDS = 5
REPEATS = 5


@dataclass(frozen=True)
class Question:
    """What is predicted about which sample zoo. score: what its table reports first, higher being better, by which a
    search chooses. extra: further test scores from the true targets and the predictions as `Task.decode` gives them;
    elsewhere: what the authors' zoos have in place of the targets.

    folded: splits are the folds of five times five-fold cross-validation (seed 5 i + k is fold k of the i-th), and
    every test LoRA's prediction is kept.
    """

    name: str
    zoo: str
    targets: tuple[str, ...]
    kind: type[Task] | None = None
    score: str = "accuracy"
    extra: Callable[[pd.DataFrame, np.ndarray], Scores] | None = None
    folded: bool = False
    elsewhere: tuple[str, ...] = ()

    def asked_with(self, labels: Iterable[str]) -> Question | None:
        """The question with the targets that a zoo has labels for; None where it has not all of either names."""
        for targets in filter(None, (self.targets, self.elsewhere)):
            if set(targets) <= set(labels):
                return replace(self, targets=targets)
        return None


def fold_of(ids: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Fold seed mod 5 of the (seed div 5)-th five-fold cross-validation; of the LoRAs not held out the usual share
    chooses the epoch.
    """
    repeat, k = divmod(seed, FOLDS)
    order = np.random.default_rng((repeat, len(ids))).permutation(len(ids))
    held_out = set(order[k::FOLDS].tolist())
    rest = [i for i in order.tolist() if i not in held_out]
    train, validation, _ = TrainingConfig().fractions
    cut = max(1, round(len(rest) * validation / (train + validation)))
    parts = {"train": rest[cut:], "validation": rest[:cut], "test": held_out}
    return {name: [ids[i] for i in sorted(members)] for name, members in parts.items()}
