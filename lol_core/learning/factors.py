"""The LoRAs of a plan as models and controls see them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor

from lol_core.collections.records import Records
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store
from lol_core.core.batch import Batch, WeightSpec, stack
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoLError, ModelError
from lol_core.learning.evaluation import norm_features, structure_features
from lol_core.learning.packed import Packing
from lol_core.learning.stream import parts, stream

MEMORY_SHARE = 0.25
"""Share of the free memory that the zoo's factors, or features, may take."""
BLOCK = 2**24
"""Bytes that are packed at a time: what a kill costs."""
AHEAD_FROM = 2**22
"""Bytes of a batch from which a thread reads the next one."""


def fits(size: int) -> bool:
    """Whether so many bytes may be kept in memory."""
    return size <= MEMORY_SHARE * psutil.virtual_memory().available


class Factors:
    """The LoRAs of a plan as batches. Their factors are packed in the store, and mapped from there; where the store has
    no place for them they are kept in memory, and where that has none, read anew each time. A LoRA that cannot be read
    is left out, with its reason.

    dtype: in which they are packed. Batches are in float32 with the numbers that it can hold, wherever they come from.
    place: id → its record, in the order of the ids.
    """

    def __init__(
        self,
        zoo: Source,
        spec: WeightSpec,
        ids: Sequence[str],
        *,
        reporter: Reporter = SILENT,
        store: Store | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.zoo, self.spec, self.packing = zoo, spec, Packing(spec, dtype)
        self.left_out: dict[str, str] = {}
        self.place: dict[str, int] = {}
        self.records: Tensor | None = None
        if not self._map(ids, store or Store(), reporter):
            self._keep(ids, reporter)
        zoo.check()

    def _map(self, ids: Sequence[str], store: Store, reporter: Reporter) -> bool:
        """Pack in the store what is not there yet; whether all is."""
        keys = {id: self.zoo.by_id[id].content for id in ids}
        kept = Records.open(store, Kept.FACTORS, self.packing.key, self.packing.size, keys=[*keys.values()])
        if kept is None:
            return False
        try:
            known = kept.places()
            missing = [id for id in ids if keys[id] not in known]
            for read, batch in self._read(missing, reporter):
                if not kept.add([keys[id] for id in read], self.packing.pack(batch)):
                    return False
            places, self.records = kept.places(), kept.mapped()
        except (OSError, sqlite3.Error):
            return False
        self.place = {id: places[keys[id]] for id in ids if keys[id] in places}
        return True

    def _keep(self, ids: Sequence[str], reporter: Reporter) -> None:
        """In memory, if that has the place."""
        parts = []
        keep = fits(self.packing.size * len(ids))
        for read, batch in self._read(ids, reporter):
            self.place |= {id: len(self.place) + i for i, id in enumerate(read)}
            parts += [self.packing.pack(batch)] if keep else []
        self.records = torch.cat(parts) if parts else None

    def _read(self, ids: Sequence[str], reporter: Reporter) -> Iterator[tuple[list[str], Batch]]:
        """Those that can be read, some at a time."""
        at_once = max(1, BLOCK // self.packing.size)
        for start in range(0, len(ids), at_once):
            read, loras = [], []
            for done, id in enumerate(ids[start : start + at_once], start + 1):
                reporter.check("The LoRAs were still being read, and nothing was trained yet.")
                try:
                    lora = self.zoo.load(id)
                    if problems := self.spec.misfits(lora):
                        raise ModelError(" ".join(problems))
                    self.packing.check(lora)
                except LoLError as error:
                    self.left_out[id] = str(error)
                else:
                    read.append(id)
                    loras.append(lora)
                reporter.count("Reading LoRA", done, len(ids))
            if read:
                yield read, stack(loras, self.spec)

    def batch(self, ids: Sequence[str]) -> Batch:
        if self.records is None:
            batch = stack([self.zoo.load(id) for id in ids], self.spec)
            return batch.to(dtype=self.packing.dtype).to(dtype=batch.dtype)
        return self.packing.batch(self.records, [self.place[id] for id in ids])

    def stream(self, batches: Sequence[Sequence[str]], device: torch.device | str = "cpu") -> Iterator[Batch]:
        """The batches of ids on a device, read ahead where that takes longer than handing one over."""
        largest = self.packing.size * max(map(len, batches), default=0)
        return stream(self.batch, batches, device, read_ahead=largest > AHEAD_FROM)


def control_features(zoo: Source, factors: Factors, ids: Sequence[str]) -> dict[str, pd.DataFrame]:
    """What the controls see of each LoRA: its file's structure, and the norms of its updates."""
    at_once = min(64, max(1, BLOCK // factors.packing.size))
    norms = np.concatenate([norm_features(batch) for batch in factors.stream(parts(ids, at_once))])
    return {
        "structure only": pd.DataFrame(structure_features([zoo.by_id[id] for id in ids]), index=list(ids)),
        "norms only": pd.DataFrame(norms, index=list(ids)),
    }
