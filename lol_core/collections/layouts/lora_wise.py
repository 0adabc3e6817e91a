"""LoRA-WiSE of DSiRe: `hf://datasets/MoSalama98/LoRA-WiSE`, Parquet files of one LoRA a row, a column a tensor.

Written from the data set's schema, and tested on files made the same way; never run on the data set itself. Shapes are
not stored: the rank is in the folder's name, and rows are taken as flattened row by row, which their widths confirm and
their order does not. No alpha is stored; the scale is taken as 1.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lol_core.collections.blob import Blob
from lol_core.collections.entry import Entry
from lol_core.collections.files import Listing
from lol_core.collections.row_source import Rows, RowSource
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import read_tensors

_CONFIG = re.compile(r"(?:^|/)(low|medium|high)[/_](\d+)(_\d+)?(?:[/_-])")
_FACTOR = re.compile(r"\.lora\.(down|up)\.weight$")
WIDTHS = frozenset({320, 640, 768, 1024, 1280, 2560, 5120})
"""Sides of the modules of Stable Diffusion 1 and 2."""


def open_lora_wise(address: str, name: str, listing: Listing) -> RowSource | None:
    """The rows of all Parquet files that are laid out so, None when there are none."""
    parts, labels, refused = [], [], []
    seen: Counter[str] = Counter()
    for path in sorted(listing.files):
        config = _CONFIG.search(path)
        if not path.endswith(".parquet") or not config:
            continue
        try:
            rows, about = _file(path, listing.files[path], config, seen)
        except (LoRAFormatError, pa.ArrowException, OSError) as error:
            refused.append(Entry(path, listing.files[path].size or -1, 0.0, "", reason=f"No rows of LoRAs: {error}"))
            continue
        parts.append(rows)
        labels.append(about)
    return RowSource(address, name, parts, pd.concat(labels), refused) if parts else None


def _file(path: str, blob: Blob, config: re.Match[str], seen: Counter[str]) -> tuple[Rows, pd.DataFrame]:
    """seen: how often a name was given in the files before, which may be shards of one table."""
    rank, kind = int(config[2]), f"{config[1]}_{config[2]}{config[3] or ''}"
    with blob.glance() as file:
        table = pq.ParquetFile(file)
        shapes = _shapes(table, rank)
        about = table.read(columns=["label", "name"]).to_pandas()
        groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    starts = tuple(int(start) for start in np.cumsum([0, *groups]))
    lora = read_tensors({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, path, {})
    names = [f"{kind}/{name}_{label}" for name, label in zip(about["name"], about["label"], strict=True)]
    ids = []
    for id in names:
        seen[id] += 1
        ids.append(id if seen[id] == 1 else f"{id}#{seen[id]}")
    size = 8 * sum(int(np.prod(shape)) for shape in shapes.values())
    labels = {"images": about["label"], "subject": about["name"].astype(str), "range": config[1], "rank": rank}
    rows = Rows(Entry.of(lora, path=path, size=size), ids, f"{path}\0{blob.identity}", RowReader(blob, starts, rank))
    return rows, pd.DataFrame(labels).set_axis(ids)


def _shapes(table: pq.ParquetFile, rank: int) -> dict[str, tuple[int, int]]:
    """The shape of each tensor column, from how many numbers it has in all. Raises LoRAFormatError when it has none."""
    metadata = table.metadata
    counts: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            key = _key(column.path_in_schema)
            if _FACTOR.search(key):
                counts[key] = counts.get(key, 0) + column.num_values
    if not counts or not {"label", "name"} <= set(table.schema_arrow.names):
        raise LoRAFormatError("expected the columns label, name and one for each factor, as `….lora.down.weight`.")
    return {key: _shape(key, count / metadata.num_rows, rank) for key, count in counts.items()}


def _key(path: str) -> str:
    return re.sub(r"(\.list\.(?:element|item))+$", "", path)


def _shape(key: str, count: float, rank: int) -> tuple[int, int]:
    width = count / rank
    if width not in WIDTHS:
        raise LoRAFormatError(
            f"{key!r} has {count:g} numbers a row, {width:g} for each of {rank} ranks; expected one of"
            f" {', '.join(map(str, sorted(WIDTHS)))}, the widths of Stable Diffusion."
        )
    return (rank, int(width)) if ".down." in key else (int(width), rank)


@dataclass(frozen=True)
class RowReader:
    """Reads one row. starts: the first row of each group, and the number of all."""

    blob: Blob
    starts: tuple[int, ...]
    rank: int

    def __call__(self, number: int) -> LoRA:
        group = max(i for i, start in enumerate(self.starts[:-1]) if start <= number)
        row = _group(self, group).slice(number - self.starts[group], 1)
        tensors: dict[str, Tensor] = {}
        for key in row.column_names:
            values: Any = row[key].combine_chunks()
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = values.flatten()
            flat = torch.from_numpy(np.array(values.to_numpy(zero_copy_only=False), dtype=np.float32))
            tensors[key] = flat.reshape(_shape(key, flat.numel(), self.rank))
        return read_tensors(tensors, "row", {})


@lru_cache(maxsize=1)
def _group(reader: RowReader, group: int) -> pa.Table:
    """The factors of a group of rows; the last group is kept, for its rows are mostly read one after the other."""
    with reader.blob.open() as file:
        table = pq.ParquetFile(file)
        return table.read_row_group(group, columns=[n for n in table.schema_arrow.names if _FACTOR.search(n)])
