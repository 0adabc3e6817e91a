"""Trained models beside each other: their scores over seeds, what their controls say of them, and where they
disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.evaluation import HEADLINE, METRIC_TITLES

CONTROL_TITLES = {
    "constant": "a constant",
    "structure only": "file metadata",
    "norms only": "the norms of the updates",
    "shuffled labels": "the same model on shuffled labels",
}


def best_control(checkpoint: Checkpoint) -> tuple[str, float]:
    """The control with the best test score in the headline metric: its name and score; ("", NaN) without controls."""
    name = HEADLINE[checkpoint.task.kind]
    scores = {
        control: values[name]
        for control, values in checkpoint.controls.items()
        if np.isfinite(values.get(name, np.nan))
    }
    return max(scores.items(), key=lambda item: item[1]) if scores else ("", float("nan"))


def verdict(checkpoint: Checkpoint) -> str:
    """What the controls say of a test score, in plain words: better than every control, not clearly so (the
    interval reaches one), or no better.
    """
    control, other = best_control(checkpoint)
    score = checkpoint.metrics["test"][HEADLINE[checkpoint.task.kind]]
    if not control:
        return "not compared: it has no controls"
    against = CONTROL_TITLES.get(control, control)
    if not np.isfinite(score) or score <= other:
        return f"no better than {against}"
    if checkpoint.interval is None or checkpoint.interval[0] <= other:
        return f"not clearly better than {against}"
    return "better than every control"


def leaderboard(checkpoints: Sequence[Checkpoint]) -> pd.DataFrame:
    """A row for each model and targets, its seeds together: mean and standard deviation of the headline test
    metric, and its best control over the same seeds.

    Columns: predicts, model, seeds, metric, test, ± std (NaN for one seed), verdict, best control, its score,
    margin, parameters; the best first within the same targets. Over several seeds a margin within two standard
    deviations of its mean is not clear.
    """
    groups: dict[tuple[tuple[str, ...], str, str], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault((checkpoint.task.targets, checkpoint.task.kind, checkpoint.model.title), []).append(
            checkpoint
        )
    rows = []
    for (targets, kind, title), members in groups.items():
        name = HEADLINE[kind]
        scores = np.array([member.metrics["test"][name] for member in members])
        controls = pd.DataFrame(
            [{c: values.get(name, np.nan) for c, values in member.controls.items()} for member in members]
        )
        means = controls.mean()
        control = str(means.idxmax()) if means.notna().any() else ""
        margins = scores - controls[control].to_numpy() if control else np.full(len(scores), np.nan)
        rows.append(
            {
                "predicts": ", ".join(targets),
                "model": title,
                "seeds": len({member.config.seed for member in members}),
                "metric": METRIC_TITLES[name],
                "test": scores.mean(),
                "± std": scores.std(ddof=1) if len(scores) > 1 else np.nan,
                "verdict": verdict(members[0]) if len(members) == 1 else _over_seeds(margins, control),
                "best control": CONTROL_TITLES.get(control, control),
                "control score": means[control] if control else np.nan,
                "margin": margins.mean(),
                "parameters": members[0].model.n_parameters,
            }
        )
    columns = [
        "predicts",
        "model",
        "seeds",
        "metric",
        "test",
        "± std",
        "verdict",
        "best control",
        "control score",
        "margin",
        "parameters",
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["predicts", "test"], ascending=[True, False], ignore_index=True
    )


def _over_seeds(margins: np.ndarray, control: str) -> str:
    against = CONTROL_TITLES.get(control, control)
    if not control:
        return "not compared: it has no controls"
    if not np.isfinite(margins).all() or margins.mean() <= 0:
        return f"no better than {against}"
    error = margins.std(ddof=1) / len(margins) ** 0.5
    return "better than every control" if margins.mean() > 2 * error else f"not clearly better than {against}"


def disagreement(predictions: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Where models of one target disagree. predictions: model → value of each LoRA. A row for each LoRA that two or
    more models read: a column for each model, then "spread", the standard deviation over the models; the largest
    first.
    """
    table = pd.DataFrame(dict(predictions))
    table["spread"] = table.std(axis=1, ddof=0).where(table.notna().sum(axis=1) > 1)
    return table.dropna(subset="spread").sort_values("spread", ascending=False)
