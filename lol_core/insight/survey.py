"""What the weights of one LoRA say in few numbers: norms, effective ranks, a sketch of ΔW."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lol_core.core.geometry import effective_rank, singular_values_of_grams, spectrum
from lol_core.core.lora import LoRA
from lol_core.core.naming import common_names
from lol_core.core.stacks import CACHED, stacked
from lol_core.insight.blas import one_blas_thread
from lol_core.learning.models.modulewise import grams, product

SKETCH = 48
"""Numbers of a sketch."""
NOISE = 1e-6
"""Share of the largest singular value below which a Gram matrix knows nothing."""


@dataclass(frozen=True)
class Survey:
    """One LoRA's weights. norms: ‖ΔW‖ of each module; effective_ranks: of each module; sketch: (SKETCH,); range: the
    least and the largest number of its factors, as they are stored, (2,); problem: why it could not be read, else None.

    The order of modules is that of the entry's layers.
    """

    norms: np.ndarray
    effective_ranks: np.ndarray
    sketch: np.ndarray
    range: np.ndarray
    problem: str | None = None

    @property
    def norm(self) -> float:
        """‖ΔW‖ over all modules."""
        return float(np.linalg.norm(self.norms))


@lru_cache(maxsize=64)
def _projection(side: str, length: int, size: int) -> Tensor:
    """A fixed Gaussian matrix for one side of all modules of one length: (length, size) float32."""
    seed = int.from_bytes(hashlib.sha256(f"{side} {length}".encode()).digest()[:6])
    return torch.randn(length, size, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=64)
def _signs(modules: tuple[str, ...], size: int) -> np.ndarray:
    """±1 for each module and number of a sketch, drawn from the module's common name: (L, size)."""
    bits = b"".join(hashlib.shake_128(module.encode()).digest(size) for module in modules)
    return (np.frombuffer(bits, np.uint8) & 1).reshape(-1, size) * np.float32(2) - 1


@dataclass(frozen=True)
class _Products:
    """What a survey needs of modules of one rank: all that is computed from the factors themselves.

    indices: their places in the LoRA; names: their common ones; scales: (L,); grams: UᵀU and VᵀV, (2, L, r, r) float64;
    images: Uᵀ and Vᵀ by the Gaussian matrices of their sides, (2, L, r, size) float32, whose rounding is far below the
    error of a sketch.
    """

    indices: list[int]
    names: tuple[str, ...]
    scales: np.ndarray
    grams: Tensor
    images: Tensor


def _products(lora: LoRA, size: int) -> Iterator[_Products]:
    blocks: dict[tuple[int, int], dict[tuple[object, ...], list[int]]] = {}
    seen: Counter[int] = Counter()
    common = common_names(lora.names)
    for i, layer in enumerate(lora.layers):
        U, V = layer.U, layer.V
        rank = U.shape[1]
        alike = U.shape, V.shape, U.dtype, V.dtype, U.stride(), V.stride()
        block = seen[rank] * rank**2 // CACHED  # whose Gram matrices stay in the processor's cache
        blocks.setdefault((rank, block), {}).setdefault(alike, []).append(i)
        seen[rank] += 1
    for (rank, _), stacks in blocks.items():
        indices = [i for stack in stacks.values() for i in stack]
        squares = torch.empty(2, len(indices), rank, rank, dtype=torch.float64)
        images = torch.empty(2, len(indices), rank, size)
        for name, side, gram, image in zip("UV", ("left", "right"), squares, images, strict=True):
            done = 0
            for places in stacks.values():
                for stack in stacked([getattr(lora.layers[i], name) for i in places]):
                    some = slice(done, done := done + len(stack))
                    single = stack.float()
                    product(single.mT, _projection(side, stack.shape[1], size), out=image[some])
                    (gram[some],) = grams(single if stack.dtype.itemsize < 4 else stack)
        scales = np.array([lora.layers[i].scale for i in indices])
        names = tuple(common[i] for i in indices)
        yield _Products(indices, names, scales, squares, images)


def _sketch(products: _Products) -> np.ndarray:
    left, right = products.images.numpy()
    modules = np.einsum("lrs,lrs->ls", left, right) * _signs(products.names, left.shape[-1])
    return np.asarray(products.scales @ modules)


def sketch(lora: LoRA, size: int = SKETCH) -> np.ndarray:
    """A random linear image of all ΔW, (size,): s_j = Σ_modules ε_j gᵀ ΔW h with fixed Gaussian g and h for each length
    of a side, and signs ε drawn from the module's name, the same for all forms of a file.

    It depends on ΔW alone, not on the factors; the mean of s_j² is ‖ΔW‖² in expectation, and as the map is linear
    ‖s_a − s_b‖ / √size estimates ‖ΔW_a − ΔW_b‖, with a relative standard error of about √(3 / size) at most
    (for one module of rank one; √(1 / 2 size) where many singular values share the norm).
    """
    return np.sum([np.zeros(size), *(_sketch(products) for products in _products(lora, size))], axis=0)


def _spectra(products: _Products) -> np.ndarray:
    """Singular values of every module, (L, r). Those below NOISE of the largest are rounding, and zero here."""
    values = singular_values_of_grams(*products.grams).numpy()
    return abs(products.scales)[:, None] * values * (values > NOISE * values.max(-1, keepdims=True))


def _effective_ranks(values: np.ndarray) -> np.ndarray:
    """`geometry.effective_rank` of every row: (L, r) → (L,)."""
    total = values.sum(-1, keepdims=True)
    share = values / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(-1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0)


@one_blas_thread()
@np.errstate(over="ignore", invalid="ignore")
def survey(lora: LoRA) -> Survey:
    """Survey one LoRA, read with its weights, modules of one shape at a time. O((n + m) r (r + SKETCH)) a module.

    A norm too large for float32 is infinite, and the sketch then no number.
    """
    norms, ranks = (np.zeros(len(lora.layers), np.float32) for _ in range(2))
    total = np.zeros(SKETCH)
    for products in _products(lora, SKETCH):
        values = _spectra(products)
        norms[products.indices] = np.linalg.norm(values, axis=-1)
        ranks[products.indices] = _effective_ranks(values)
        total += _sketch(products)
    for i, layer in enumerate(lora.layers):
        if layer.factor_shapes:  # a Kronecker product's pair has the norm of ΔW, but not its singular values
            ranks[i] = effective_rank(spectrum(layer))
    return Survey(norms, ranks, total.astype(np.float32), np.array(lora.range, np.float32))
