"""What the weights of one LoRA say in few numbers: norms, effective ranks, a sketch of ΔW."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lol_core.core.geometry import effective_rank, spectrum
from lol_core.core.lora import LoRA

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
    """A fixed Gaussian matrix for one side of all modules of one length: (length, size)."""
    seed = int.from_bytes(hashlib.sha256(f"{side} {length}".encode()).digest()[:6])
    return torch.randn(length, size, generator=torch.Generator().manual_seed(seed)).double()


@lru_cache(maxsize=100_000)
def _signs(module: str, size: int) -> np.ndarray:
    """±1 for each number of a sketch, drawn from a module's name."""
    bits = np.frombuffer(hashlib.shake_128(module.encode()).digest(size), np.uint8)
    return np.where(bits % 2, 1.0, -1.0)


@dataclass(frozen=True)
class _Stack:
    """Modules of one shape and rank: U (L, n, r) and V (L, m, r) in float64, scales folded in; indices: their places in
    the LoRA.
    """

    indices: list[int]
    names: list[str]
    U: Tensor
    V: Tensor


def _stacks(lora: LoRA) -> Iterator[_Stack]:
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for i, layer in enumerate(lora.layers):
        shapes.setdefault((layer.n, layer.m, layer.rank), []).append(i)
    for indices in shapes.values():
        layers = [lora.layers[i] for i in indices]
        scales = torch.tensor([layer.scale for layer in layers], dtype=torch.float64)
        U, V = (torch.stack([getattr(y, side) for y in layers]).double() for side in ("U", "V"))
        yield _Stack(indices, [layer.name for layer in layers], U * scales[:, None, None], V)


def _sketch(stack: _Stack, size: int) -> np.ndarray:
    _, n, _ = stack.U.shape
    left = stack.U.mT @ _projection("left", n, size)
    right = stack.V.mT @ _projection("right", stack.V.shape[1], size)
    signs = np.stack([_signs(name, size) for name in stack.names])
    return np.asarray(((left * right).sum(1).numpy() * signs).sum(0))


def sketch(lora: LoRA, size: int = SKETCH) -> np.ndarray:
    """A random linear image of all ΔW, (size,): s_j = Σ_modules ε_j gᵀ ΔW h with fixed Gaussian g and h for each length
    of a side, and signs ε drawn from the module's name.

    It depends on ΔW alone, not on the factors; the mean of s_j² is ‖ΔW‖² in expectation, and as the map is linear
    ‖s_a − s_b‖ / √size estimates ‖ΔW_a − ΔW_b‖, with a relative standard error of about √(3 / size) at most
    (for one module of rank one; √(1 / 2 size) where many singular values share the norm).
    """
    return np.sum([np.zeros(size), *(_sketch(stack, size) for stack in _stacks(lora))], axis=0)


def _spectra(stack: _Stack) -> Tensor:
    """Singular values of every module of a stack, (L, r), from the r × r Gram matrices of its factors in float64:
    σ² are the eigenvalues of LᵀG_V L with G_U = L Lᵀ. Values below NOISE of the largest are rounding, and zero here.
    """
    G_U, G_V = (factor.mT @ factor for factor in (stack.U, stack.V))
    size = torch.diagonal(G_U, dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
    eye = torch.eye(G_U.shape[-1], dtype=torch.float64)
    L, failed = torch.linalg.cholesky_ex(G_U + 1e-14 * size[:, None, None] * eye)
    if failed.any():  # beyond what the small shift mends: take the root from the eigenvalues
        values, vectors = torch.linalg.eigh(G_U)
        L = torch.where((failed > 0)[:, None, None], vectors * values.clamp(min=0).sqrt()[:, None, :], L)
    values = torch.linalg.eigvalsh(L.mT @ G_V @ L).clamp(min=0).sqrt()
    alive = (G_U.flatten(1).any(1) & G_V.flatten(1).any(1))[:, None]
    return values * (alive & (values > NOISE * values.amax(-1, keepdim=True)))


def _effective_ranks(values: Tensor) -> Tensor:
    """`geometry.effective_rank` of every row: (L, r) → (L,)."""
    total = values.sum(-1, keepdim=True)
    share = torch.where(total > 0, values / total, torch.zeros_like(values))
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total[:, 0] > 0, entropy.exp(), torch.zeros_like(entropy))


def survey(lora: LoRA) -> Survey:
    """Survey one LoRA, read with its weights, modules of one shape at a time. O((n + m) r (r + SKETCH)) a module."""
    norms, ranks = (np.zeros(len(lora.layers), np.float32) for _ in range(2))
    total = np.zeros(SKETCH)
    for stack in _stacks(lora):
        kronecker = [i for i in stack.indices if lora.layers[i].factor_shapes]
        values = _spectra(stack)
        norms[stack.indices], ranks[stack.indices] = values.norm(dim=-1).numpy(), _effective_ranks(values).numpy()
        for i in kronecker:  # their pair has the norm of ΔW, but not its singular values
            ranks[i] = effective_rank(spectrum(lora.layers[i]))
        total += _sketch(stack, SKETCH)
    return Survey(norms, ranks, total.astype(np.float32), _range(lora))


def _range(lora: LoRA) -> np.ndarray:
    slots = [slot for layer in lora.layers for slot in layer.parametrisation.slots.values()]
    bounds = torch.stack([torch.stack(slot.float().aminmax()) for slot in slots if slot.numel()])
    return np.array([bounds[:, 0].min(), bounds[:, 1].max()], np.float32)
