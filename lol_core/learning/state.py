"""What a training needs to go on: kept in its folder while it runs, and after it, to be given more epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lol_core.collections.durable import contiguous, plain_number, replace_file
from lol_core.errors import CheckpointError
from lol_core.learning.checkpoint import FORMAT, RENAMED
from lol_core.learning.config import TrainingConfig

if TYPE_CHECKING:
    from lol_core.learning.fit import Fit

STATE = "state.safetensors"


class SavedState:
    """The state of one run in its folder."""

    def __init__(self, folder: Path, config: TrainingConfig, fingerprint: str):
        self.folder, self.config, self.fingerprint = folder, config, fingerprint
        self.labels = ""
        self.saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def open(self, resume: bool) -> None:
        """Find what is there, or clear it to begin anew. Raises CheckpointError when there is nothing to resume, or the
        folder cannot be written.
        """
        if resume:
            self.saved = load_state(self.folder)
            if self.saved is None:
                raise CheckpointError(f"{self.folder}: nothing to resume (no {STATE}). Start the training anew.")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / STATE).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be written ({error.strerror}). Choose another folder for the checkpoint."
            ) from error

    def learn(self, labels: str) -> None:
        """labels: the digest of what is to be learnt. Raises CheckpointError when the run that was found learnt
        something else; one of before digests were kept is believed.
        """
        self.labels = labels
        if self.saved is not None and self.saved[1]["settings"].get("labels", labels) != labels:
            raise CheckpointError(
                "The labels have changed since the training was saved, so going on would mix two. Start it anew, or"
                " restore them."
            )

    def save(self, fit: Fit) -> None:
        tensors: dict[str, Tensor] = {f"model.{key}": t for key, t in fit.model.state_dict().items()}
        tensors |= {f"best.{key}": t for key, t in fit.best.items()}
        for i, moments in fit.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": moment for name, moment in moments.items()}
        progress = {
            "history": fit.history,
            "best_loss": fit.best_standing,
            "best_epoch": fit.best_epoch,
            "settings": {
                "format": FORMAT,
                "config": self.config.to_dict(),
                "fingerprint": self.fingerprint,
                "labels": self.labels,
            },
        }
        save_state(self.folder, tensors, progress)

    def restore(self, fit: Fit) -> None:
        """Bring a fit to where the run was, if one was found. Raises CheckpointError when it was another run."""
        if self.saved is None:
            return
        tensors, progress = self.saved
        if not self._same_run(progress["settings"]):
            raise CheckpointError(
                "The saved training used other settings or another collection, so going on would mix two runs. Start it"
                " anew, or restore them."
            )
        fit.history, fit.best_standing = progress["history"], progress["best_loss"]
        fit.best_epoch = progress["best_epoch"]

        def under(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): t.to(fit.device) for key, t in tensors.items() if key.startswith(prefix)}

        fit.model.load_state_dict(under("model."))
        fit.best = under("best.")
        optimizer = fit.optimizer.state_dict()
        for key, moment in under("optimizer.").items():
            i, name = key.split(".", 1)
            optimizer["state"].setdefault(int(i), {})[name] = moment
        fit.optimizer.load_state_dict(optimizer)

    def _same_run(self, settings: dict[str, Any]) -> bool:
        """Whether a run differs at most in epochs and device. A state that states no format may name our variants as
        checkpoints of format 1 did.
        """
        model = settings["config"]["model"]
        if "format" not in settings and RENAMED.get(model) == self.config.model:
            model = self.config.model
        saved, own = (
            replace(config, model_config=config.shape, epochs=0, device="")
            for config in (TrainingConfig.from_dict(settings["config"] | {"model": model}), self.config)
        )
        return saved == own and settings["fingerprint"] == self.fingerprint


def save_state(folder: Path, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
    """What training needs to go on: tensors and a small JSON in their header, written whole or not at all."""
    path = folder / STATE
    metadata = {"progress": json.dumps(progress, default=plain_number)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda new: save_file(contiguous(tensors), new, metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error}). Free some disk space or choose another folder."
        ) from error


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state in a folder, or None when there is none. Raises CheckpointError when it is damaged."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file handle, not a dict)
            return tensors, json.loads(file.metadata()["progress"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). Delete it to start again.") from error
