"""Trained models beside each other: their scores over seeds, what their controls say of them, and where they
disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.metrics import METRIC_TITLES
from lol_core.learning.tasks import Task
from lol_core.learning.verdict import CONTROL_TITLES, Difference, Verdict, judge, over_seeds

NO_SETTING = ("model", "model_config", "seed")


def differences(checkpoint: Checkpoint, metric: str) -> dict[str, Difference]:
    """Control → by how much the model exceeds it on its test part. Of a checkpoint written before differences were
    measured, without an interval.
    """
    measured = {name: gaps[metric] for name, gaps in checkpoint.differences.items() if metric in gaps}
    score = checkpoint.metrics["test"].get(metric, np.nan)
    plain = {
        name: Difference(score - values[metric], np.nan, np.nan)
        for name, values in checkpoint.controls.items()
        if np.isfinite(values.get(metric, np.nan))
    }
    return plain | measured


def verdict(checkpoint: Checkpoint, metric: str | None = None) -> Verdict:
    """What the controls say of a test score; of the headline metric when None."""
    metric = metric or checkpoint.task.headline
    return judge(metric, differences(checkpoint, metric))


def verdicts(checkpoint: Checkpoint) -> tuple[Verdict, ...]:
    """A verdict for each metric that models of this task are judged by, the headline first."""
    return tuple(verdict(checkpoint, metric) for metric in checkpoint.task.judged)


def verdict_over_seeds(checkpoints: Sequence[Checkpoint], metric: str) -> Verdict:
    """The verdict on the mean over seeds, by controls that all of them have; see `over_seeds`."""
    each = [differences(checkpoint, metric) for checkpoint in checkpoints]
    share = float(np.mean([len(c.split["test"]) / len(c.split["train"]) for c in checkpoints]))
    common = [name for name in each[0] if all(name in gaps for gaps in each)]
    return judge(metric, {name: over_seeds([gaps[name].value for gaps in each], share) for name in common})


def leaderboard(checkpoints: Sequence[Checkpoint]) -> pd.DataFrame:
    """A row for each model, targets and setting, its seeds together (of one trained twice the newest): mean and
    standard deviation of the headline test metric, and the control that is hardest to beat over the same seeds.

    Columns: predicts, model, setting (what tells it from the model's other rows, None where it has no others), seeds,
    metric, test, ± std (NaN for one seed), verdict, best control, its score, margin and its 95 % interval, parameters;
    the best first within the same targets.
    """
    groups: dict[tuple[tuple[str, ...], type[Task], str], dict[str, dict[int, Checkpoint]]] = {}
    for checkpoint in sorted(checkpoints, key=lambda known: known.created):
        of_model = groups.setdefault((checkpoint.task.targets, type(checkpoint.task), checkpoint.model.title), {})
        of_model.setdefault(json.dumps(_setting(checkpoint)), {})[checkpoint.config.seed] = checkpoint
    rows: list[dict[str, object]] = []
    for of_model in groups.values():
        settings = [[*by_seed.values()] for by_seed in of_model.values()]
        rows += map(_row, settings, _apart([_setting(members[0]) for members in settings]))
    columns = [
        "predicts",
        "model",
        "setting",
        "seeds",
        "metric",
        "test",
        "± std",
        "verdict",
        "best control",
        "control score",
        "margin",
        "margin, 95 %",
        "parameters",
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["predicts", "test"], ascending=[True, False], ignore_index=True
    )


def _row(members: Sequence[Checkpoint], setting: str | None) -> dict[str, object]:
    """Of trainings of one setting, a seed each."""
    first, name = members[0], members[0].task.headline
    scores = np.array([member.metrics["test"][name] for member in members])
    judged = verdict(first) if len(members) == 1 else verdict_over_seeds(members, name)
    control = [member.controls[judged.control].get(name, np.nan) for member in members] if judged.control else []
    return {
        "predicts": ", ".join(first.task.targets),
        "model": first.model.title,
        "setting": setting,
        "seeds": len(members),
        "metric": METRIC_TITLES[name],
        "test": scores.mean(),
        "± std": scores.std(ddof=1) if len(scores) > 1 else np.nan,
        "verdict": judged.sentence,
        "best control": CONTROL_TITLES.get(judged.control, judged.control),
        "control score": np.mean(control) if control else np.nan,
        "margin": judged.difference.value if judged.difference else np.nan,
        "margin, 95 %": interval_of(judged.difference),
        "parameters": first.model.n_parameters,
    }


def _setting(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a training was asked for, its seed aside."""
    config = checkpoint.config.to_dict()
    return {name: value for name, value in (config | config["model_config"]).items() if name not in NO_SETTING}


def _apart(settings: Sequence[dict[str, Any]]) -> list[str | None]:
    """In words what tells each setting from the others; None where there is nothing to tell apart."""
    names = {name: None for each in settings for name in each if any(o.get(name) != each[name] for o in settings)}
    return [", ".join(f"{name.replace('_', ' ')} {each.get(name)}" for name in names) or None for each in settings]


def interval_of(gap: Difference | None) -> str:
    return "" if gap is None or np.isnan(gap.low) else f"{gap.low:+.3f} to {gap.high:+.3f}"


def disagreement(predictions: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Where models of one target disagree. predictions: model → value of each LoRA. A row for each LoRA that two or
    more models read: a column for each model, then "spread", the standard deviation over the models; the largest
    first.
    """
    table = pd.DataFrame(dict(predictions))
    table["spread"] = table.std(axis=1, ddof=0).where(table.notna().sum(axis=1) > 1)
    return table.dropna(subset="spread").sort_values("spread", ascending=False)
