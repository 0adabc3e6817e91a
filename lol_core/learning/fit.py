"""One optimisation of a LoL model: stoppable, resumable, the same result either way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.core.batch import Batch
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DivergedError, ModelError
from lol_core.learning.config import Keep, TrainingConfig
from lol_core.learning.devices import find_device
from lol_core.learning.factors import Factors, fits
from lol_core.learning.models import LoLModel, make_model
from lol_core.learning.parallel import Alone, Parallel
from lol_core.learning.state import SavedState
from lol_core.learning.stream import parts
from lol_core.learning.tasks import Task

FUSED_FROM = 5_000_000  # parameters from which the optimizer's step takes longer than the rest, and its fused form pays
SAVE_EVERY_SECONDS = 30.0
PREPARE_SAMPLE = 256
COMPARED_AT_ONCE = 256  # LoRAs that are compared with all training LoRAs, which are read again each time


class Fit:
    """One optimisation: model, optimizer, best weights so far. All randomness of an epoch comes from (seed, epoch), so
    a resumed run repeats it.
    """

    def __init__(
        self,
        factors: Factors,
        split: dict[str, list[str]],
        task: Task,
        encoded: dict[str, Tensor],
        *,
        config: TrainingConfig,
        together: Parallel | None = None,
    ):
        self.factors, self.split, self.task, self.encoded, self.config = factors, split, task, encoded, config
        self.together = together or Alone(find_device(config.device))
        self.spec, self.device = factors.spec, self.together.device
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model: LoLModel = make_model(config.model, self.spec, task.outputs, config.shape)
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(split["train"]), generator=generator)[:PREPARE_SAMPLE]
        self.model.prepare(factors.batch([split["train"][i] for i in order]), generator)
        self.model.to(self.device)
        self._described = self._describe() if self.model.kept_features else None
        fused = self.model.n_parameters > FUSED_FROM
        parameters = list(self.model.parameters()) or [torch.nn.Parameter(torch.zeros(0))]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.history: list[dict[str, float]] = []
        self.best_standing, self.best_epoch, self.best = float("inf"), 0, self._weights()

    @classmethod
    def of(
        cls,
        factors: Factors,
        split: dict[str, list[str]],
        task: Task,
        labels: pd.DataFrame,
        *,
        config: TrainingConfig,
        together: Parallel | None = None,
    ) -> Fit:
        """A fit that has not begun. task: not yet fitted; labels: of all LoRAs of the split; together: the processes
        that train it, this one alone when None. Raises TaskError when the training part holds one value only.
        """
        fitted = task.fitted(labels.loc[split["train"]], config.class_weights)
        encoded = {part: fitted.encode(labels.loc[ids]) for part, ids in split.items()}
        return cls(factors, split, fitted, encoded, config=config, together=together)

    def shuffled(self) -> Fit:
        """The same, not yet begun, with training and validation labels permuted among their LoRAs: a control."""
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        encoded = dict(self.encoded)
        for part in ("train", "validation"):
            encoded[part] = encoded[part][torch.randperm(len(encoded[part]), generator=generator)]
        return Fit(self.factors, self.split, self.task, encoded, config=self.config, together=self.together)

    def run(self, reporter: Reporter = SILENT, state: SavedState | None = None) -> bool:
        """Train to the end or to a stop, then take the weights of the epoch that `keep` says; whether the
        end was reached. state: where training is kept to go on from, and goes on from what is there.
        """
        if self.model.memorizes:
            self._check_memory()
            self.model.memorize(
                self.factors.batch(self.split["train"]).to(self.device),
                self.task.answers(self.encoded["train"]).to(self.device),
                link=self.task.link,
                reporter=reporter,
            )
        if state is not None:
            state.restore(self)
        started, saved = time.monotonic(), time.monotonic()
        already = len(self.history)
        while not self.ended:
            if not self._epoch(reporter):
                break
            done, epochs = len(self.history), self.config.epochs
            left = (time.monotonic() - started) / (done - already) * (epochs - done)
            message = f"Epoch {done} of at most {epochs}, {left:.0f} s left at most"
            reporter.show(message, done / epochs, tuple(self.history))
            if state is not None and self.together.first and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                state.save(self)
                saved = time.monotonic()
        if state is not None and self.together.first:
            state.save(self)
        self.model.load_state_dict(self.best)
        return self.ended

    def _check_memory(self) -> None:
        """Raises ModelError where a model that keeps its training LoRAs would not fit into the memory."""
        count = len(self.split["train"])
        needed = 4 * self.spec.parameters * count * self.model.copies + 8 * count**2 * self.model.squares
        if not fits(needed):
            raise ModelError(
                f"{self.model.title} keeps its {count:,} training LoRAs, which takes {needed / 1e9:.1f} GB of memory"
                " while it learns, more than its share of what is free. Take GL-net or TuckerNet, which do not, or"
                " fewer LoRAs (--only, or *Only LoRAs with* on the page Train)."
            )

    @property
    def ended(self) -> bool:
        done = len(self.history)
        return done >= (1 if self.model.memorizes else self.config.epochs) or bool(
            self.config.patience and done - self.best_epoch >= self.config.patience
        )

    def _epoch(self, reporter: Reporter) -> bool:
        """One pass; False, with the weights as before it, when it was stopped."""
        config, epoch, ids = self.config, len(self.history), self.split["train"]
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + epoch)
        total = 0.0
        if self.together.any(reporter.stopping):
            return False
        before, optimizer_before = self._weights(), _copied(self.optimizer.state_dict())
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(epoch)
        self.model.train()
        with torch.random.fork_rng():
            torch.manual_seed(1_000_003 * config.seed + epoch + 1_000_000_007 * self.together.rank)
            order = torch.randperm(len(ids), generator=generator).split(
                COMPARED_AT_ONCE if self.model.memorizes else config.batch_size
            )
            inputs = self._inputs([[ids[i] for i in index] for index in order])
            for index, given in zip(order, inputs, strict=True):
                if self.together.any(reporter.stopping):
                    self.model.load_state_dict(before)
                    self.optimizer.load_state_dict(optimizer_before)
                    return False
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=config.mixed_precision and self.device.type == "cuda"
                ):
                    outputs = self._forward(given)
                outputs = self.together.join(outputs.float(), len(index))
                loss = self.task.loss(outputs, self.encoded["train"][index].to(self.device))
                if loss.requires_grad:
                    self.optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    self.together.sum_gradients(self.model.parameters())
                    if config.clip:
                        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
                    self.optimizer.step()
                total += loss.item() * len(index)
        if not np.isfinite(total):
            raise DivergedError(
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
        standing = {Keep.LOWEST_LOSS: validation_loss, Keep.BEST_SCORE: -score_now, Keep.LAST: float("-inf")}[
            config.keep
        ]
        if standing < self.best_standing or config.keep is Keep.LAST:
            self.best_standing, self.best_epoch, self.best = standing, epoch + 1, self._weights()
        return True

    @property
    def validation(self) -> dict[str, float]:
        """The line of the history whose weights are kept."""
        return self.history[self.best_epoch - 1]

    @torch.no_grad()
    def outputs(self, ids: Sequence[str], batch_size: int = 64) -> Tensor:
        self.model.eval()
        batches = parts(ids, COMPARED_AT_ONCE if self.model.memorizes else batch_size)
        outputs = [
            self.together.join(self._forward(given).float(), len(batch)).cpu()
            for batch, given in zip(batches, self._inputs(batches), strict=True)
        ]
        return torch.cat(outputs)

    def _inputs(self, batches: Sequence[Sequence[str]]) -> Iterator[Batch | Tensor]:
        """What `_forward` takes for this process's share of each batch: what was described before, or the LoRAs."""
        batches = [self.together.share(ids) for ids in batches]
        if self._described is None:
            return self.factors.stream(batches, self.device)
        described = self._described
        return (torch.stack([described[id] for id in ids]) for ids in batches)

    def _forward(self, given: Batch | Tensor) -> Tensor:
        if isinstance(given, Batch):
            outputs = self.model(given)
            if outputs.shape != (expected := (len(given), self.task.outputs)):
                raise ModelError(
                    f"{self.model.title}: `forward` must return a tensor of shape {expected}, a row for each LoRA;"
                    f" found {tuple(outputs.shape)}."
                )
            return outputs
        return self.model.head.out(self.model.head.latent(given))

    @torch.no_grad()
    def _describe(self) -> dict[str, Tensor] | None:
        """LoRA → what the model's head reads of it; None where that would not fit into the share of memory that the
        factors may take.
        """
        ids = [id for part in self.split.values() for id in part]
        if not fits(4 * self.model.n_features() * len(ids)):
            return None
        described = [self.model.described(batch) for batch in self.factors.stream(parts(ids, 64), self.device)]
        return dict(zip(ids, torch.cat(described), strict=True))

    def _weights(self) -> dict[str, Tensor]:
        return {key: tensor.detach().clone() for key, tensor in self.model.state_dict().items()}


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
