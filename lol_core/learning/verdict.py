"""Whether a model knows more than its controls: by which metric, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lol_core.learning.metrics import METRIC_TITLES

CONTROL_TITLES = {
    "constant": "a constant",
    "structure only": "file metadata",
    "norms only": "the norms of the updates",
    "shuffled labels": "the same model on shuffled labels",
}
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """By how much a model's score exceeds a control's on the same test LoRAs, with its 95 % interval; NaN bounds where
    none was measured.
    """

    value: float
    low: float
    high: float


class Outcome(StrEnum):
    BETTER = "better"
    NOT_CLEAR = "not clear"
    WORSE = "worse"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class Verdict:
    """What the controls say of a score. control: the one that is hardest to beat, by the lower end of the interval;
    empty, with difference None, where there are no controls.
    """

    outcome: Outcome
    metric: str
    control: str = ""
    difference: Difference | None = None

    @property
    def better(self) -> bool:
        return self.outcome is Outcome.BETTER

    @property
    def sentence(self) -> str:
        """In plain words, as they follow "The model is"."""
        metric, control = METRIC_TITLES[self.metric], CONTROL_TITLES.get(self.control, self.control)
        match self.outcome:
            case Outcome.BETTER:
                return f"better than every control in {metric}"
            case Outcome.NOT_CLEAR:
                return f"not clearly better than {control} in {metric}"
            case Outcome.WORSE:
                return f"worse than {control} in {metric}"
            case Outcome.NOT_COMPARED:
                return "not compared: it has no controls"

    @property
    def evidence(self) -> str:
        """The difference that decides, and how sure it is; empty where nothing was compared."""
        if self.difference is None:
            return ""
        gap, control = self.difference, CONTROL_TITLES.get(self.control, self.control)
        sure = (
            "no interval: too few LoRAs, or none was measured"
            if np.isnan(gap.low)
            else f"95 % {gap.low:+.3f} to {gap.high:+.3f}"
        )
        title = METRIC_TITLES[self.metric]
        return f"{title[0].upper()}{title[1:]} less that of {control}: {gap.value:+.3f} ({sure})"


def judge(metric: str, differences: Mapping[str, Difference]) -> Verdict:
    """The verdict on a metric that is better when higher. differences: control → difference. Better only when the
    interval of every difference is above zero, worse when that of one is below it.
    """
    if not differences:
        return Verdict(Outcome.NOT_COMPARED, metric)

    def by(name: str) -> tuple[float, float]:
        gap = differences[name]
        return (gap.low if np.isfinite(gap.low) else -np.inf, gap.value if np.isfinite(gap.value) else -np.inf)

    beaten_by = [name for name, gap in differences.items() if gap.high < 0]
    hardest = min(beaten_by or differences, key=by)
    gap = differences[hardest]
    outcome = Outcome.WORSE if beaten_by else Outcome.BETTER if gap.low > 0 else Outcome.NOT_CLEAR
    return Verdict(outcome, metric, hardest, gap)


def over_seeds(gaps: Sequence[float], test_share: float, among: int = 1) -> Difference:
    """The mean of differences at several seeds and its 95 % interval. test_share: test LoRAs for each training LoRA;
    among: how many differences this one was picked from, so that all their intervals hold together (Bonferroni).

    The splits of several seeds overlap, so that their scores are not independent: the variance is that of Nadeau and
    Bengio (2003), (1/J + n_test/n_train) s², with Student's t of J − 1 degrees of freedom.
    """
    from scipy.stats import t as student  # takes a second to import

    values = np.asarray(gaps, np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2 or not np.isfinite(values).all():
        return Difference(mean, np.nan, np.nan)
    half = float(
        student.ppf(1 - (1 - LEVEL) / 2 / among, count - 1) * values.std(ddof=1) * np.sqrt(1 / count + test_share)
    )
    return Difference(mean, mean - half, mean + half)
