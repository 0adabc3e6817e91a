"""Products of many modules at once: of their maps with the factors of a batch, of their invariants with the weight of a
head, and of factors with small matrices.

On a processor the first two go through so many modules at a time as stay in its cache, in all the forms that they take,
and make in the backward pass again what they made in the forward pass: a batch of a few dozen LoRAs is hundreds of
megabytes, and memory that is claimed anew at every step costs as much as the multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CACHED = 2**18
"""Numbers that are worked on at a time: a megabyte in float32."""

WIDER = {torch.float32: torch.complex128, torch.float16: torch.float64, torch.bfloat16: torch.float64}
"""A type whose numbers have the bytes of four."""

THIN = 16
"""Columns that a matrix needs to be multiplied at a good rate."""


def left_product(maps: Tensor, factors: Tensor) -> Tensor:
    """Each module's map times its factors, (L, n', n) and (B, L, n, r) → (B, L, n', r): L products of (n' × n) with
    (n × B r). A broadcast over the batch would copy the maps B times. It lies in memory as (L, B, r, n').
    """
    B, _, _, r = factors.shape
    if factors.is_cpu and not factors.requires_grad:
        rows: Tensor = _LeftProduct.apply(maps, factors)
    else:
        rows = torch.bmm(factors.permute(1, 2, 0, 3).flatten(2).mT, maps.mT)
    return rows.unflatten(1, (B, r)).permute(1, 0, 3, 2)


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
        U, V = (factor.permute(1, 0, 3, 2).contiguous() for factor in (self.U, self.V))
        image: Tensor = _ProductsImage.apply(U, V, weight)
        return image


def right_products(factors: Tensor, matrices: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """U Q, (B, L, n, r) and (B, L, r, r), of some LoRAs at a time: which, and (b, L, n, r)."""
    rows, r = _rows_at_once(factors), factors.shape[-1]
    repeated = matrices.new_zeros(*matrices.shape[:2], rows, r, rows, r)
    repeated.diagonal(dim1=2, dim2=4).copy_(matrices.unsqueeze(-1))
    repeated = repeated.flatten(4).flatten(2, 3)
    for some in _loras(factors):
        yield some, (_wide(factors[some], rows) @ repeated[some]).view(factors[some].shape)


def cross_products(factors: Tensor, templates: Tensor) -> Tensor:
    """Uᵀ𝐔 of every LoRA with the same templates: (B, L, n, r) and (L, n, r) → (B, L, r, r)."""
    rows, r = _rows_at_once(factors), factors.shape[-1]
    templates = _wide(templates, rows)
    blocks = torch.cat([_wide(factors[some], rows).mT @ templates for some in _loras(factors)])
    return blocks.unflatten(3, (rows, r)).unflatten(2, (rows, r)).diagonal(dim1=2, dim2=4).sum(-1)


def _rows_at_once(factors: Tensor) -> int:
    """How many rows of thin factors are multiplied as one: by a matrix that is repeated along a diagonal, or for a
    matrix of blocks of which those on the diagonal are of use. BLAS computes products of few columns badly.
    """
    n, r = factors.shape[-2:]
    return math.gcd(n, THIN // r) if factors.is_cpu and 0 < r <= THIN else 1


def _wide(factors: Tensor, rows: int) -> Tensor:
    """(…, n, r) → (…, n / rows, rows r)."""
    n, r = factors.shape[-2:]
    return factors.reshape(*factors.shape[:-2], n // rows, rows * r)


def _loras(factors: Tensor) -> list[slice]:
    """Some LoRAs of (B, L, n, r) at a time: a product copies for each what it has in common with the others. All where
    there is no cache to stay in, and where there are none.
    """
    if not factors.is_cpu or not len(factors):
        return [slice(len(factors))]
    return list(_places(len(factors), factors[0].numel()))


def _places(count: int, numbers: int) -> Iterator[slice]:
    """Runs of `count` things, of `numbers` numbers each, that are worked on at a time."""
    size = max(1, CACHED // max(1, numbers))
    return (slice(at, min(at + size, count)) for at in range(0, count, size))


def _columns(factors: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(B, L, n, r) → (modules, n, B r) of some modules at a time, always in the same memory."""
    B, L, n, r = factors.shape
    modules = list(_places(L, B * n * r))
    memory = factors.new_empty(modules[0].stop, n, B, r)
    wide = WIDER.get(factors.dtype)
    if wide is None or r % 4 or factors.storage_offset() % 4 or not factors.is_contiguous():
        source, target = factors, memory
    else:  # rows of r numbers move as one
        source, target = factors.view(wide), memory.view(wide)
    for some in modules:
        count = some.stop - some.start
        target[:count].copy_(source[:, some].permute(1, 2, 0, 3))
        yield some, memory[:count].flatten(2)


class _LeftProduct(torch.autograd.Function):
    """maps (L, n', n), factors (B, L, n, r), which get no gradient → (L, B r, n')."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(maps, factors)
        rows = factors.new_empty(len(maps), len(factors) * factors.shape[-1], maps.shape[1])
        for some, columns in _columns(factors):
            torch.bmm(columns.mT, maps[some].mT, out=rows[some])
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        maps, factors = ctx.saved_tensors
        of_maps = torch.empty_like(maps)
        for some, columns in _columns(factors):
            torch.bmm(gradients[0][some].mT, columns.mT, out=of_maps[some])
        return of_maps, None


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
