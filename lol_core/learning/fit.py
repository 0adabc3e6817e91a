"""Fitting a LoL model to a zoo: planned first, stoppable, resumable, the same result either way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor

from lol_core.collections.source import Source
from lol_core.collections.splits import split_ids
from lol_core.core.batch import Batch, WeightSpec, concatenate, shared_spec, stack
from lol_core.errors import CheckpointError, LoLError, ModelError, TaskError
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig, load_state, save_state
from lol_core.learning.devices import find_device
from lol_core.learning.evaluation import (
    bootstrap_interval,
    control_predictions,
    norm_features,
    paired_differences,
    structure_features,
)
from lol_core.learning.memory import check_memory
from lol_core.learning.models import LoLModel, make_model
from lol_core.learning.tasks import Task, make_task

FUSED_FROM = 5_000_000  # parameters from which the optimizer's step takes longer than the rest, and its fused form pays
SAVE_EVERY_SECONDS = 30.0
PREPARE_SAMPLE = 256
MEMORY_SHARE = 0.25
"""Share of the free memory that the zoo's factors may take; a larger zoo is read from disk batch by batch."""


class Stopped(LoLError):
    """The user stopped the work. What was reached is saved and can be resumed."""


@dataclass(frozen=True)
class Progress:
    """Where training stands. `fraction` of all work in [0, 1]; history: one dict per finished epoch; message: what is
    being done now.
    """

    message: str
    fraction: float
    history: tuple[dict[str, float], ...] = ()


OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Plan:
    """What would be trained, checked before anything long starts.

    left_out_modules: modules that not all LoRAs have, which the model will not see; left_out: LoRA → why it takes no
    part.
    """

    task: Task
    spec: WeightSpec
    split: dict[str, list[str]]
    left_out: dict[str, str]
    left_out_modules: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        return [id for part in self.split.values() for id in part]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Plan:
        """What a checkpoint was trained by, to go on with it."""
        return cls(checkpoint.task, checkpoint.spec, checkpoint.split, checkpoint.left_out, checkpoint.left_out_modules)


def plan(
    zoo: Source,
    targets: Sequence[str],
    config: TrainingConfig,
    kind: type[Task] | None = None,
    ids: Sequence[str] | None = None,
) -> Plan:
    """Check labels, modules, split, memory and device. `ids`: the LoRAs to take, all by default.

    Raises TaskError or ModelError with what is wrong and what to do.
    """
    if zoo.labels_problem:
        raise TaskError(zoo.labels_problem)
    wanted = zoo.ids if ids is None else list(ids)
    task, usable = make_task(zoo.labels.loc[wanted], targets, kind)
    left_out = dict.fromkeys(set(wanted) - set(usable), "It has no usable label.")
    entries = [zoo.by_id[id] for id in usable]
    try:
        spec = shared_spec(entries)
    except ModelError as error:
        bases = Counter(entry.suggested_base or entry.base_model or "unknown base" for entry in entries)
        raise ModelError(
            f"{error} Here are {', '.join(f'{count} of {base}' for base, count in bases.most_common(4))}."
        ) from error
    seen = {module.name for entry in entries for module in entry.headers}
    left_out_modules = tuple(sorted(seen - {module.name for module in spec.modules}))
    groups = None
    if config.group_column:
        if config.group_column not in zoo.labels.columns:
            raise TaskError(
                f"No label column {config.group_column!r} to group by. There are"
                f" {', '.join(map(repr, zoo.labels.columns))}."
            )
        groups = list(zoo.labels.loc[usable, config.group_column].fillna("(none)"))
    split = split_ids(usable, config.fractions, config.seed, groups)
    task.fitted(zoo.labels.loc[split["train"]], config.class_weights)
    check_memory(config.model, spec, task.outputs, config.shape, find_device(config.device))
    return Plan(task, spec, split, left_out, left_out_modules)


class Factors:
    """The LoRAs of a plan as batches: kept in memory when they fit, else read anew each time. A LoRA that cannot be
    read is left out, with its reason.
    """

    def __init__(
        self,
        zoo: Source,
        spec: WeightSpec,
        ids: Sequence[str],
        on_progress: Callable[[int, int], None],
        stop: ShouldStop,
    ):
        self.zoo, self.spec = zoo, spec
        self.left_out: dict[str, str] = {}
        keep = spec.parameters * 4 * len(ids) <= MEMORY_SHARE * psutil.virtual_memory().available
        rows: list[Batch] = []
        self.place: dict[str, int] = {}
        for done, id in enumerate(ids, 1):
            if stop():
                raise Stopped("Stopped while the LoRAs were being read. Nothing was trained yet.")
            try:
                row = stack([zoo.load(id)], spec)
            except LoLError as error:
                self.left_out[id] = str(error)
            else:
                self.place[id] = len(self.place)
                rows += [row] if keep else []
            on_progress(done, len(ids))
        zoo.check()
        self.kept = concatenate(rows) if rows else None

    def batch(self, ids: Sequence[str]) -> Batch:
        if self.kept is None:
            return stack([self.zoo.load(id) for id in ids], self.spec)
        return self.kept[torch.tensor([self.place[id] for id in ids])]


def train(
    zoo: Source,
    plan: Plan,
    config: TrainingConfig,
    out: Path,
    on_progress: OnProgress = lambda progress: None,
    stop: ShouldStop = lambda: False,
    resume: bool = False,
) -> Checkpoint:
    """Fit, evaluate and save a model into the folder `out`; returns its checkpoint.

    When `stop()` turns true, the last finished epoch is saved, the best model so far is measured and the checkpoint
    marked unfinished; with `resume`, training goes on from there and ends as if it had never stopped. Raises TaskError,
    ModelError or CheckpointError.
    """
    if resume and (state := load_state(out)) is None:
        raise CheckpointError(f"{out}: nothing to resume (no state.safetensors). Start the training anew.")
    if not resume:
        state = None
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "state.safetensors").unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{out}: cannot be written ({error.strerror}). Choose another folder for the checkpoint."
            ) from error
    device = find_device(config.device)
    factors = Factors(
        zoo,
        plan.spec,
        plan.ids,
        lambda done, total: on_progress(Progress(f"Reading LoRA {done} of {total}", 0.1 * done / total)),
        stop,
    )
    split = {part: [id for id in ids if id in factors.place] for part, ids in plan.split.items()}
    if empty := [part for part, ids in split.items() if not ids]:
        raise TaskError(
            f"No readable LoRA is left for the {empty[0]} part. First reason: {next(iter(factors.left_out.values()))}"
        )
    task = plan.task.fitted(zoo.labels.loc[split["train"]], config.class_weights)
    encoded = {part: task.encode(zoo.labels.loc[ids]) for part, ids in split.items()}
    settings = {"config": config.to_dict(), "fingerprint": zoo.fingerprint}
    fit = Fit(factors, split, encoded, task, plan.spec, config, device)
    finished = fit.run(out, settings, state, on_progress, stop)
    checkpoint = Checkpoint(
        fit.best_model(),
        task,
        config,
        split,
        zoo.name,
        zoo.fingerprint,
        digests={id: zoo.by_id[id].digest for part in split.values() for id in part},
        history=fit.history,
        left_out=plan.left_out | factors.left_out,
        left_out_modules=plan.left_out_modules,
        finished=finished,
    )
    shuffled = None
    if config.shuffled_control and finished:
        on_progress(Progress("Fitting the shuffled-label control", 0.97, tuple(fit.history)))
        shuffled = shuffled_control(fit, stop)
    on_progress(Progress("Measuring", 0.98, tuple(fit.history)))
    measure(checkpoint, zoo, factors, shuffled)
    checkpoint.save(out)
    on_progress(Progress("Done" if finished else "Stopped", 1.0, tuple(fit.history)))
    return checkpoint


class Fit:
    """One optimisation: model, optimizer, best weights so far. All randomness of an epoch comes from (seed, epoch), so
    a resumed run repeats it.
    """

    def __init__(
        self,
        factors: Factors,
        split: dict[str, list[str]],
        encoded: dict[str, Tensor],
        task: Task,
        spec: WeightSpec,
        config: TrainingConfig,
        device: torch.device,
    ):
        self.factors, self.split, self.encoded, self.task, self.spec, self.config, self.device = (
            factors,
            split,
            encoded,
            task,
            spec,
            config,
            device,
        )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model: LoLModel = make_model(config.model, spec, task.outputs, config.shape)
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(split["train"]), generator=generator)[:PREPARE_SAMPLE]
        self.model.prepare(factors.batch([split["train"][i] for i in order]), generator)
        self.model.to(device)
        self._described = self._describe() if self.model.kept_features else None
        fused = self.model.n_parameters > FUSED_FROM
        parameters = list(self.model.parameters()) or [torch.nn.Parameter(torch.zeros(0))]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch, self.best = float("inf"), 0, self._weights()

    def run(
        self, out: Path | None, settings: dict[str, Any], state: Any, on_progress: OnProgress, stop: ShouldStop
    ) -> bool:
        """Train to the end or to a stop; whether the end was reached."""
        if self.model.memorizes:
            self.model.memorize(
                self.factors.batch(self.split["train"]).to(self.device),
                self.task.answers(self.encoded["train"]).to(self.device),
            )
        if state is not None:
            self._restore(state[0], state[1], settings)
        started, saved = time.monotonic(), time.monotonic()
        already = len(self.history)
        while not self.ended:
            if not self._epoch(stop):
                if out:
                    self._save(out, settings)
                return False
            done, epochs = len(self.history), self.config.epochs
            left = (time.monotonic() - started) / (done - already) * (epochs - done)
            on_progress(
                Progress(
                    f"Epoch {done} of at most {epochs}, {left:.0f} s left at most",
                    0.1 + 0.85 * done / epochs,
                    tuple(self.history),
                )
            )
            if out and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self._save(out, settings)
                saved = time.monotonic()
        if out:
            self._save(out, settings)
        return True

    @property
    def ended(self) -> bool:
        done = len(self.history)
        return done >= (1 if self.model.memorizes else self.config.epochs) or bool(
            self.config.patience and done - self.best_epoch >= self.config.patience
        )

    def _epoch(self, stop: ShouldStop) -> bool:
        """One pass; False, with the weights as before it, when it was stopped."""
        config, epoch, ids = self.config, len(self.history), self.split["train"]
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + epoch)
        total = 0.0
        if stop():
            return False
        before, optimizer_before = self._weights(), _copied(self.optimizer.state_dict())
        self.model.train()
        with torch.random.fork_rng():
            torch.manual_seed(1_000_003 * config.seed + epoch)
            for index in torch.randperm(len(ids), generator=generator).split(config.batch_size):
                if stop():
                    self.model.load_state_dict(before)
                    self.optimizer.load_state_dict(optimizer_before)
                    return False
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=config.mixed_precision and self.device.type == "cuda"
                ):
                    outputs = self._forward([ids[i] for i in index])
                loss = self.task.loss(outputs.float(), self.encoded["train"][index].to(self.device))
                if loss.requires_grad:
                    self.optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    self.optimizer.step()
                total += loss.item() * len(index)
        if not np.isfinite(total):
            raise ModelError(
                f"Training diverged in epoch {epoch + 1}: the loss is not a number. Lower the learning rate, or"
                " normalise the inputs."
            )
        validation = self.outputs(self.split["validation"])
        validation_loss = self.task.loss(validation, self.encoded["validation"]).item()
        score_now = self.task.quick_score(validation, self.encoded["validation"])
        self.history.append(
            {
                "epoch": epoch + 1,
                "train_loss": total / len(ids),
                "validation_loss": validation_loss,
                "validation_score": score_now,
            }
        )
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch, self.best = validation_loss, epoch + 1, self._weights()
        return True

    @torch.no_grad()
    def outputs(self, ids: Sequence[str], batch_size: int = 64) -> Tensor:
        self.model.eval()
        return torch.cat([self._forward(ids[i : i + batch_size]).float().cpu() for i in range(0, len(ids), batch_size)])

    def _forward(self, ids: Sequence[str]) -> Tensor:
        if self._described is None:
            return self.model(self.factors.batch(ids).to(self.device))
        return self.model.head.out(self.model.head.latent(torch.stack([self._described[id] for id in ids])))

    @torch.no_grad()
    def _describe(self) -> dict[str, Tensor] | None:
        """LoRA → what the model's head reads of it; None where that would not fit into the share of memory that the
        factors may take.
        """
        ids = [id for part in self.split.values() for id in part]
        if 4 * self.model.n_features() * len(ids) > MEMORY_SHARE * psutil.virtual_memory().available:
            return None
        parts = [
            self.model.described(self.factors.batch(ids[i : i + 64]).to(self.device)) for i in range(0, len(ids), 64)
        ]
        return dict(zip(ids, torch.cat(parts), strict=True))

    def best_model(self) -> LoLModel:
        """The model with the weights of the epoch with the lowest validation loss, on the CPU."""
        self.model.load_state_dict(self.best)
        return self.model.cpu().eval()

    def _weights(self) -> dict[str, Tensor]:
        return {key: tensor.detach().clone() for key, tensor in self.model.state_dict().items()}

    def _save(self, out: Path, settings: dict[str, Any]) -> None:
        tensors: dict[str, Tensor] = {f"model.{key}": t for key, t in self.model.state_dict().items()}
        tensors |= {f"best.{key}": t for key, t in self.best.items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": moment for name, moment in moments.items()}
        progress = {
            "history": self.history,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "settings": settings,
        }
        save_state(out, tensors, progress)

    def _restore(self, tensors: dict[str, Tensor], progress: dict[str, Any], settings: dict[str, Any]) -> None:
        if not _same_run(progress["settings"], settings):
            raise CheckpointError(
                "The saved training used other settings or another collection, so going on would mix two runs. Start it"
                " anew, or restore them."
            )
        self.history, self.best_loss, self.best_epoch = (
            progress["history"],
            progress["best_loss"],
            progress["best_epoch"],
        )

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): t.to(self.device) for key, t in tensors.items() if key.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.best = under("best.")
        optimizer = self.optimizer.state_dict()
        for key, moment in under("optimizer.").items():
            i, name = key.split(".", 1)
            optimizer["state"].setdefault(int(i), {})[name] = moment
        self.optimizer.load_state_dict(optimizer)


def _same_run(saved: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two runs differ at most in epochs and device."""
    one, other = (replace(TrainingConfig.from_dict(run["config"]), epochs=0, device="") for run in (saved, now))
    return one == other and saved["fingerprint"] == now["fingerprint"]


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def measure(checkpoint: Checkpoint, zoo: Source, factors: Factors, shuffled: np.ndarray | None = None) -> None:
    """Fill in metrics of all parts, the interval of the test score, the controls, and by how much the model exceeds
    them. shuffled: what the same model fitted to shuffled labels predicts of the test part.
    """
    task, split, seed, labels = checkpoint.task, checkpoint.split, checkpoint.config.seed, zoo.labels
    predicted = {}
    with torch.no_grad():
        for part, ids in split.items():
            outputs = torch.cat([checkpoint.model(factors.batch(ids[i : i + 64])) for i in range(0, len(ids), 64)])
            predicted[part] = task.decode(outputs)
            checkpoint.metrics[part] = task.score(labels.loc[ids], predicted[part])
    truth, ours = labels.loc[split["test"]], predicted["test"]
    known, ids = split["train"] + split["validation"], [id for part in split.values() for id in part]
    controls = control_predictions(
        task, labels.loc[ids], known, split["test"], control_features(zoo, factors, ids), seed
    ) | ({} if shuffled is None else {"shuffled labels": shuffled})
    checkpoint.interval = bootstrap_interval(task, truth, ours, seed)
    checkpoint.controls = {name: task.score(truth, values) for name, values in controls.items()}
    checkpoint.differences = paired_differences(task, truth, ours, controls, seed)


def control_features(zoo: Source, factors: Factors, ids: Sequence[str]) -> dict[str, pd.DataFrame]:
    """What the controls see of each LoRA: its file's structure, and the norms of its updates."""
    norms = np.concatenate([norm_features(factors.batch(ids[i : i + 64])) for i in range(0, len(ids), 64)])
    return {
        "structure only": pd.DataFrame(structure_features([zoo.by_id[id] for id in ids]), index=list(ids)),
        "norms only": pd.DataFrame(norms, index=list(ids)),
    }


def shuffled_control(fit: Fit, stop: ShouldStop) -> np.ndarray:
    """What the same model predicts of the test part, fitted to training and validation labels that were permuted among
    their LoRAs.
    """
    generator = torch.Generator().manual_seed(fit.config.seed + 1)
    encoded = dict(fit.encoded)
    for part in ("train", "validation"):
        encoded[part] = encoded[part][torch.randperm(len(encoded[part]), generator=generator)]
    control = Fit(fit.factors, fit.split, encoded, fit.task, fit.spec, fit.config, fit.device)
    control.run(None, {}, None, lambda progress: None, stop)
    control.model.load_state_dict(control.best)
    return fit.task.decode(control.outputs(fit.split["test"]))
