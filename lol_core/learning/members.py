"""LoRAs of a collection in one stack: sums of their updates, and products with them, from the factors alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from lol_core.collections.source import Source
from lol_core.core.batch import Batch, stack, turned
from lol_core.core.fixed_rank import FixedRank, Tangent
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.models.modulewise import left_product

MOST = 1000
"""LoRAs of a collection that directions are made of."""


@dataclass(frozen=True)
class Members:
    """LoRAs of a collection that directions are made of. batch: all of them; labels: a row for each, in order."""

    batch: Batch
    labels: pd.DataFrame

    @classmethod
    def of(cls, checkpoint: Checkpoint, source: Source, reporter: Reporter = SILENT) -> Members:
        """Those that a model was trained on, at most MOST: what it is tried on later takes no part. Raises TaskError
        when fewer than two of them are in the collection, and Stopped.
        """
        ids = [id for id in checkpoint.split["train"] if id in source.by_id][:MOST]
        if len(ids) < 2:
            raise TaskError(
                f"{source.name} holds {len(ids)} of the LoRAs that {checkpoint.title} was trained on, and directions"
                f" are made of those. Open the collection it was trained on, {checkpoint.zoo}; an edit by gradient"
                " needs none."
            )
        loras = []
        for i, id in enumerate(ids):
            reporter.count("Reading: LoRA", i + 1, len(ids))
            reporter.check("The collection was still being read.")
            loras.append(source.load(id))
        targets = [target for target in checkpoint.task.targets if target in source.labels]
        return cls(stack(loras, checkpoint.spec), source.labels.loc[ids, targets])

    def along(self, weights: Tensor, at: FixedRank) -> Tangent:
        """The tangent part of Σᵢ wᵢ ΔWᵢ at a point, from the factors. weights: (B, N)."""
        each = weights.float().repeat_interleave(self.batch.rank, 1)[:, None, :, None]
        parts = []
        for (U, V), P, Q in zip(self._columns, at.P, at.Q, strict=True):
            of_Q = left_product(U, left_product(V.mT, Q.float()) * each)
            of_P = left_product(V, left_product(U.mT, P.float()) * each)
            parts.append((of_Q.double(), of_P.double()))
        return at.project(parts)

    def inner(self, change: Tangent, at: FixedRank) -> Tensor:
        """⟨change, ΔWᵢ⟩ of every member: (B, N)."""
        total = torch.zeros(len(at.like), len(self.batch) * self.batch.rank)
        for (U, V), P, Q, A, B in zip(self._columns, at.P, at.Q, change.A, change.B, strict=True):
            a, p = (left_product(U.mT, side.float()) for side in (A, P))
            b, q = (left_product(V.mT, side.float()) for side in (B, Q))
            total += (a * q + p * b).sum((1, 3))
        return total.unflatten(1, (len(self.batch), self.batch.rank)).sum(2).double()

    @cached_property
    def _columns(self) -> list[tuple[Tensor, Tensor]]:
        """All members' columns side by side: (L, n, N r) and (L, m, N r) for each group."""
        sides = ([turned(side).flatten(1, 2).mT for side in of] for of in (self.batch.U, self.batch.V))
        return list(zip(*sides, strict=True))
