"""Cross-validation: every LoRA is predicted once by a model that has not seen it, and so are its controls; then both
are compared LoRA by LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from lol_core.collections.source import Source
from lol_core.collections.splits import kept_together
from lol_core.core.progress import SILENT, Reporter, Stopped
from lol_core.errors import TaskError
from lol_core.learning.bootstrap import Resampled, difference, mean_over
from lol_core.learning.config import TrainingConfig
from lol_core.learning.evaluation import control_predictions
from lol_core.learning.factors import Factors, control_features
from lol_core.learning.fit import Fit
from lol_core.learning.metrics import Scores
from lol_core.learning.plan import plan
from lol_core.learning.tasks import Task
from lol_core.learning.verdict import Difference


@dataclass(frozen=True)
class Folds:
    """Out-of-fold predictions. truth: labels by LoRA; predicted: name ("model", "constant", …) → as `Task.decode` gives
    them, in the order of truth; fold: (N,) the number of the fold in which each LoRA was held out; left_out: LoRA → why
    it took no part; left_out_modules: that not all of them have.
    """

    task: Task
    truth: pd.DataFrame
    predicted: dict[str, np.ndarray]
    fold: np.ndarray
    left_out: dict[str, str] = field(default_factory=dict)
    left_out_modules: tuple[str, ...] = ()

    def scores(self) -> dict[str, dict[str, tuple[float, float]]]:
        """name → metric → mean and standard deviation over the folds."""
        table = {}
        for name, values in self.predicted.items():
            each = pd.DataFrame(
                [self.task.score(self.truth[self.fold == k], values[self.fold == k]) for k in np.unique(self.fold)]
            )
            table[name] = {
                metric: (float(each[metric].mean()), float(each[metric].std(ddof=1))) for metric in each.columns
            }
        return table

    def pooled(self) -> dict[str, Scores]:
        """name → metrics over all LoRAs at once."""
        return {name: self.task.score(self.truth, values) for name, values in self.predicted.items()}

    def difference(self, other: str, draws: int = 1000, seed: int = 0) -> Difference:
        """How much better the model ranks (Kendall τ; accuracy for the other tasks) than a control: within each fold,
        since those of two folds come from two models; the mean over the folds, by a paired bootstrap over the LoRAs.
        """
        ours, theirs = (mean_over([self._within(name, k) for k in np.unique(self.fold)]) for name in ("model", other))
        return difference(ours, theirs, len(self.truth), seed=seed, draws=draws)

    def _within(self, name: str, fold: int) -> Resampled:
        inside = self.fold == fold
        score = self.task.resampled(self.task.ranked, self.truth[inside], self.predicted[name][inside])
        return lambda counts: score(counts[:, inside])


def crossvalidate(
    zoo: Source,
    targets: Sequence[str],
    config: TrainingConfig,
    folds: int = 5,
    *,
    reporter: Reporter = SILENT,
) -> Folds:
    """Fit the model of `config` once for each fold, and the controls beside it. Of the LoRAs not held out, a part of
    the size that `config.fractions` gives validation beside training chooses the epoch; the controls are fitted to all
    of them. LoRAs of one group (`config.group_column`) and copies of one are in one fold.

    Raises TaskError or ModelError as `plan` does, TaskError for fewer than two folds, and Stopped.
    """
    whole = plan(zoo, targets, replace(config, split_column=None))  # folds are drawn
    if folds < 2:
        raise TaskError(f"Cross-validation needs at least two folds; found {folds}.")
    reading, dtype = reporter.part(0.0, 0.1), config.storage.dtype
    factors = Factors(zoo, whole.spec, whole.ids, reporter=reading, dtype=dtype)
    from sklearn.model_selection import GroupKFold, KFold  # takes a second to import

    ids = [id for id in whole.ids if id in factors.place]
    groups = kept_together(zoo, ids, config.group_column)
    kinds = KFold if groups is None else GroupKFold
    labels, features = zoo.labels.loc[ids], control_features(zoo, factors, ids)
    fold = np.zeros(len(ids), int)
    predicted: dict[str, np.ndarray] = {}
    try:
        parts = list(kinds(folds, shuffle=True, random_state=config.seed).split(ids, groups=groups))
    except ValueError as error:
        raise TaskError(f"{len(ids)} LoRAs cannot be divided into {folds} folds: {error}") from error
    for k, (known, held_out) in enumerate(parts):
        order = np.random.default_rng((config.seed, k)).permutation(known)
        share = config.fractions[1] / (config.fractions[0] + config.fractions[1])
        cut = max(1, round(share * len(order)))
        split = {
            name: [ids[i] for i in index]
            for name, index in (("train", order[cut:]), ("validation", order[:cut]), ("test", held_out))
        }
        fit = Fit.of(factors, split, whole.task, labels, config=replace(config, seed=config.seed + k))
        inner = reporter.part(0.1 + 0.9 * k / folds, 0.1 + 0.9 * (k + 1) / folds, f"Fold {k + 1} of {folds}: ")
        if not fit.run(inner):
            raise Stopped("Stopped before all folds were fitted.")
        decoded = {"model": fit.task.decode(fit.outputs(split["test"]))}
        decoded |= control_predictions(
            fit.task, labels, split["train"] + split["validation"], split["test"], features=features, seed=config.seed
        )
        fold[held_out] = k
        for name, values in decoded.items():
            predicted.setdefault(name, np.zeros((len(ids), values.shape[1])))[held_out] = values
    return Folds(
        whole.task.fitted(labels),
        labels[list(whole.task.targets)],
        predicted,
        fold,
        whole.left_out | factors.left_out,
        whole.left_out_modules,
    )
