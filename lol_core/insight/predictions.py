"""What a model predicts of a collection beside the truth: errors, confusion, calibration, runs, other models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from lol_core.collections.runs import training_runs
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.evaluation import calibration
from lol_core.learning.leaderboard import disagreement, verdict
from lol_core.learning.metrics import METRIC_TITLES
from lol_core.learning.parts import parts_here
from lol_core.learning.tasks import Task, class_name

NOT_KNOWN = "The model keeps nothing of its training LoRAs. Train it again to know whether this is like them."
PARTS = ("test", "validation", "train", "new")
"""Of a split, and what took no part in it, in the order in which a page offers them."""


@dataclass(frozen=True)
class Predictions:
    """One target's predictions. values: of the whole task, as `Task.frame` gives them; table: a row for each LoRA with
    its name, part, true label (NaN where there is none) and prediction; truth: the labels there are of the task's
    targets; marks: see `Answers`.
    """

    task: Task
    target: str
    values: pd.DataFrame
    table: pd.DataFrame
    truth: pd.DataFrame
    marks: pd.DataFrame

    @classmethod
    def of(cls, checkpoint: Checkpoint, source: Source, answers: Answers, target: str) -> Predictions:
        task, values, parts = checkpoint.task, answers.values, parts_here(checkpoint, source)
        truth = source.labels[[name for name in task.targets if name in source.labels]].reindex(values.index)
        true = truth.get(target, np.nan)
        if not task.exclusive:
            true = pd.to_numeric(true, errors="coerce")  # text under that name, elsewhere, is another label
        ids = values.index.tolist()
        columns = {"name": [source.names[id] for id in ids], "part": [parts.get(id, "new") for id in ids]}
        table = pd.DataFrame(columns, index=values.index.rename("lora")).assign(true=true, predicted=values[target])
        return cls(task, target, values, table, truth, answers.marks)

    @property
    def classes(self) -> bool:
        """Whether predictions are classes, not numbers."""
        return self.task.exclusive

    @cached_property
    def parts(self) -> list[str]:
        return [part for part in PARTS if (self.table["part"] == part).any()]

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """The rows whose true label is known."""
        return self.table.dropna(subset=["true"])

    def errors(self, rows: pd.DataFrame) -> pd.Series:
        """predicted − true; for classes 1 where the class is another."""
        if self.classes:
            return (rows["true"].map(class_name) != rows["predicted"]).astype(float).rename("error")
        return (rows["predicted"] - rows["true"].astype(float)).rename("error")

    def confusion(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Counts of true classes, or of no and yes, in rows against the predicted ones in columns."""
        return self.task.confusion(self.target, rows["true"], self.values.loc[rows.index])

    def calibration(self, rows: pd.DataFrame) -> pd.DataFrame:
        """See `evaluation.calibration`; of classes, the probability of the predicted one and whether it is right."""
        if not self.classes:
            return calibration(rows["predicted"], rows["true"])
        return calibration(self.values.loc[rows.index].iloc[:, 1:].max(axis=1), 1 - self.errors(rows))

    @property
    def calibrated(self) -> str:
        """Whose frequency or mean the calibration compares."""
        return "the predicted class" if self.classes else self.target

    @property
    def probabilities(self) -> bool:
        return self.task.probabilities

    def extremes(self, rows: pd.DataFrame, count: int) -> dict[str, list[str]]:
        """ "highest" and "lowest" → the LoRAs with these predictions, of those the model was not trained on."""
        ordered = rows[rows["part"] != "train"].sort_values("predicted", ascending=False)
        return {"highest": ordered.index[:count].tolist(), "lowest": ordered.index[-count:].tolist()}

    @cached_property
    def whole(self) -> pd.DataFrame:
        """Every prediction, each beside its truth where there are labels: "NAME (predicted)", "NAME (true)", and what
        else the task says of it; whether the LoRA is outside what the model knows, where it knows that.
        """
        called = {target: f"{target} (predicted)" for target in self.task.targets}
        table = self.table[["name", "part"]].join(self.values.rename(columns=called))
        for name, true in self.truth.items():
            true = true.map(class_name, na_action="ignore") if self.classes else true
            table.insert(list(table.columns).index(called[str(name)]), f"{name} (true)", true)
        if not self.probabilities and len(self.labelled):
            table["error"] = self.errors(self.table)
        if len(self.marks):
            table.insert(2, "outside", self.marks["outside"].reindex(table.index))
        return table

    @cached_property
    def runs(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Checkpoints of training runs with their predictions, and for each run how many there are and which is
        predicted highest; both empty where there are no runs.
        """
        steps = training_runs(dict(zip(self.values.index, self.table["name"], strict=True))).join(
            self.table[["name", "predicted", "true"]], how="inner"
        )
        best = steps.loc[steps.groupby("run", sort=False)["predicted"].idxmax()].set_index("run")
        best.insert(0, "checkpoints", steps.groupby("run").size())
        return steps, best.drop(columns="true").rename(columns={"name": "highest predicted"})


def rivals(models: Mapping[str, Checkpoint], of: Predictions) -> list[str]:
    """The models that predict the same target in the same way, by title; none of classes."""
    same = [title for title, model in models.items() if type(model.task) is type(of.task)]
    return [title for title in same if of.target in models[title].task.targets and not of.classes]


def apart(predictions: Mapping[str, pd.Series], source: Source, target: str) -> tuple[pd.DataFrame, float]:
    """Where models disagree (see `disagreement`), with names and truth; and the correlation of the first two."""
    table = disagreement(predictions).reindex(columns=[*predictions, "spread"])
    first, second = list(predictions)[:2]
    correlation = float(np.corrcoef(table[first].astype(float), table[second].astype(float))[0, 1])
    truth = source.labels[target].reindex(table.index) if target in source.labels else np.nan
    table.insert(0, "true", truth)
    table.insert(0, "name", [source.names[id] for id in table.index])
    return table, correlation


def opinions(models: Mapping[str, Checkpoint], lora: LoRA) -> pd.DataFrame:
    """What models say of one LoRA: a row for each label, or one with a remark why a model cannot read it. Columns
    model, label, predicted, test score, verdict, remark: whether it is like the training's; all text.
    """
    rows = []
    for title, model in models.items():
        try:
            if problems := model.spec.misfits(lora):
                rows.append({"model": title, "remark": " ".join(problems)})
                continue
            answers = Answers.of_lora(model, lora, "it")
        except LoLError as error:
            rows.append({"model": title, "remark": str(error)})
            continue
        values, remark = answers.values.loc["it"], answers.marks["remark"].get("it", NOT_KNOWN)
        remark = " ".join(filter(None, (remark, *model.doubts(lora))))
        metric = model.task.headline
        value = model.metrics["test"][metric]
        score = f"{METRIC_TITLES[metric]} {'not known' if np.isnan(value) else f'{value:.3f}'}"
        for label in model.task.targets:
            row = {"model": title, "label": label, "predicted": as_text(values[label])}
            rows.append(row | {"test score": score, "verdict": verdict(model).sentence, "remark": remark})
    columns = ["model", "label", "predicted", "test score", "verdict", "remark"]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna("")


def as_text(value: object) -> str:
    """A number to four digits, a class as it is, nothing where there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
