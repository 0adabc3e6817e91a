"""GGUF files of llama.cpp, by its own `gguf` package: quantised tensors are dequantised as llama.cpp does it."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats.container.tensor_file import TensorFile, blank, check_shape

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType
    from gguf.gguf_reader import ReaderTensor

NATIVE = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}
"""Types that are kept; all others are dequantised to float32."""
MAX_PARTS = 100_000
"""Parts of a header (names, values, shapes); adapters have a dozen a tensor, a whole model's vocabulary far more."""


def open_gguf(path: Path) -> TensorFile:
    """The tensors of a GGUF file. Raises LoRAFormatError when it is damaged, NotLowRankError when its header is longer
    than any adapter's.
    """
    try:
        tensors, metadata = _read_header(path)
    except LoRAFormatError:
        raise
    except Exception as error:  # the package raises anything at all on damaged files
        raise LoRAFormatError(
            f"Not a readable GGUF file ({type(error).__name__}: {error}). It is damaged or of another version; download"
            " it again."
        ) from error
    shapes = {key: check_shape(key, tuple(map(int, reversed(t.shape.tolist()))))[0] for key, t in tensors.items()}

    def get(key: str) -> Tensor:
        from gguf.quants import dequantize

        tensor, dtype = tensors[key], _dtype(key, tensors[key])
        if tensor.tensor_type.name in NATIVE:
            data = tensor.data.astype(tensor.data.dtype.newbyteorder("="))
        else:
            try:
                data = dequantize(tensor.data, tensor.tensor_type)
            except ValueError as error:
                raise LoRAFormatError(
                    f"{key!r} of the shape {shapes[key]} is no whole number of blocks of {tensor.tensor_type.name}"
                    f" ({error}). The file is damaged; download it again."
                ) from error
        return torch.from_numpy(data).to(dtype).reshape(shapes[key])

    def peek(key: str) -> Tensor:
        return get(key) if prod(shapes[key]) <= 1 else blank(shapes[key], _dtype(key, tensors[key]))

    return TensorFile(path, shapes, metadata, get, peek)


def _read_header(path: Path) -> tuple[dict[str, ReaderTensor], dict[str, str]]:
    from gguf.gguf_reader import GGUFReader  # takes a while to import, and few people need it

    class BoundedReader(GGUFReader):
        """Stops at the end of the file, where the package goes on with nothing for as long as the header wants."""

        parts = 0

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            self.parts += 1
            if self.parts > MAX_PARTS:
                raise NotLowRankError(
                    f"A GGUF file with more than {MAX_PARTS:,} values in its header: a whole model with its vocabulary,"
                    " not an adapter."
                )
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise ValueError(f"its header asks for byte {end:,} of {len(self.data):,}")
            return super()._get(int(offset), dtype, count, override_order)

    with np.errstate(all="ignore"):
        reader = BoundedReader(path)
    metadata = {}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and len(field.types) == 1:
            metadata[name] = str(field.contents())
    return {tensor.name: tensor for tensor in reader.tensors}, metadata


def _dtype(key: str, tensor: ReaderTensor) -> torch.dtype:
    """What its numbers become. Raises LoRAFormatError when the package cannot dequantise its type."""
    if dtype := NATIVE.get(tensor.tensor_type.name):
        return dtype
    if _dequantisable(tensor.tensor_type):
        return torch.float32
    raise LoRAFormatError(
        f"{key!r} has the GGUF type {tensor.tensor_type.name}, which cannot be turned into numbers here. Convert the"
        " adapter with --outtype f16."
    )


@lru_cache
def _dequantisable(kind: GGMLQuantizationType) -> bool:
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True
