"""How sure a score or a difference of scores is: percentile intervals over resampled LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lol_core.learning.verdict import LEVEL, Difference

LARGEST_PAIRED = 2000
"""LoRAs up to which all their pairs are kept as a matrix."""
FEWEST = 6
"""LoRAs from which there is an interval: to be ahead on every one of five comes by chance in one of 16 cases, both
sides counted, and not in one of 20.
"""

Resampled = Callable[[np.ndarray], np.ndarray]
"""How often each LoRA was drawn, (draws, B), → a score for each draw (draws,)."""


def interval(score: Resampled, count: int, *, seed: int, draws: int, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of a score over resamples of `count` LoRAs; NaN for fewer than FEWEST."""
    from scipy.stats import bootstrap  # takes a second to import

    if count < FEWEST:
        return float("nan"), float("nan")

    def statistic(index: np.ndarray, axis: int) -> np.ndarray:
        rows = index.reshape(-1, count)  # one draw in each
        cells = rows + count * np.arange(len(rows))[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows.size).reshape(rows.shape)
        return score(counts.astype(np.float64)).reshape(index.shape[:-1])

    limits = bootstrap(
        (np.arange(count),),
        statistic,
        vectorized=True,
        method="percentile",
        n_resamples=draws,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(limits.low), float(limits.high)


def difference(ours: Resampled, theirs: Resampled, count: int, *, seed: int, draws: int = 1000) -> Difference:
    """One score less another with its interval, both over the same resamples (a paired bootstrap)."""

    def gap(counts: np.ndarray) -> np.ndarray:
        return ours(counts) - theirs(counts)

    return Difference(float(gap(np.ones((1, count)))[0]), *interval(gap, count, seed=seed, draws=draws))


def mean_over(parts: Sequence[Resampled]) -> Resampled:
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def over_trainings(trainings: Sequence[Resampled], *, seed: int) -> Resampled:
    """The mean over trainings that are drawn anew, as the LoRAs are: the pigeonhole bootstrap (Owen, 2007), which is
    of other LoRAs and of other trainings at once.
    """
    rng, count = np.random.default_rng(seed), len(trainings)

    def score(counts: np.ndarray) -> np.ndarray:
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=len(counts))
        values = np.stack([training(counts) for training in trainings], 1)
        return (drawn * values).sum(1) / count

    return score


def mean_of(correct: np.ndarray) -> Resampled:
    """Accuracy. correct: (B, targets)."""
    share = correct.mean(1)
    return lambda counts: counts @ share / counts.sum(1)


def explained(y: np.ndarray, predicted: np.ndarray) -> Resampled:
    """R² of each target, averaged; 0 where the drawn are all equal. (B, targets) each."""
    y, error = y - y.mean(0), np.square(y - predicted)

    def score(counts: np.ndarray) -> np.ndarray:
        spread = counts @ np.square(y) - np.square(counts @ y) / counts.sum(1, keepdims=True)
        there = spread > 1e-12 * np.square(y).sum(0)
        return np.where(there, 1 - counts @ error / np.where(there, spread, 1), 0.0).mean(1)

    return score


def concordance(y: np.ndarray, predicted: np.ndarray) -> Resampled:
    """Kendall's τ-b of one target; 0 of a constant, which ranks nothing. Of few LoRAs by sums over their pairs, all
    draws at once. (B,) each.
    """
    if len(y) > LARGEST_PAIRED:
        from scipy.stats import kendalltau

        rows = np.arange(len(y))

        def one(count: np.ndarray) -> float:
            index = np.repeat(rows, count.astype(int))
            return float(np.nan_to_num(kendalltau(y[index], predicted[index]).statistic))

        return lambda counts: np.array([one(count) for count in counts])
    by_truth, by_model = (np.sign(values[:, None] - values[None]) for values in (y, predicted))

    def pairs(matrix: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return ((counts @ matrix) * counts).sum(1)

    def score(counts: np.ndarray) -> np.ndarray:
        untied = pairs(np.abs(by_truth), counts) * pairs(np.abs(by_model), counts)
        return np.where(untied > 0, pairs(by_truth * by_model, counts) / np.sqrt(np.where(untied > 0, untied, 1)), 0.0)

    return score


def separation(score: np.ndarray, positive: np.ndarray, negative: np.ndarray, part: np.ndarray) -> Resampled:
    """AUC: how often a positive scores higher than a negative of the same part, half of the equal ones counted; one
    half where no such pair is drawn. score, part: (B,); positive, negative: positions.
    """
    gap = score[positive][:, None] - score[negative][None]
    paired = (part[positive][:, None] == part[negative][None]).astype(np.float64)
    won = np.where(paired > 0, (1 + np.sign(gap)) / 2, 0.0)

    def value(counts: np.ndarray) -> np.ndarray:
        higher, all_ = (((counts[:, positive] @ pairs) * counts[:, negative]).sum(1) for pairs in (won, paired))
        return np.where(all_ > 0, higher / np.where(all_ > 0, all_, 1), 0.5)

    return value
