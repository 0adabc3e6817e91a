"""Tables of what trained and cross-validated models reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lol_core.collections.names import counted
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.leaderboard import verdict
from lol_core.learning.metrics import METRIC_TITLES
from lol_core.learning.training import Plan


def results_table(models: Sequence[Checkpoint]) -> pd.DataFrame:
    """A row for each model with its test scores, its interval, its verdict and its controls."""
    rows = []
    for model in models:
        name, test, task = model.task.headline, model.metrics["test"], model.task
        row: dict[str, Any] = {"model": model.model.title, "seed": model.config.seed}
        row |= {"targets": ", ".join(task.targets), "metric": METRIC_TITLES[name], "test": test[name]}
        row["verdict"] = verdict(model).sentence
        row["95 % interval"] = f"{model.interval[0]:.3f} – {model.interval[1]:.3f}" if model.interval else ""
        row["training"] = model.metrics["train"][name]
        row |= {f"control: {control}": values[name] for control, values in model.controls.items()}
        row |= {METRIC_TITLES[metric]: test[metric] for metric in task.further}
        row |= {"epochs": len(model.history), "parameters": model.model.n_parameters, "finished": model.finished}
        rows.append(row)
    return pd.DataFrame(rows)


def over_folds(mean: float, std: float) -> str:
    """A mean and a standard deviation over folds, in digits that tell small ones from zero; "not known" where none."""
    if not np.isfinite(mean):
        return "not known"
    small = max(abs(mean), std) < 0.01
    return f"{mean:.3g} ± {std:.2g}" if small else f"{mean:.3f} ± {std:.3f}"


def validation_table(title: str, scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> pd.DataFrame:
    """A row for the model and for each of its controls, mean ± standard deviation over the folds of each metric.
    scores: see `Folds.scores`.
    """
    return pd.DataFrame(
        {
            title if name == "model" else f"control: {name}": {
                METRIC_TITLES[metric]: over_folds(mean, std) for metric, (mean, std) in values.items()
            }
            for name, values in scores.items()
        }
    ).T


def parts_table(model: Checkpoint) -> pd.DataFrame:
    """The scores of a model on each part of its split, and those of its controls on the test part."""
    rows = dict(model.metrics) | {f"test, control: {name}": values for name, values in model.controls.items()}
    names = list(model.metrics["test"])
    return pd.DataFrame({METRIC_TITLES[name]: {part: row.get(name) for part, row in rows.items()} for name in names})


def describe(planned: Plan) -> list[str]:
    """What would be trained, and what is left out, in sentences."""
    parts = ", ".join(f"{len(ids)} {part}" for part, ids in planned.split.items())
    modules = f"{len(planned.spec.modules)} modules, largest rank {planned.spec.rank}"
    lines = [f"{planned.task.kind}: {parts} LoRAs; {modules}."]
    if count := len(planned.left_out_modules):
        few = ", ".join(planned.left_out_modules[:3])
        lines.append(f"{count} modules are left out because not every LoRA has them: {few} …")
    if planned.left_out:
        id, reason = next(iter(planned.left_out.items()))
        lines.append(f"{counted(len(planned.left_out), 'LoRA')} left out, such as {id}: {reason}")
    return lines
