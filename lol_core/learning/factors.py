"""The LoRAs of a plan as models and controls see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import psutil
import torch

from lol_core.collections.source import Source
from lol_core.core.batch import Batch, WeightSpec, concatenate, stack
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoLError
from lol_core.learning.evaluation import norm_features, structure_features

MEMORY_SHARE = 0.25
"""Share of the free memory that the zoo's factors may take; a larger zoo is read from disk batch by batch."""


def fits(numbers: int) -> bool:
    """Whether so many float32 numbers may be kept in memory."""
    return 4 * numbers <= MEMORY_SHARE * psutil.virtual_memory().available


class Factors:
    """The LoRAs of a plan as batches: kept in memory when they fit, else read anew each time. A LoRA that cannot be
    read is left out, with its reason.
    """

    def __init__(self, zoo: Source, spec: WeightSpec, ids: Sequence[str], reporter: Reporter = SILENT):
        self.zoo, self.spec = zoo, spec
        self.left_out: dict[str, str] = {}
        keep = fits(spec.parameters * len(ids))
        rows: list[Batch] = []
        self.place: dict[str, int] = {}
        for done, id in enumerate(ids, 1):
            reporter.check("The LoRAs were still being read, and nothing was trained yet.")
            try:
                row = stack([zoo.load(id)], spec)
            except LoLError as error:
                self.left_out[id] = str(error)
            else:
                self.place[id] = len(self.place)
                rows += [row] if keep else []
            reporter.count("Reading LoRA", done, len(ids))
        zoo.check()
        self.kept = concatenate(rows) if rows else None

    def batch(self, ids: Sequence[str]) -> Batch:
        if self.kept is None:
            return stack([self.zoo.load(id) for id in ids], self.spec)
        return self.kept[torch.tensor([self.place[id] for id in ids])]


def control_features(zoo: Source, factors: Factors, ids: Sequence[str]) -> dict[str, pd.DataFrame]:
    """What the controls see of each LoRA: its file's structure, and the norms of its updates."""
    norms = np.concatenate([norm_features(factors.batch(ids[i : i + 64])) for i in range(0, len(ids), 64)])
    return {
        "structure only": pd.DataFrame(structure_features([zoo.by_id[id] for id in ids]), index=list(ids)),
        "norms only": pd.DataFrame(norms, index=list(ids)),
    }
