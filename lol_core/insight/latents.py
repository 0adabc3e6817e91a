"""What a model makes of the LoRAs of a collection: latent vectors, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lol_core.collections.records import Records
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store
from lol_core.core.lora import LoRA
from lol_core.learning.checkpoint import Checkpoint

Blocks = Iterator[tuple[list[str], list[LoRA]]]


def identity(checkpoint: Checkpoint) -> str:
    """Of a model as a function: its kind, its configuration, every weight and buffer."""
    model = checkpoint.model
    digest = hashlib.sha256(repr((type(model).__name__, model.config, model.spec)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Latents:
    """The latent vectors that a store has of a collection and a model; `add` computes others, some LoRAs at a time.

    vectors: id → (width,).
    """

    def __init__(self, zoo: Source, checkpoint: Checkpoint, store: Store | None):
        self.zoo, self.checkpoint, self.store = zoo, checkpoint, store
        self.key = identity(checkpoint) if store else ""
        self.vectors: dict[str, np.ndarray] = {}
        self._records: Records | None = None

    def find(self, ids: Sequence[str]) -> list[str]:
        """Take what the store has; which it has not."""
        try:
            kept = self.store and Records.find(self.store, Kept.LATENTS, self.key)
            if kept:
                known, numbers = kept.places(), kept.mapped().view(torch.float32)
                keys = {id: self._content(id) for id in ids}
                self.vectors |= {id: numbers[known[key]].numpy() for id, key in keys.items() if key in known}
        except (OSError, sqlite3.Error):
            pass  # computed anew
        return [id for id in ids if id not in self.vectors]

    def add(self, ids: Sequence[str], blocks: Blocks) -> None:
        """Compute those of `ids`, which come in blocks, and keep them."""
        for names, loras in blocks:
            vectors = self.checkpoint.outputs(loras, embed=True).cpu().float().contiguous()
            self.vectors |= dict(zip(names, vectors.numpy(), strict=True))
            numbers = vectors.view(torch.uint8)
            if self.store and self._records is None:
                keys = [self._content(id) for id in ids]
                self._records = Records.open(self.store, Kept.LATENTS, self.key, numbers.shape[1], keys=keys)
            if self._records is None or not self._records.add([self._content(id) for id in names], numbers):
                self._records, self.store = None, None  # not asked again for every block

    def _content(self, id: str) -> str:
        return self.zoo.by_id[id].content
