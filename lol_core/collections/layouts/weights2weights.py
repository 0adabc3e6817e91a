"""weights2weights: `hf://snap-research/weights2weights/weights_datasets/identities`, all LoRAs as rows of one matrix.

Written from their code, and tested on a matrix made the same way; never run on the 26 GB themselves. A row is the 128
flattened tensors in the order of `weight_dimensions.pt`, which lies in another folder of theirs, `files`; where it is
not at hand, in that of the names of Stable Diffusion 1's attention, which its widths fit. Rank 1, alpha 27. Their
labels are a pickled table, which is read without running it; or that table as `labels.parquet`. Its rows are joined by
their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from typing import Any

import orjson
import pandas as pd
import torch

from lol_core.collections.blob import Blob
from lol_core.collections.entry import Entry
from lol_core.collections.files import Listing
from lol_core.collections.layouts.beside import saved
from lol_core.collections.layouts.pickled_table import read_table
from lol_core.collections.remote_files import HubFile
from lol_core.collections.row_source import Rows, RowSource
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, ZooError
from lol_core.formats import read_tensors

MATRICES = ("all_weights.pt", "dog_weights.pt")
TABLES = ("labels.parquet", "identity_df.pt")
CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 27}
_CONVERT = (
    "Its labels are a pickled table, {name}, that names more than numbers and texts, so it was not read."
    " Where you trust it, load it where it was made and save it as labels.parquet beside it."
)


def open_weights2weights(address: str, name: str, listing: Listing) -> RowSource | None:
    """The rows of the matrix, None when there is none.

    Raises ZooError when matrix and dimensions do not fit.
    """
    matrix = _place(listing, *MATRICES)
    if matrix is None:
        return None
    dimensions = _place(listing, "weight_dimensions.pt")
    shapes = _dimensions(saved(_content(listing.files[dimensions]))) if dimensions else stable_diffusion()
    config = _place(listing, "adapter_config.json")
    try:
        settings = orjson.loads(_content(listing.files[config])) if config else CONFIG
    except ValueError as error:
        raise ZooError(f"{config}: no JSON ({error}). Its alpha is needed; take the file anew.") from error
    blob = listing.files[matrix]
    try:
        reader = _reader(blob, shapes, settings)
    except LoRAFormatError as error:
        if dimensions is None:  # some other file of that name
            return None
        raise ZooError(f"{matrix}: {error}") from error
    folder = matrix[: -len(matrix.rpartition("/")[2])]
    table, pickled = (folder + name if folder + name in listing.files else None for name in TABLES)
    labels, remarks = pd.DataFrame(index=range(reader.count)), []
    if table:
        labels = pd.read_parquet(BytesIO(_content(listing.files[table])))
    elif pickled:
        read = read_table(_content(listing.files[pickled]))
        if read is None or len(read) != reader.count:
            remarks.append(_CONVERT.format(name=pickled.rpartition("/")[2]))
        else:
            labels = read
    if len(labels) != reader.count:
        raise ZooError(f"{table}: {len(labels):,} rows for {reader.count:,} LoRAs. Convert the table of this matrix.")
    files = labels["file"].astype(str) if "file" in labels.columns else pd.Series(dtype=str)
    ids = list(files) if len(files) and files.is_unique else [f"row_{i:05d}" for i in range(reader.count)]
    lora = read_tensors({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, matrix, settings)
    rows = Rows(Entry.of(lora, path=matrix, size=reader.width * 4), ids, f"{matrix}\0{blob.identity}", reader)
    return RowSource(address, name, [rows], labels.set_axis(ids), remarks=remarks)


def _place(listing: Listing, *names: str) -> str | None:
    paths = sorted(listing.files)
    return next((path for name in names for path in paths if path.rpartition("/")[2] == name), None)


def _content(blob: Blob) -> bytes:
    with blob.open() as file:
        return file.read()


def stable_diffusion() -> dict[str, tuple[int, ...]]:
    """Tensor name → shape of rank 1 on the queries and values of Stable Diffusion 1, in the order of the names."""
    down = [(f"down_blocks.{i}.attentions.{j}", 320 * 2**i) for i in range(3) for j in range(2)]
    up = [(f"up_blocks.{i}.attentions.{j}", 1280 // 2 ** (i - 1)) for i in range(1, 4) for j in range(3)]
    shapes: dict[str, tuple[int, ...]] = {}
    for place, width in (*down, ("mid_block.attentions.0", 1280), *up):
        for module in ("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v"):
            name = f"base_model.model.{place}.transformer_blocks.0.{module}"
            shapes[f"{name}.lora_A.weight"] = (1, 768 if module == "attn2.to_v" else width)
            shapes[f"{name}.lora_B.weight"] = (width, 1)
    return shapes


def _dimensions(loaded: Any) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, in the order in which they stand in a row."""
    if not isinstance(loaded, dict) or not loaded:
        raise ZooError("weight_dimensions.pt: expected a dictionary from tensors to (count, shape).")
    return {str(key): tuple(value[1]) for key, value in loaded.items()}


def _reader(blob: Blob, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> RowReader:
    """Where the rows lie in the file, without reading them. Raises LoRAFormatError when it holds no such matrix."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    blob = replace(blob, unlimited=True) if isinstance(blob, HubFile) else blob
    width = sum(map(prod, shapes.values()))
    try:
        with blob.glance() as file, FakeTensorMode():
            matrix = torch.load(file, map_location="cpu", weights_only=True)
    except LoRAFormatError:
        raise
    except Exception as error:  # damaged pickles raise anything at all
        raise LoRAFormatError("not a readable PyTorch file. It is damaged, or of another kind.") from error
    if (
        not isinstance(matrix, torch.Tensor)
        or matrix.dim() != 2
        or matrix.shape[1] != width
        or not matrix.is_contiguous()
    ):
        shape = tuple(matrix.shape) if isinstance(matrix, torch.Tensor) else type(matrix).__name__
        raise LoRAFormatError(f"holds {shape}; expected a matrix of {width:,} columns, one for each number.")
    start = int(matrix.untyped_storage()._checkpoint_offset or 0) + int(matrix.storage_offset()) * matrix.element_size()
    return RowReader(blob, start, int(matrix.shape[0]), width, matrix.dtype, dict(shapes), dict(config))


@dataclass(frozen=True)
class RowReader:
    """Reads one row. start: of the first row in the file, in bytes; count: of the rows; width: numbers of each."""

    blob: Blob
    start: int
    count: int
    width: int
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]

    def __call__(self, number: int) -> LoRA:
        length = self.width * self.dtype.itemsize
        with self.blob.glance() as file:
            file.seek(self.start + number * length)
            data = bytearray(file.read(length))
        if len(data) < length:
            raise LoRAFormatError("The matrix is cut off within this row. Download it again.")
        parts = torch.frombuffer(data, dtype=self.dtype).split([prod(shape) for shape in self.shapes.values()])
        tensors = {key: part.reshape(shape) for (key, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return read_tensors(tensors, "row", self.config)
