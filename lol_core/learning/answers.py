"""What a model says of the LoRAs of a collection, and whether it can know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch

from lol_core.collections.kept_rows import KeptRows
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store
from lol_core.core.batch import stack
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoLError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.evaluation import norm_features
from lol_core.learning.executor import Executor, Lost, Serial, executor, map_some
from lol_core.learning.known import Seen
from lol_core.learning.stream import ahead, at_once, parts, readable

Readers = Sequence[tuple[str, Callable[[], LoRA]]]
"""Names of LoRAs, and what reads each."""


@dataclass(frozen=True)
class Answers:
    """values: predictions as `Task.frame` gives them, a row for each LoRA; refused: LoRA → why it has none: a missing
    module, another shape, a rank the model does not take, a broken file; marks: whether each is like the LoRAs of the
    training (`Known.marks`), empty where the model does not know.
    """

    values: pd.DataFrame
    refused: dict[str, str]
    marks: pd.DataFrame

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        zoo: Source,
        ids: Sequence[str] | None = None,
        batch_size: int = 64,
        *,
        workers: int | str = 1,
        reporter: Reporter = SILENT,
        store: Store | None = None,
    ) -> Self:
        """Computed in batches on the model's device. workers: as `executor` takes them; each reads the checkpoint's
        folder, so that one without a folder is asked here. When the reporter says to stop it ends with what it has.
        store: where answers are taken from, by content, and kept as they come.
        """
        ids = zoo.ids if ids is None else ids
        misfits = checkpoint.misfits(zoo)
        refused = {id: " ".join(misfits[id]) for id in ids if id in misfits}
        fitting = [id for id in ids if id not in misfits]
        kept = KeptRows(zoo, store, Kept.ANSWERS, _key(checkpoint) if store else "", dtype=torch.float64)
        missing = kept.find(fitting)
        size, readers, done = at_once(zoo, missing, batch_size), [(id, zoo.reader(id)) for id in missing], 0
        with closing(_blocks(checkpoint, readers, size, executor(workers))) as some:
            for answered in some:
                rows = {id: answer for id, answer in answered.items() if isinstance(answer, np.ndarray)}
                if rows:
                    kept.add([*rows], torch.from_numpy(np.stack([*rows.values()])), ids=missing)
                refused |= {id: answer for id, answer in answered.items() if isinstance(answer, str)}
                done += len(answered)
                reporter.count("Predicting: LoRA", done, len(missing))
                if reporter.stopping:
                    break
        return cls._of_rows(checkpoint, {id: kept.rows[id] for id in fitting if id in kept.rows}, refused)

    @classmethod
    def of_lora(cls, checkpoint: Checkpoint, lora: LoRA, name: str) -> Self:
        """Of one LoRA. Raises ModelError when it does not fit."""
        return cls._of_rows(checkpoint, {name: _read(checkpoint, [lora])[0]}, {})

    @classmethod
    def _of_rows(cls, checkpoint: Checkpoint, rows: Mapping[str, np.ndarray], refused: dict[str, str]) -> Self:
        known, outputs = checkpoint.known, checkpoint.task.outputs
        table = np.array([*rows.values()]).reshape(len(rows), outputs + 2 * (known is not None))
        marks = known.marks(table[:, outputs:], [*rows]) if known else pd.DataFrame({"outside": [], "remark": []})
        return cls(checkpoint.task.frame(table[:, :outputs], [*rows]), refused, marks)


def is_outside(checkpoint: Checkpoint, lora: LoRA) -> bool:
    """Whether a LoRA is unlike those that the model was trained on; False where it does not know. Raises ModelError
    when it does not fit.
    """
    return bool(Answers.of_lora(checkpoint, lora, "it").marks["outside"].any())


@torch.no_grad()
def _read(checkpoint: Checkpoint, loras: Sequence[LoRA]) -> np.ndarray:
    """A row for each LoRA: its predictions, and where the model knows what is usual the two shares of `Known`."""
    model = checkpoint.model.eval()
    batch = stack(loras, checkpoint.spec)
    outputs, latents = model.read(batch.to(model.device))
    rows = checkpoint.task.decode(outputs)
    if checkpoint.known is None:
        return rows
    seen = Seen(latents.cpu(), torch.from_numpy(norm_features(batch)))
    return np.concatenate([rows, checkpoint.known.shares(seen)], 1)


def _key(checkpoint: Checkpoint) -> str:
    """What answers depend on, but for the LoRA."""
    digest = hashlib.sha256(f"{checkpoint.identity()} {checkpoint.task.to_dict()}".encode())
    for tensor in checkpoint.known.tensors().values() if checkpoint.known else ():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _blocks(
    checkpoint: Checkpoint, readers: Readers, size: int, runner: Executor
) -> Generator[dict[str, np.ndarray | str], None, None]:
    """id → its row, or why it has none, for some LoRAs at a time."""
    if isinstance(runner, Serial) or checkpoint.folder is None or len(readers) <= size:
        for loras, refused in ahead(readable(some) for some in parts(readers, size)):
            yield {**_rows(checkpoint, loras), **refused}
        return
    ask = partial(_ask, checkpoint.folder, str(checkpoint.model.device), checkpoint.created)
    for some in map_some(runner, ask, readers, size):
        yield {id: answer.reason if isinstance(answer, Lost) else answer for id, answer in some.items()}


def _rows(checkpoint: Checkpoint, loras: Mapping[str, LoRA]) -> dict[str, np.ndarray | str]:
    try:
        return dict(zip(loras, _read(checkpoint, [*loras.values()]), strict=True)) if loras else {}
    except LoLError as error:
        if len(loras) == 1:
            return dict.fromkeys(loras, str(error))
        return {id: _rows(checkpoint, {id: lora})[id] for id, lora in loras.items()}


def _ask(folder: Path, device: str, created: str, readers: Readers) -> dict[str, np.ndarray | str]:
    """What the checkpoint of a folder says, in another process."""
    loras, refused = readable(readers)
    return {**_rows(_loaded(folder, device, created), loras), **refused}


@lru_cache(maxsize=1)
def _loaded(folder: Path, device: str, created: str) -> Checkpoint:
    """created: tells a model from the one that was there before."""
    return Checkpoint.load(folder, device)
