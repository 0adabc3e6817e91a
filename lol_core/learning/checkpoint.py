"""A trained LoL model as a folder: model.safetensors, checkpoint.json, a model card, and while it trains
state.safetensors to go on from. No pickle.
"""

from __future__ import annotations

import json
import math
import platform
import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lol_core.collections.columns import values
from lol_core.collections.durable import contiguous, null_is_nan, replace_file
from lol_core.collections.names import user_path
from lol_core.collections.source import Source
from lol_core.core.batch import WeightSpec, stack
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import CheckpointError, LoLError
from lol_core.learning.card import model_card
from lol_core.learning.devices import find_device
from lol_core.learning.executor import Executor, Lost, Serial, executor, map_some
from lol_core.learning.memory import check_memory
from lol_core.learning.metrics import Scores
from lol_core.learning.models import MODELS, LoLModel, ModelConfig, find_model, make_model
from lol_core.learning.storage import Storage
from lol_core.learning.stream import ahead, at_once, parts, readable
from lol_core.learning.tasks import Task, labels_digest, task_from_dict
from lol_core.learning.verdict import Difference

FORMAT = 2
RENAMED = {"dsire": "nearest_spectra", "spectral": "spectral_sizes", "w2t": "triplets", "mvprobe": "views"}
"""Format 1 called our variants by the names of the published models."""
WRITTEN = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
"""How a description is written: as valid JSON, with null for NaN."""
DESCRIPTION, CARD, WEIGHTS = "checkpoint.json", "README.md", "model.safetensors"
_OWN_WEIGHTS = re.compile(r"model-[0-9a-f]{8}\.safetensors")
"""Files of a checkpoint's folder. WEIGHTS is what checkpoints written before descriptions named their weights hold."""


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
    loss before stopping, 0 for never. group_column: a label whose groups stay on one side of the split.
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
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    group_column: str | None = None
    shuffled_control: bool = False

    @property
    def shape(self) -> ModelConfig:
        """The configuration of the model. Raises ModelError for an unknown model, or the configuration of another."""
        return find_model(self.model).configured(self.model_config)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the usual storage: earlier descriptions name none."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.storage is Storage.FLOAT32:
            del named["storage"]
        return named | {"model_config": self.shape.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """What `to_dict` gave. Raises ModelError for an unknown model."""
        shape = find_model(data["model"]).Config.from_dict(data["model_config"])
        keep = Keep(data.get("keep", Keep.LOWEST_LOSS))
        schedule = Schedule(data.get("schedule", Schedule.CONSTANT))
        storage = Storage(data.get("storage", Storage.FLOAT32))
        own = {"keep": keep, "schedule": schedule, "storage": storage, "fractions": tuple(data["fractions"])}
        return cls(**{**data, **own, "model_config": shape})

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if epoch < self.warmup:
            return self.learning_rate * (0.1 + 0.9 * epoch / self.warmup)
        if self.schedule is Schedule.CONSTANT:
            return self.learning_rate
        done = (epoch - self.warmup) / max(1, self.epochs - self.warmup - 1)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2)


@dataclass
class Checkpoint:
    """A LoL model with everything needed to use and to judge it.

    digests: LoRA → that of its content, for those of the split; labels: the digest of what it learnt of them; both
    empty in older checkpoints, as are bases: the base models that the files of the split name; metrics: part → metric →
    value for "train", "validation", "test"; interval: 95 % bootstrap of the headline metric on
    the test part; controls: name → test metrics; differences: control → metric → by how much the model exceeds it on
    the test part; history: one dict per epoch; left_out: LoRA → why it took no part; folder: where it was
    saved to or loaded from.
    """

    model: LoLModel
    task: Task
    config: TrainingConfig
    split: dict[str, list[str]]
    zoo: str = ""
    fingerprint: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    bases: tuple[str, ...] = ()
    metrics: dict[str, Scores] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    controls: dict[str, Scores] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    left_out_modules: tuple[str, ...] = ()
    finished: bool = True
    labels: str = ""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    folder: Path | None = None

    @property
    def spec(self) -> WeightSpec:
        return self.model.spec

    @property
    def title(self) -> str:
        return title_of(self.config.model, self.task.targets, self.config.seed)

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all: weights under a name of their own come first, and a checkpoint.json
        that names them takes the place of the old one in one step. Raises CheckpointError when it cannot be written (a
        full disk, say); an older checkpoint there stays whole, and files of others stay.
        """
        description = {
            "format": FORMAT,
            "created": self.created,
            "finished": self.finished,
            "zoo": self.zoo,
            "fingerprint": self.fingerprint,
            "digests": self.digests,
            "bases": self.bases,
            "labels": self.labels,
            "config": self.config.to_dict(),
            "task": self.task.to_dict(),
            "spec": self.spec.to_dict(),
            "split": self.split,
            "metrics": {part: scores.to_dict() for part, scores in self.metrics.items()},
            "interval": self.interval,
            "controls": {name: scores.to_dict() for name, scores in self.controls.items()},
            "differences": {
                name: {metric: asdict(gap) for metric, gap in gaps.items()} for name, gaps in self.differences.items()
            },
            "history": self.history,
            "left_out": self.left_out,
            "left_out_modules": self.left_out_modules,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        weights = folder / f"model-{secrets.token_hex(4)}.safetensors"
        text = orjson.dumps(description | {"weights": weights.name}, option=WRITTEN)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replaced = (folder / DESCRIPTION).is_file()
            old = [path for path in folder.iterdir() if path != weights and _is_weights(path.name, replaced)]
            carded = replaced or not (folder / CARD).exists()  # a README of others stays
            replace_file(weights, lambda new: save_file(contiguous(self.model.state_dict()), new))
            if carded:
                (folder / CARD).unlink(missing_ok=True)  # no card rather than that of other weights
            replace_file(folder / DESCRIPTION, lambda new: new.write_bytes(text))
            if carded:
                replace_file(folder / CARD, lambda new: new.write_text(model_card(self), encoding="utf-8"))
            for path in old:
                path.unlink()
            self.folder = folder.resolve()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: the checkpoint cannot be written ({error}). Free some disk space or choose another folder."
            ) from error

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> Checkpoint:
        """Read a checkpoint folder onto a device. Raises CheckpointError naming what is missing, damaged, or of another
        version, and ModelError when there is no such device.
        """
        place = find_device(device)
        folder = user_path(folder)
        description = read_description(folder)
        try:
            config, task = TrainingConfig.from_dict(description["config"]), task_from_dict(description["task"])
            spec = WeightSpec.from_dict(description["spec"])
            check_memory(config.model, spec, task.outputs, config.shape, device=place, fitted=False)
            model = make_model(config.model, spec, task.outputs, config.shape)
            names = ["split", "zoo", "fingerprint", "left_out", "finished", "created"]
            interval = description["interval"]
            known = cls(
                model,
                task,
                config,
                **{name: description[name] for name in names},
                history=[null_is_nan(epoch) for epoch in description["history"]],
                metrics={part: Scores.from_dict(scores) for part, scores in description["metrics"].items()},
                controls={name: Scores.from_dict(scores) for name, scores in description["controls"].items()},
                left_out_modules=tuple(description["left_out_modules"]),
            )
            known.folder = folder.resolve()
            known.digests, known.labels = description.get("digests", {}), description.get("labels", "")
            known.bases = tuple(description.get("bases", ()))
            if interval:
                low, high = (math.nan if bound is None else bound for bound in interval)
                known.interval = low, high
            known.differences = {
                name: {metric: Difference(**null_is_nan(gap)) for metric, gap in gaps.items()}
                for name, gaps in description.get("differences", {}).items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'checkpoint.json'}: an entry is missing or malformed ({error!r}). Train the model again."
            ) from error
        weights = folder / Path(description.get("weights", WEIGHTS)).name
        try:
            model.load_state_dict(load_file(weights))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{weights}: cannot be read ({error}). The checkpoint is incomplete.") from error
        except RuntimeError as error:
            raise CheckpointError(
                f"{weights}: its weights do not fit the model that {DESCRIPTION} describes. {error}"
            ) from error
        model.to(place).eval()
        return known

    @torch.no_grad()
    def outputs(self, loras: Sequence[LoRA], embed: bool = False, batch_size: int = 64) -> Tensor:
        """Raw outputs (B, outputs), or latents (B, width) with `embed`. Raises ModelError when a LoRA does not fit."""
        self.model.eval()
        device = self.model.device
        call = self.model.embed if embed else self.model
        return torch.cat([call(stack(block, self.spec).to(device)) for block in parts(loras, batch_size)])

    def predict(self, loras: Sequence[LoRA]) -> np.ndarray:
        """Predictions in the user's terms, as `Task.decode` gives them, a row for each LoRA. Raises ModelError when one
        does not fit.
        """
        if not loras:
            return np.zeros((0, self.task.outputs))
        return self.task.decode(self.outputs(loras))

    def predict_zoo(
        self,
        zoo: Source,
        ids: Sequence[str] | None = None,
        batch_size: int = 64,
        *,
        workers: int | str = 1,
        reporter: Reporter = SILENT,
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """Predictions for a zoo's LoRAs, computed in batches on the model's device, and for those it cannot read the
        reason: a missing module, another shape, a rank it does not take, a broken file.

        workers: as `executor` takes them; each reads the checkpoint's folder, so that one without a folder is asked
        here. When the reporter says to stop it ends with what it has.
        """
        ids = zoo.ids if ids is None else ids
        misfits = {id: self.spec.misfits(zoo.by_id[id]) for id in ids}
        refused = {id: " ".join(problems) for id, problems in misfits.items() if problems}
        fitting = [id for id in ids if not misfits[id]]
        answers: dict[str, np.ndarray | str] = {}
        with closing(self._answers(zoo, fitting, at_once(zoo, fitting, batch_size), executor(workers))) as some:
            for answered in some:
                answers |= answered
                reporter.count("Predicting: LoRA", len(answers), len(fitting))
                if reporter.stopping:
                    break
        refused |= {id: answer for id, answer in answers.items() if isinstance(answer, str)}
        rows = {id: answers[id] for id in fitting if id in answers and id not in refused}
        return self.task.frame(np.array([*rows.values()]).reshape(-1, self.task.outputs), [*rows]), refused

    def _answers(
        self, zoo: Source, ids: Sequence[str], size: int, runner: Executor
    ) -> Generator[dict[str, np.ndarray | str], None, None]:
        """id → its row of predictions, or why it has none, for some LoRAs at a time."""
        readers = [(id, zoo.reader(id)) for id in ids]
        if isinstance(runner, Serial) or self.folder is None or len(ids) <= size:
            for loras, refused in ahead(readable(some) for some in parts(readers, size)):
                yield {**self._rows(loras), **refused}
            return
        ask = partial(_ask, self.folder, str(self.model.device), self.created)
        for some in map_some(runner, ask, readers, size):
            yield {id: answer.reason if isinstance(answer, Lost) else answer for id, answer in some.items()}

    def _rows(self, loras: Mapping[str, LoRA]) -> dict[str, np.ndarray | str]:
        try:
            return dict(zip(loras, self.predict([*loras.values()]), strict=True)) if loras else {}
        except LoLError as error:
            if len(loras) == 1:
                return dict.fromkeys(loras, str(error))
            return {id: self._rows({id: lora})[id] for id, lora in loras.items()}

    def compare(self, zoo: Source) -> list[str]:
        """What differs between a zoo and the one the model was trained on, as sentences; empty when it is the same."""
        notes = []
        if zoo.fingerprint != self.fingerprint:
            same = any(id in zoo.by_id and zoo.by_id[id].digest == digest for id, digest in self.digests.items())
            change = (
                f"{zoo.name} has changed since"
                if same
                else f"This is not the collection it was trained on ({self.zoo})"
            )
            notes.append(f"{change}: its scores were measured on what it was trained on, not here.")
        elif self.labels and self.labels != self._labels_now(zoo):
            notes.append("The labels have changed since: its scores are those of the labels that it was trained on.")
        misfits = {entry.path: problems for entry in zoo.entries if (problems := self.spec.misfits(entry))}
        if misfits:
            path, problems = next(iter(misfits.items()))
            notes.append(f"{len(misfits)} of {len(zoo)} LoRAs do not fit it, e.g. {path}: {' '.join(problems)}")
        known = {_model_name(base) for base in self.bases}
        named = values(zoo, "base_model")
        strange = {base for base in named.unique() if known and base and _model_name(base) not in known}
        if others := [id for id in named.index[named.isin(strange)] if id not in misfits]:
            notes.append(
                f"{len(others)} of {len(zoo)} LoRAs fit it and name another base model than those it was trained on"
                f" ({', '.join(self.bases)}), e.g. {others[0]}: {named[others[0]]}. If that is the same base trained"
                " further, predictions may well hold; if it only has the same shapes, expect nothing of them."
            )
        return notes

    def _labels_now(self, zoo: Source) -> str:
        """The digest of what the collection it was trained on has to be learnt today; empty where labels are gone."""
        if not set(self.task.targets) <= set(zoo.labels.columns):
            return ""
        return labels_digest(zoo.labels.loc[[id for ids in self.split.values() for id in ids]], self.task.targets)


def _model_name(base: str) -> str:
    """What a base model is called, whoever published it and wherever it lay: the last part of its name or path."""
    return re.sub(r"\.(safetensors|ckpt|pt|bin)$", "", re.split(r"[/\\]", base.rstrip("/\\"))[-1].lower())


def _ask(
    folder: Path, device: str, created: str, readers: Sequence[tuple[str, Callable[[], LoRA]]]
) -> dict[str, np.ndarray | str]:
    """What the checkpoint of a folder predicts, in another process."""
    loras, refused = readable(readers)
    return {**_loaded(folder, device, created)._rows(loras), **refused}


@lru_cache(maxsize=1)
def _loaded(folder: Path, device: str, created: str) -> Checkpoint:
    """created: tells a model from the one that was there before."""
    return Checkpoint.load(folder, device)


def title_of(model: str, targets: Sequence[str], seed: int) -> str:
    """What a checkpoint is called: its model, what it predicts, its seed."""
    return f"{MODELS[model].title} → {', '.join(targets[:2])}{' …' if len(targets) > 2 else ''} (seed {seed})"


def read_description(folder: Path) -> dict[str, Any]:
    """checkpoint.json of a folder. Raises CheckpointError when the folder holds none, or one of another version."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: no checkpoint there (no readable checkpoint.json). Choose a folder that training wrote."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: no valid JSON ({error}). The checkpoint is damaged; train the model again."
        ) from error
    if isinstance(description, dict) and description.get("format") == 1 and isinstance(description.get("config"), dict):
        model = description["config"].get("model")
        description |= {"format": FORMAT, "config": description["config"] | {"model": RENAMED.get(model, model)}}
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        actual = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise CheckpointError(
            f"{path}: written in checkpoint format {actual}; this version reads format {FORMAT}. Train the model again,"
            " or use the version that wrote it."
        )
    if description.get("config", {}).get("model") not in MODELS:
        raise CheckpointError(
            f"{path}: names the model {description.get('config', {}).get('model')!r}; known are {', '.join(MODELS)}."
            " One of your own is registered by a file that LOL_MODELS names."
        )
    return description


def _is_weights(name: str, replaced: bool) -> bool:
    """Whether a file beside a description is what `save` wrote, or began to; replaced: whether one is there, which in
    older checkpoints had weights of a plain name.
    """
    name = name.removesuffix(".writing")
    return _OWN_WEIGHTS.fullmatch(name) is not None or (replaced and name == WEIGHTS)
