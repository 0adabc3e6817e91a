"""A pandas table that PyTorch saved, read without running any of it.

A pickle names what is to be called. PyTorch's restricted unpickler calls what is allowed only; here each name means one
of a few things of this file, which build plain arrays, and any other name ends the reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.errors import LoRAFormatError

_NUMBERS = re.compile(r"[biuf][1248]|O8")


def read_table(content: bytes) -> pd.DataFrame | None:
    """The columns of numbers and texts of a table; None where there is no table that is understood."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(BytesIO(content))
        meant: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_MEANT[name.partition(".")[0], name.rpartition(".")[2]], name) for name in names
        ]
        with torch.serialization.safe_globals(meant), BytesIO(content) as file:
            frame = torch.load(file, weights_only=True)
        return frame.table() if isinstance(frame, _Frame) else None
    except Exception:  # damaged pickles raise anything at all
        return None


class _DType:
    def __init__(self, code: str, *_: object):
        if not _NUMBERS.fullmatch(code):
            raise LoRAFormatError(f"{code} is no type of numbers or objects.")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    values: np.ndarray

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, by_columns, data = state
        if isinstance(data, bytes):
            flat = np.frombuffer(data, dtype.numpy)
        else:
            flat = np.empty(len(data), object)
            flat[:] = data
        self.values = flat.reshape(shape, order="F" if by_columns else "C")


class _Blocks:
    """Values of columns of one type each, and the axes: columns, rows."""

    def __init__(self, blocks: Sequence[Any] = (), axes: Sequence[Any] = ()):
        self.blocks, self.axes = blocks, axes

    def __setstate__(self, state: Any) -> None:
        """As versions before 1.3 have it."""
        kept = state[3]["0.14.1"]
        self.axes = kept["axes"]
        self.blocks = [(block["values"], block["mgr_locs"]) for block in kept["blocks"]]


class _Frame:
    blocks: _Blocks

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.blocks = state["_mgr"] if "_mgr" in state else state["_data"]

    def table(self) -> pd.DataFrame:
        names = [str(name) for name in self.blocks.axes[0]["data"].values]
        columns: dict[int, np.ndarray] = {}
        for array, places in self.blocks.blocks:
            numbers = range(len(names))[places] if isinstance(places, slice) else places.values.tolist()
            columns |= zip(numbers, array.values, strict=True)
        return pd.DataFrame({names[number]: columns[number] for number in sorted(columns)}).infer_objects()


def _marker(*_: object) -> None:
    return None


_PANDAS: dict[str, Callable[..., Any]] = {
    "DataFrame": _Frame,
    "BlockManager": _Blocks,
    "_unpickle_block": lambda values, places, *_: (values, places),
    "_new_Index": lambda _, parts: parts,
    **dict.fromkeys(("Index", "RangeIndex", "Int64Index"), _marker),
}
_NUMPY: dict[str, Callable[..., Any]] = {"_reconstruct": lambda *_: _Array(), "ndarray": _Array, "dtype": _DType}
_MEANT: dict[tuple[str, str], Callable[..., Any]] = {
    **{("pandas", name): made for name, made in _PANDAS.items()},
    **{("numpy", name): made for name, made in _NUMPY.items()},
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
    ("builtins", "slice"): slice,
    ("__builtin__", "slice"): slice,
}
