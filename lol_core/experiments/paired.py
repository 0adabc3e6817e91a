"""Differences of ranking over the LoRAs of a folded question, by a paired bootstrap over them."""

from __future__ import annotations

import numpy as np

from lol_core.experiments.question import fold_of
from lol_core.experiments.trials import Trials
from lol_core.learning.bootstrap import Resampled, concordance, difference, mean_over
from lol_core.learning.verdict import Difference


def ranking(trials: Trials, name: str) -> Resampled:
    """Kendall's τ of a model or control within each fold, averaged over all folds, as a function of how often each
    LoRA was drawn. Raises KeyError when its predictions were not kept.
    """
    ids = trials.labelled
    place = {id: i for i, id in enumerate(ids)}
    truth = trials.zoo.labels.loc[ids, trials.question.targets[0]].to_numpy(np.float64)

    def of_fold(line: dict[str, object]) -> Resampled:
        held_out = np.array([place[id] for id in fold_of(ids, int(str(line["seed"])))["test"]])
        own = concordance(truth[held_out], np.asarray(line["predicted"], np.float64))
        return lambda counts: own(counts[:, held_out])

    return mean_over([of_fold(line) for line in trials.chosen() if line["model"] == name])


def paired(trials: Trials, one: str, other: str, draws: int = 1000) -> Difference:
    """How much better one ranks than the other. The LoRAs are drawn anew and the models are not trained anew, so this
    speaks of other LoRAs to be judged, not of others to learn from. NaN where one diverged at a split.
    """
    if any(line["model"] in (one, other) and "predicted" not in line for line in trials.chosen()):
        return Difference(np.nan, np.nan, np.nan)
    count = len(trials.labelled)
    return difference(ranking(trials, one), ranking(trials, other), count, seed=0, draws=draws)
