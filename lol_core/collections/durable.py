"""Files that are replaced whole or not at all, also when the machine stops in between."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from torch import Tensor


def replace_file(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> None:
    """`write` a new file, bring it to the disk, and put it in the place of `path` in one step. Raises OSError, and what
    `write` raises; the old file is then still there.

    shared: whether others may write it at the same time. Then the new file has a name of its own, which a kill leaves
    behind; otherwise the next writer takes what a kill left.
    """
    new = path.with_name(f"{path.name}.{uuid4().hex[:12]}.writing" if shared else f"{path.name}.writing")
    write_file(new, write)
    try:
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file and bring it to the disk. Raises OSError, and what `write` raises; nothing is then left of it."""
    try:
        write(path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can (Windows cannot, and does not need to)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors writes them: what several share, such as tied weights, each has for itself."""
    written, places = dict[str, Tensor](), set[int]()
    for key, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        written[key] = own.clone() if place in places else own
        places.add(place)
    return written


def plain_number(value: Any) -> Any:
    """For `json.dumps(default=…)`: NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def null_is_nan(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Numbers read from JSON, which has no NaN: null stands there in its place."""
    return {name: math.nan if number is None else number for name, number in numbers.items()}
