"""A trained LoL model as a folder: its weights, what it keeps of its training LoRAs, checkpoint.json, a model card, and
while it trains state.safetensors to go on from. No pickle.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lol_core.collections.columns import values
from lol_core.collections.durable import contiguous, null_is_nan, replace_file
from lol_core.collections.names import user_path
from lol_core.collections.source import Source
from lol_core.core.batch import WeightSpec, stack
from lol_core.core.header import ByIdentity
from lol_core.core.lora import LoRA
from lol_core.errors import CheckpointError
from lol_core.formats.base_models import base_name
from lol_core.learning.card import model_card
from lol_core.learning.config import TrainingConfig
from lol_core.learning.devices import find_device
from lol_core.learning.known import Known
from lol_core.learning.memory import check_memory
from lol_core.learning.metrics import Scores
from lol_core.learning.models import MODELS, LoLModel, make_model
from lol_core.learning.stream import parts
from lol_core.learning.tasks import Task, labels_digest, task_from_dict
from lol_core.learning.verdict import Difference

IF_SAME = (
    "If that is the same base trained further, predictions may well hold; if it only has the same shapes, expect"
    " nothing of them."
)
FORMAT = 2
RENAMED = {"dsire": "nearest_spectra", "spectral": "spectral_sizes", "w2t": "triplets", "mvprobe": "views"}
"""Format 1 called our variants by the names of the published models."""
WRITTEN = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
"""How a description is written: as valid JSON, with null for NaN."""
DESCRIPTION, CARD, WEIGHTS = "checkpoint.json", "README.md", "model.safetensors"
"""Files of a checkpoint's folder. WEIGHTS is what checkpoints written before descriptions named their weights hold."""
_OWN = re.compile(r"(model|known)-[0-9a-f]{8}\.safetensors")
_NEEDED: Mapping[str, type] = {"config": dict, "task": dict, "created": str, "zoo": str, "fingerprint": str}
"""What lists of models read of a description."""

_LOOKED_AT: WeakKeyDictionary[Source, dict[ByIdentity[WeightSpec], dict[str, list[str]]]] = WeakKeyDictionary()
"""What does not fit, by zoo and specification: among 100,000 LoRAs it takes most of a second to find."""


@dataclass
class Checkpoint:
    """A LoL model with everything needed to use and to judge it.

    digests: LoRA → that of its content, for those of the split; labels: the digest of what it learnt of them; both
    empty in older checkpoints, as are bases: the base models that the files of the split name; metrics: part → metric →
    value for "train", "validation", "test"; interval: 95 % bootstrap of the headline metric on
    the test part; controls: name → test metrics; differences: control → metric → by how much the model exceeds it on
    the test part; history: one dict per epoch; left_out: LoRA → why it took no part; known: what it keeps of the LoRAs
    it was trained on, None in older checkpoints and where they were fewer than ten; folder: where it was saved to or
    loaded from.
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
    known: Known | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    folder: Path | None = None

    @property
    def spec(self) -> WeightSpec:
        return self.model.spec

    @property
    def copies(self) -> int:
        """How many LoRAs of the split have the content of another one."""
        return len(self.digests) - len(set(self.digests.values()))

    @property
    def recalled(self) -> int:
        """How many LoRAs of the test part have the content of one that was learnt from or chose the epoch: none where
        the parts were drawn.
        """
        known = {self.digests.get(id) for part in ("train", "validation") for id in self.split.get(part, ())}
        return sum(self.digests.get(id, "") in known for id in self.split.get("test", ()))

    @property
    def title(self) -> str:
        return title_of(self.config.model, self.task.targets, self.config.seed)

    def identity(self) -> str:
        """Of the model as a function: its code, its configuration, every weight and buffer."""
        kind = type(self.model)
        digest = hashlib.sha256(repr((kind.__name__, self.model.config, self.spec)).encode())
        digest.update(_code(kind))
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

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
        drawn = secrets.token_hex(4)
        new = {folder / f"model-{drawn}.safetensors": contiguous(self.model.state_dict())}
        description["weights"] = f"model-{drawn}.safetensors"
        if self.known:
            new[folder / f"known-{drawn}.safetensors"] = self.known.tensors()
            description["known"] = {"file": f"known-{drawn}.safetensors", "held_out": self.known.held_out}
        text = orjson.dumps(description, option=WRITTEN)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replaced = (folder / DESCRIPTION).is_file()
            old = [path for path in folder.iterdir() if path not in new and _is_own(path.name, replaced)]
            carded = replaced or not (folder / CARD).exists()  # a README of others stays
            for path, tensors in new.items():
                replace_file(path, partial(save_file, tensors))
            if carded:
                (folder / CARD).unlink(missing_ok=True)  # no card rather than that of other weights
            replace_file(folder / DESCRIPTION, lambda path: path.write_bytes(text))
            if carded:
                replace_file(folder / CARD, lambda path: path.write_text(model_card(self), encoding="utf-8"))
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
            loaded = cls(
                model,
                task,
                config,
                **{name: description[name] for name in names},
                history=[null_is_nan(epoch) for epoch in description["history"]],
                metrics={part: Scores.from_dict(scores) for part, scores in description["metrics"].items()},
                controls={name: Scores.from_dict(scores) for name, scores in description["controls"].items()},
                left_out_modules=tuple(description["left_out_modules"]),
            )
            loaded.folder = folder.resolve()
            loaded.digests, loaded.labels = description.get("digests", {}), description.get("labels", "")
            loaded.bases = tuple(description.get("bases", ()))
            if interval:
                low, high = (math.nan if bound is None else bound for bound in interval)
                loaded.interval = low, high
            loaded.differences = {
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
        if kept := description.get("known"):
            loaded.known = _read_known(folder, kept)
        model.to(place).eval()
        return loaded

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
        if misfits := self.misfits(zoo):
            path, problems = next(iter(misfits.items()))
            notes.append(f"{len(misfits)} of {len(zoo)} LoRAs do not fit it, e.g. {path}: {' '.join(problems)}")
        read, held = len(self.spec.modules), values(zoo, "modules")
        if more := [id for id in held.index[held > read] if id not in misfits]:
            notes.append(
                f"{len(more)} of {len(zoo)} LoRAs adapt more than the {read} modules that it reads, e.g. {more[0]}:"
                " what the others do takes no part in its predictions."
            )
        known = {base_name(base) for base in self.bases}
        named = values(zoo, "base_model")
        strange = {base for base in named.unique() if known and base and base_name(base) not in known}
        others = [id for id in named.index[named.isin(strange)] if id not in misfits] if strange else []
        if others:
            notes.append(
                f"{len(others)} of {len(zoo)} LoRAs fit it and name another base model than those it was trained on"
                f" ({', '.join(self.bases)}), e.g. {others[0]}: {named[others[0]]}. {IF_SAME}"
            )
        return notes

    def doubts(self, lora: LoRA) -> list[str]:
        """Why to doubt what it says of one LoRA that fits, in sentences: modules that it does not read, another base
        model.
        """
        found, read, base = [], len(self.spec.modules), lora.base_model
        if len(lora.layers) > read:
            found.append(f"Of its {len(lora.layers)} modules the model reads {read}: the others take no part.")
        if base and self.bases and base_name(base) not in map(base_name, self.bases):
            found.append(
                f"It names another base model than those that the model was trained on ({', '.join(self.bases)}):"
                f" {base}. {IF_SAME}"
            )
        return found

    def misfits(self, zoo: Source) -> Mapping[str, list[str]]:
        """Why LoRAs of a zoo cannot be read, without those that can; of one zoo looked at once."""
        known = _LOOKED_AT.setdefault(zoo, {})
        spec = ByIdentity(self.spec)
        if spec not in known:
            told = zip(zoo.ids, map(self.spec.misfits, zoo.entries), strict=True)
            known[spec] = {id: problems for id, problems in told if problems}
        return known[spec]

    def _labels_now(self, zoo: Source) -> str:
        """The digest of what the collection it was trained on has to be learnt today; empty where labels are gone."""
        if not set(self.task.targets) <= set(zoo.labels.columns):
            return ""
        return labels_digest(zoo.labels.loc[[id for ids in self.split.values() for id in ids]], self.task.targets)


def _code(kind: type) -> bytes:
    """The file in which a class is defined; of one that was typed into a notebook what its functions do."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (TypeError, OSError):
        codes = (f.__code__ for f in vars(kind).values() if inspect.isfunction(f))
        return b"".join(repr((code.co_code, code.co_consts, code.co_names)).encode() for code in codes)


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
    for name, kind in _NEEDED.items():
        if not isinstance(found := description.get(name), kind):
            raise CheckpointError(
                f"{path}: {name} is {found!r}; expected {'text' if kind is str else 'an object'}. The checkpoint is"
                " damaged; train the model again."
            )
    if not isinstance(model := description["config"].get("model"), str) or model not in MODELS:
        raise CheckpointError(
            f"{path}: names the model {model!r}; known are {', '.join(MODELS)}."
            " One of your own is registered by a file that LOL_MODELS names."
        )
    return description


def tensor_files(description: Mapping[str, Any]) -> list[str]:
    """The names of the files beside a description that belong to it."""
    known = description.get("known")
    names = [description.get("weights", WEIGHTS), *([known["file"]] if known else [])]
    return [Path(name).name for name in names]


def _read_known(folder: Path, kept: Mapping[str, Any]) -> Known:
    """kept: what the description says of it."""
    try:
        return Known.from_tensors(load_file(folder / Path(kept["file"]).name), kept["held_out"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: what the model keeps of its training LoRAs cannot be read ({error!r}). The checkpoint is"
            " incomplete."
        ) from error


def _is_own(name: str, replaced: bool) -> bool:
    """Whether a file beside a description is what `save` wrote, or began to; replaced: whether one is there, which in
    older checkpoints had weights of a plain name.
    """
    name = name.removesuffix(".writing")
    return _OWN.fullmatch(name) is not None or (replaced and name == WEIGHTS)
