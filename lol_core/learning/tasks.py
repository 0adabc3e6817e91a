"""What is predicted: numbers, yes/no attributes, or one of several classes; and the checks that labels must pass before
any training starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.errors import TaskError

TaskKind = Literal["regression", "binary", "multiclass"]
MAX_CLASSES = 50
MIN_LABELLED = 10
SURE = 0.98
"""What a known label counts as when it is written as a probability."""


@dataclass(frozen=True)
class Task:
    """regression: one or many targets, normalised by the training mean and std; binary: one or many yes/no targets;
    multiclass: one target, `classes`.

    class_weights: per output; for binary the weight of a positive, for multiclass of each class; empty without
    weighting.
    """

    kind: TaskKind
    targets: tuple[str, ...]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        return len(self.classes) if self.kind == "multiclass" else len(self.targets)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)

    def fitted(self, labels: pd.DataFrame, class_weights: bool = False) -> Task:
        """The task with what is taken from the training labels: means and stds, or class weights on request.

        Raises TaskError when the training part holds one value only.
        """
        values = labels[list(self.targets)]
        constant = [target for target in self.targets if values[target].nunique() < 2]
        if constant:
            raise TaskError(
                f"{constant[0]!r} has the same value for every LoRA of the training part, so there is nothing to learn."
                " Choose another target or seed."
            )
        if self.kind == "regression":
            return replace(self, mean=tuple(values.mean().astype(float)), std=tuple(values.std(ddof=0).astype(float)))
        if not class_weights:
            return self
        if self.kind == "binary":
            positive = values.astype(float).mean()
            return replace(self, class_weights=tuple(((1 - positive) / positive).astype(float)))
        counts = values[self.targets[0]].astype(str).value_counts()
        return replace(
            self, class_weights=tuple(len(values) / (len(self.classes) * float(counts.get(c, 1))) for c in self.classes)
        )

    def encode(self, labels: pd.DataFrame) -> Tensor:
        """Labels as the loss takes them: (B, targets) float, or class indices (B,) for multiclass. Regression is
        normalised.
        """
        if self.kind == "multiclass":
            place = {name: i for i, name in enumerate(self.classes)}
            return torch.tensor([place[class_name(value)] for value in labels[self.targets[0]]])
        values = torch.tensor(labels[list(self.targets)].to_numpy(np.float64), dtype=torch.float32)
        if self.kind == "regression":
            return (values - torch.tensor(self.mean)) / torch.tensor(self.std)
        return values

    def answers(self, encoded: Tensor) -> Tensor:
        """Outputs (B, outputs) that `decode` turns into these labels: the numbers themselves, or probabilities of SURE
        and 1 − SURE.
        """
        if self.kind == "regression":
            return encoded
        logit = math.log(SURE / (1 - SURE))
        if self.kind == "binary":
            return logit * (2 * encoded - 1)
        return (logit + math.log(len(self.classes) - 1)) * torch.nn.functional.one_hot(
            encoded, len(self.classes)
        ).float()

    def loss(self, outputs: Tensor, encoded: Tensor) -> Tensor:
        """MSE, binary cross-entropy or cross-entropy, averaged."""
        weights = (
            torch.tensor(self.class_weights, device=outputs.device, dtype=outputs.dtype) if self.class_weights else None
        )
        if self.kind == "regression":
            return torch.nn.functional.mse_loss(outputs, encoded.to(outputs))
        if self.kind == "binary":
            return torch.nn.functional.binary_cross_entropy_with_logits(
                outputs, encoded.to(outputs), pos_weight=weights
            )
        return torch.nn.functional.cross_entropy(outputs, encoded, weight=weights)

    def decode(self, outputs: Tensor) -> np.ndarray:
        """Outputs in the user's terms: values in the targets' units (B, targets), probabilities (B, targets), or class
        probabilities (B, classes).
        """
        outputs = outputs.detach().double().cpu()
        if self.kind == "regression":
            return (
                outputs * torch.tensor(self.std, dtype=torch.float64) + torch.tensor(self.mean, dtype=torch.float64)
            ).numpy()
        return (outputs.sigmoid() if self.kind == "binary" else outputs.softmax(1)).numpy()

    def frame(self, predictions: np.ndarray, ids: Sequence[str]) -> pd.DataFrame:
        """Predictions as a table indexed by LoRA: one column per target (value or probability), or per class and the
        predicted class.
        """
        if self.kind != "multiclass":
            return pd.DataFrame(predictions, index=list(ids), columns=list(self.targets))
        table = pd.DataFrame(predictions, index=list(ids), columns=[f"p({name})" for name in self.classes])
        table.insert(0, self.targets[0], [self.classes[i] for i in predictions.argmax(1)])
        return table


def class_name(value: object) -> str:
    """A class label as text: whole numbers without the decimals that pandas gives a column with gaps."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def guess_kind(values: pd.Series) -> TaskKind:
    """binary for 0/1 and booleans, multiclass for text, else regression."""
    present = values.dropna()
    if pd.api.types.is_bool_dtype(present) or (
        pd.api.types.is_numeric_dtype(present) and set(present.unique()) <= {0, 1}
    ):
        return "binary"
    return "regression" if pd.api.types.is_numeric_dtype(present) else "multiclass"


def make_task(labels: pd.DataFrame, targets: Sequence[str], kind: TaskKind | None = None) -> tuple[Task, list[str]]:
    """A task on columns of a zoo's labels, and the ids of the LoRAs that have all of them (NaN, infinite and missing
    labels are left out).

    kind: found from the values when None. Raises TaskError, before anything long starts, when the labels cannot be
    learnt.
    """
    targets = list(dict.fromkeys(targets))
    if not targets:
        raise TaskError("No target chosen. Choose at least one label column.")
    if labels.shape[1] == 0:
        raise TaskError(
            "This collection has no labels. Put a labels.csv beside the files, with a column of file names and a column"
            " per label."
        )
    if missing := [target for target in targets if target not in labels.columns]:
        raise TaskError(f"No label column {missing[0]!r}. The labels table has {', '.join(map(repr, labels.columns))}.")
    kinds = {target: guess_kind(labels[target]) for target in targets}
    if kind is None:
        kind = kinds[targets[0]]
        if len(set(kinds.values())) > 1:
            raise TaskError(
                f"The targets are of different kinds ({', '.join(f'{t}: {k}' for t, k in kinds.items())}). Train one"
                " model for each kind."
            )
    if kind == "multiclass" and len(targets) > 1:
        raise TaskError(f"A multi-class task has one target; found {len(targets)}. Train one model for each.")
    if kind != "multiclass":
        textual = [target for target in targets if kinds[target] == "multiclass"]
        if textual:
            example = labels[textual[0]].dropna().iloc[0] if labels[textual[0]].notna().any() else "nothing"
            raise TaskError(
                f"{textual[0]!r} holds text (such as {example!r}) where numbers are needed. Choose a multi-class task,"
                " or another column."
            )
    chosen = labels[targets]
    usable = chosen.notna().all(axis=1)
    if kind != "multiclass":
        usable &= np.isfinite(chosen.to_numpy(float)).all(axis=1)
    ids = list(labels.index[usable])
    if len(ids) < MIN_LABELLED:
        raise TaskError(
            f"Only {len(ids)} of {len(labels)} LoRAs have a usable label in {', '.join(targets)}; at least"
            f" {MIN_LABELLED} are needed. Label more of them."
        )
    chosen = chosen.loc[ids]
    for target in targets:
        distinct = chosen[target].unique()
        if len(distinct) < 2:
            raise TaskError(
                f"{target!r} is {distinct[0]!r} for every LoRA: there is nothing to predict. Choose another target."
            )
        if kind == "binary" and not set(distinct) <= {0, 1}:
            raise TaskError(f"{target!r} holds {sorted(distinct)[:5]}; a yes/no task needs 0 and 1.")
    if kind != "multiclass":
        return Task(kind, tuple(targets)), ids
    classes = tuple(sorted({class_name(value) for value in chosen[targets[0]]}))
    if len(classes) > MAX_CLASSES:
        raise TaskError(
            f"{targets[0]!r} has {len(classes)} distinct values; at most {MAX_CLASSES} classes can be told apart. It"
            " may be a name rather than a class."
        )
    return Task("multiclass", tuple(targets), classes), ids
