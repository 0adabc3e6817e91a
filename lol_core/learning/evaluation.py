"""How good predictions are, and how good they would be without the weights: metrics, intervals and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lol_core.collections.entry import Entry
from lol_core.core.batch import Batch
from lol_core.core.header import ByIdentity, ModuleHeader, distinct_headers
from lol_core.core.naming import common_names
from lol_core.learning.bootstrap import difference, interval
from lol_core.learning.metrics import METRIC_TITLES, Scores
from lol_core.learning.models.gram import log_norms
from lol_core.learning.tasks import Task
from lol_core.learning.verdict import Difference

__all__ = [
    "METRIC_TITLES",
    "bootstrap_interval",
    "calibration",
    "control_predictions",
    "control_scores",
    "error_slices",
    "norm_features",
    "paired_differences",
    "score",
    "structure_features",
]

CONSTANT = "constant"
"""The control that sees nothing."""


def score(task: Task, truth: pd.DataFrame, predicted: np.ndarray) -> Scores:
    """Metrics of predictions as `Task.decode` gives them."""
    return task.score(truth, predicted)


def bootstrap_interval(
    task: Task, truth: pd.DataFrame, predicted: np.ndarray, *, seed: int, draws: int = 500, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the headline metric over resampled test LoRAs."""
    value = task.resampled(task.headline, truth, predicted)
    return interval(value, len(truth), seed=seed, draws=draws, level=level)


def paired_differences(
    task: Task, truth: pd.DataFrame, predicted: np.ndarray, controls: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, dict[str, Difference]]:
    """Control → metric of `Task.judged` → by how much predictions exceed the control's, by a paired bootstrap over the
    LoRAs of `truth`.
    """
    gaps: dict[str, dict[str, Difference]] = {name: {} for name in controls}
    for metric in task.judged:
        ours = task.resampled(metric, truth, predicted)
        for name, values in controls.items():
            theirs = task.resampled(metric, truth, values)
            gaps[name][metric] = difference(ours, theirs, len(truth), seed=seed)
    return gaps


def calibration(predicted: pd.Series, true: pd.Series, bins: int = 10) -> pd.DataFrame:
    """Predictions in up to `bins` bins of equal number: mean prediction, mean truth, standard error of the latter,
    and count, a row for each bin.

    For yes/no labels the truth is 0 or 1, so its mean is the observed frequency.
    """
    known = pd.DataFrame({"predicted": predicted, "true": true.astype(float)}).dropna()
    parts = pd.qcut(known["predicted"].rank(method="first"), min(bins, max(1, len(known) // 5)), labels=False)
    groups = known.groupby(parts)
    means = groups.agg(predicted=("predicted", "mean"), true=("true", "mean"), LoRAs=("true", "size"))
    means["standard error"] = groups["true"].std(ddof=1) / np.sqrt(means["LoRAs"])
    return means.reset_index(drop=True)


def error_slices(errors: pd.Series, labels: pd.DataFrame, smallest: int = 5) -> pd.DataFrame:
    """Where a model is worst: parts of the LoRAs with one value of one column (numbers: a quarter of their range of
    ranks), the largest mean absolute error first.

    Columns: column, value, LoRAs, mean error, ratio (to the mean of all), p (rank-sum test of the part against the
    rest, not corrected for their number). Parts of fewer than `smallest` LoRAs, and the whole, are left out.
    """
    from scipy.stats import mannwhitneyu

    errors = errors.abs().dropna()
    rows = []
    for column in labels.columns:
        values = labels[column].reindex(errors.index)
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 6:
            values = pd.qcut(values.astype(float), 4, duplicates="drop").map(
                lambda part: f"{part.left:.4g} to {part.right:.4g}"
            )
        elif values.nunique() > max(2, len(values) / 4):
            continue
        for value, inside in errors.groupby(values.astype(object), observed=True):
            outside = errors.drop(inside.index)
            if len(inside) >= smallest and len(outside):
                p = float(mannwhitneyu(inside, outside).pvalue)
                rows.append(
                    (column, str(value), len(inside), inside.mean(), inside.mean() / max(errors.mean(), 1e-30), p)
                )
    table = pd.DataFrame(rows, columns=["column", "value", "LoRAs", "mean error", "ratio", "p"])
    return table.sort_values("ratio", ascending=False, ignore_index=True)


def structure_features(entries: Sequence[Entry]) -> np.ndarray:
    """What a file shows without its weights: size, parameters, and per module, by its common name, its presence, rank
    and alpha. (B, k).
    """
    of = {ByIdentity(headers): common_names(module.name for module in headers) for headers in distinct_headers(entries)}
    called: dict[str, str] = {}
    for key, names in of.items():
        called = dict(zip(names, (module.name for module in key.of), strict=True)) | called
    place = {name: 3 * i for i, name in enumerate(sorted(called, key=called.__getitem__))}
    features = np.zeros((len(entries), 2 + 3 * len(place)))
    rows: dict[tuple[ByIdentity[Sequence[ModuleHeader]], object], np.ndarray] = {}
    for b, entry in enumerate(entries):
        features[b, :2] = entry.size, entry.parameters
        form = ByIdentity[Sequence[ModuleHeader]](entry.headers), ByIdentity(entry.alphas)
        if form not in rows:
            rows[form] = np.zeros(3 * len(place))
            for name, module, alpha in zip(of[form[0]], entry.headers, entry.alphas, strict=True):
                rows[form][place[name] : place[name] + 3] = 1, module.rank, -1 if alpha is None else alpha
        features[b, 2:] = rows[form]
    return features


def norm_features(batch: Batch) -> np.ndarray:
    """`log_norms`."""
    return log_norms(batch).cpu().numpy()


def control_predictions(
    task: Task,
    labels: pd.DataFrame,
    known: Sequence[str],
    test: Sequence[str],
    *,
    features: dict[str, pd.DataFrame],
    seed: int,
) -> dict[str, np.ndarray]:
    """What a constant, and a random forest on each table of `features`, fitted to the `known` LoRAs, predict of the
    `test` LoRAs, as `Task.decode` does.

    The tables are indexed by LoRA.
    """
    tables = {CONSTANT: pd.DataFrame(0.0, index=labels.index, columns=["0"]), **features}
    known, test = list(known), list(test)
    return {
        name: task.tabular(
            name == CONSTANT, table.loc[known].to_numpy(), labels.loc[known], table.loc[test].to_numpy(), seed=seed
        )
        for name, table in tables.items()
    }


def control_scores(
    task: Task, labels: pd.DataFrame, split: dict[str, list[str]], features: dict[str, pd.DataFrame], *, seed: int
) -> dict[str, Scores]:
    """Test scores of what must be beaten (see `control_predictions`), fitted on training and validation LoRAs
    together.
    """
    predicted = control_predictions(
        task, labels, split["train"] + split["validation"], split["test"], features=features, seed=seed
    )
    return {name: task.score(labels.loc[split["test"]], values) for name, values in predicted.items()}
