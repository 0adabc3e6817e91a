"""Products of many modules at once: of their maps with the factors of a batch, of their invariants with the weight of a
head, and of factors with small matrices.

On a processor invariants are made for so many modules at a time as stay in its cache, and in the backward pass again:
those of a batch of a few dozen LoRAs are hundreds of megabytes, and memory that is claimed anew at every step costs as
much as the multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from lol_core.core.batch import turned
from lol_core.core.stacks import by_module

CACHED = 2**18
"""Numbers that are worked on at a time: a megabyte in float32."""

NUMPY: dict[torch.dtype, DTypeLike] = {torch.float32: np.float32, torch.float64: np.float64}
"""Types in which NumPy multiplies."""

THIN = 8
"""Rows below which it is soon done to lay a matrix out anew."""


def left_product(maps: Tensor, factors: Tensor) -> Tensor:
    """Each module's map times its factors, (L, n', n) and (B, L, n, r) → (B, L, n', r): L products of (n' × n) with
    (n × B r), which read the factors of a `Batch` as they lie. A broadcast over the batch would copy the maps B times.
    """
    B, _, _, r = factors.shape
    columns = turned(factors).flatten(1, 2).mT
    return torch.bmm(maps, columns).unflatten(2, (B, r)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class Products:
    """The products U Vᵀ of some modules, U (B, L, n, r) and V (B, L, m, r), as a matrix (B, L n m) that need not be
    made to be multiplied.
    """

    U: Tensor
    V: Tensor

    def made(self) -> Tensor:
        """(B, L n m)."""
        return (self.U @ self.V.mT).flatten(1)

    def __matmul__(self, weight: Tensor) -> Tensor:
        """weight: (L n m, outputs) → (B, outputs)."""
        if not self.U.is_cpu:
            return self.made() @ weight
        U, V = (turned(factor).contiguous() for factor in (self.U, self.V))
        image: Tensor = _ProductsImage.apply(U, V, weight)
        return image


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b for many small matrices, (…, n, k) and (…, k, m) → (…, n, m), written to `out` where that is given.

    On a processor, unless a gradient is asked for, by NumPy: it goes through thin matrices two to three times as fast
    as PyTorch, if on one thread, and writes a result where it belongs.
    """
    tensors = [a, b] if out is None else [a, b, out]
    learning = torch.is_grad_enabled() and any(of.requires_grad for of in tensors)
    if not learning and all(of.is_cpu and of.dtype in NUMPY for of in tensors):
        first, second, *target = (of.detach().numpy() for of in tensors)
        soon_laid = first.shape[-2] < THIN or first.flags.c_contiguous
        if second.ndim == 2 and soon_laid and all(of.flags.c_contiguous for of in target):
            made = _rows_product(first, second, *target)
        else:
            made = np.matmul(first, second, *target)
        return torch.from_numpy(made) if out is None else out
    of_torch = a @ b
    return of_torch if out is None else out.copy_(of_torch)


def _rows_product(many: np.ndarray, one: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(…, n, k) @ (k, m) as one product of all rows, for which BLAS prepares the one matrix once and not many times."""
    count = prod(many.shape[:-1])
    rows = np.ascontiguousarray(many).reshape(count, many.shape[-1])
    made = np.matmul(rows, one, out=None if out is None else out.reshape(count, one.shape[1]))
    return made.reshape(*many.shape[:-1], one.shape[1])


def grams(*factors: Tensor) -> list[Tensor]:
    """FᵀF in float64 of each: (…, n, r) → (…, r, r). On a processor they are widened so many at a time as stay in the
    cache, in the order in which they lie.
    """
    most = max((of.shape[-2] * of.shape[-1] for of in factors), default=0)
    memory = np.empty(max(CACHED // 4, most))
    return [_grams(of, memory) if of.is_cpu and not of.requires_grad else _plain_grams(of) for of in factors]


def _plain_grams(factors: Tensor) -> Tensor:
    wide = factors.double()
    return wide.mT @ wide


def _grams(factors: Tensor, memory: np.ndarray) -> Tensor:
    """memory: numbers in float64, of which the copies are made: what is claimed anew takes as long again."""
    if by_module(factors):
        return _grams(factors.transpose(0, 1), memory).transpose(0, 1)
    *lead, n, r = factors.shape
    factors = factors.detach().reshape(-1, n, r)
    by_column = factors.stride(1) == 1 != factors.stride(2)
    made = torch.empty(len(factors), r, r, dtype=torch.float64)
    lying = factors.mT if by_column else factors
    array = lying.numpy() if lying.dtype in NUMPY else None
    size = max(1, len(memory) // max(1, n * r))
    for at in range(0, len(lying), size):
        some = slice(at, at + size)
        # 16 bits become 64 number by number
        part = lying[some].float().numpy() if array is None else array[some]
        wide = memory[: part.size].reshape(part.shape)
        wide[...] = part
        _of_rows(wide if by_column else wide.swapaxes(1, 2), made[some])
    return made.view(*lead, r, r)


def _of_rows(rows: np.ndarray, out: Tensor) -> None:
    """The products of rows (k, r, n) with each other, written to `out` (k, r, r). NumPy gives a product of a matrix
    with itself to a routine that computes half of it. With few rows that may take three times as long: these are
    multiplied a half at a time where they lie one after another, and by PyTorch elsewhere.
    """
    if rows.shape[1] > THIN:
        np.matmul(rows, rows.swapaxes(1, 2), out=out.numpy())
    elif rows.flags.c_contiguous:
        half = (rows.shape[1] + 1) // 2
        for some in (slice(half), slice(half, None)):
            np.matmul(rows[:, some], rows.swapaxes(1, 2), out=out.numpy()[:, some])
    else:
        of_rows = torch.from_numpy(rows)
        torch.bmm(of_rows, of_rows.mT, out=out)


def _places(count: int, numbers: int) -> Iterator[slice]:
    """Runs of `count` things, of `numbers` numbers each, that are worked on at a time."""
    size = max(1, CACHED // max(1, numbers))
    return (slice(at, min(at + size, count)) for at in range(0, count, size))


class _ProductsImage(torch.autograd.Function):
    """U (L, B, r, n), V (L, B, r, m), weight (L n m, outputs) → (B, outputs). So lying, the small products of the
    backward pass are of few rows, (r × n) with (n × m), and not of few columns, which BLAS computes badly.
    """

    @staticmethod
    def forward(ctx: Any, U: Tensor, V: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(U, V, weight)
        image = weight.new_zeros(U.shape[1], weight.shape[1])
        for some, rows in _of_weight(U, V, weight):
            image.addmm_(_products(U[some], V[some]), weight[rows])
        return image

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, V, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_U, of_V, of_weight = torch.empty_like(U), torch.empty_like(V), torch.empty_like(weight)
        for some, rows in _of_weight(U, V, weight):
            torch.mm(_products(U[some], V[some]).T, gradient, out=of_weight[rows])
            # A copy stays in the cache while the product reads its columns
            of_products = gradient @ weight[rows].clone().T
            count = some.stop - some.start
            square = of_products.unflatten(1, (count, U.shape[3], V.shape[3])).transpose(0, 1).flatten(0, 1)
            torch.bmm(V[some].flatten(0, 1), square.mT, out=of_U[some].flatten(0, 1))
            torch.bmm(U[some].flatten(0, 1), square, out=of_V[some].flatten(0, 1))
        return of_U, of_V, of_weight


def _of_weight(U: Tensor, V: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Some modules at a time, and their rows of the weight."""
    L, B, _, n = U.shape
    each = n * V.shape[3]
    for some in _places(L, each * max(B, weight.shape[1])):
        yield some, slice(some.start * each, some.stop * each)


def _products(U: Tensor, V: Tensor) -> Tensor:
    """(L, B, r, n), (L, B, r, m) → (B, L n m)."""
    L, B = U.shape[:2]
    return torch.bmm(U.flatten(0, 1).mT, V.flatten(0, 1)).view(L, B, -1).transpose(0, 1).flatten(1)
