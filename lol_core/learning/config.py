"""How a model is fitted: everything that a training is given beside its LoRAs and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from lol_core.collections.splits import FRACTIONS
from lol_core.learning.models import ModelConfig, find_model
from lol_core.learning.storage import Storage


class Keep(StrEnum):
    """Of which epoch the weights are kept."""

    LOWEST_LOSS = "lowest validation loss"
    BEST_SCORE = "best validation score"
    """By the task's headline metric, of equals the first."""
    LAST = "last"


class Schedule(StrEnum):
    """How the learning rate goes from epoch to epoch."""

    CONSTANT = "constant"
    COSINE = "cosine"
    """Half a cosine, from the learning rate after the warm-up to a hundredth of it in the last epoch."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is fitted. AdamW, lr 1e-3 and weight decay 0 are the authors' for images (their MLP has 1e-2, but for
    the CLIP score); batch size, number of epochs and early stopping are our own.

    keep: of which epoch the weights are kept. warmup: epochs in which the learning rate rises from a tenth. clip: the
    gradient's norm is cut to this, 0 for never.

    model_config: the model's own configuration, the usual one when None. patience: epochs without a better validation
    loss before stopping, 0 for never. group_column: a label whose groups stay on one side of the split;
    split_column: one that says which part each LoRA is in, so that none is drawn. only: conditions on the LoRAs that
    take part, see `only.chosen`.
    mixed_precision: training's whole forward pass under bfloat16 autocast on CUDA, that of equivariant layers and
    probes too; kept features and weights are in float32. storage: of the factors to be trained on.
    shuffled_control: also fit the same model to permuted training labels.
    """

    model: str = "gl_net"
    model_config: ModelConfig | None = None
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 15
    keep: Keep = Keep.LOWEST_LOSS
    schedule: Schedule = Schedule.CONSTANT
    warmup: int = 0
    clip: float = 0.0
    class_weights: bool = False
    seed: int = 0
    device: str = "auto"
    mixed_precision: bool = True
    storage: Storage = Storage.FLOAT32
    fractions: tuple[float, float, float] = FRACTIONS
    group_column: str | None = None
    split_column: str | None = None
    only: tuple[str, ...] = ()
    shuffled_control: bool = False

    @property
    def shape(self) -> ModelConfig:
        """The configuration of the model. Raises ModelError for an unknown model, or the configuration of another."""
        return find_model(self.model).configured(self.model_config)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what earlier descriptions do not name where it is as usual: storage, column of parts,
        conditions.
        """
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.storage is Storage.FLOAT32:
            del named["storage"]
        if self.split_column is None:
            del named["split_column"]
        if not self.only:
            del named["only"]
        return named | {"model_config": self.shape.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """What `to_dict` gave. Raises ModelError for an unknown model."""
        shape = find_model(data["model"]).Config.from_dict(data["model_config"])
        keep = Keep(data.get("keep", Keep.LOWEST_LOSS))
        schedule = Schedule(data.get("schedule", Schedule.CONSTANT))
        storage = Storage(data.get("storage", Storage.FLOAT32))
        own = {"keep": keep, "schedule": schedule, "storage": storage, "fractions": tuple(data["fractions"])}
        own["only"] = tuple(data.get("only", ()))
        return cls(**{**data, **own, "model_config": shape})

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if epoch < self.warmup:
            return self.learning_rate * (0.1 + 0.9 * epoch / self.warmup)
        if self.schedule is Schedule.CONSTANT:
            return self.learning_rate
        done = (epoch - self.warmup) / max(1, self.epochs - self.warmup - 1)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2)
