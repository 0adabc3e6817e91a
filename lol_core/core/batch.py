"""From LoRAs to the tensors a LoL model reads: shared modules, stacked by shape, ranks padded with zero columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lol_core.core.errors import ModelError
from lol_core.core.header import ByIdentity, HasHeaders, Kind, ModuleHeader, distinct_headers
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.naming import common_names
from lol_core.core.parametrisation import Kronecker, LowRank, Magnitude, Parametrisation, Whole


@dataclass(frozen=True)
class WeightSpec:
    """What a LoL model takes as input: the ordered modules that all LoRAs of a zoo share.

    mixed_ranks: some module occurs with different ranks, which only rank-agnostic models take.
    """

    modules: tuple[ModuleHeader, ...]
    mixed_ranks: bool = False

    @cached_property
    def rank(self) -> int:
        return max(module.rank for module in self.modules)

    @cached_property
    def groups(self) -> tuple[tuple[tuple[int, int], tuple[int, ...]], ...]:
        """((n, m), indices of the modules of that shape), in order of first appearance. Kronecker products of other
        factor shapes are groups of their own, even where n and m agree.
        """
        indices_of: dict[tuple[Any, ...], list[int]] = {}
        for i, module in enumerate(self.modules):
            indices_of.setdefault((module.n, module.m, module.factor_shapes), []).append(i)
        return tuple(((n, m), tuple(indices)) for (n, m, _), indices in indices_of.items())

    @property
    def magnitudes(self) -> int:
        return sum(module.magnitude for module in self.modules)

    @property
    def parameters(self) -> int:
        """Numbers in the factors of one LoRA at the largest ranks."""
        return sum((module.n + module.m) * module.rank for module in self.modules)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WeightSpec:
        return cls(tuple(map(ModuleHeader.from_dict, data["modules"])), data["mixed_ranks"])

    def misfits(self, member: HasHeaders) -> list[str]:
        """Why a LoRA cannot be read under this specification: one sentence for each kind of problem, none when it fits.
        Its header suffices.
        """
        return list(_misfits(ByIdentity(self), ByIdentity(member.headers)))


@lru_cache(maxsize=256)
def _misfits(spec: ByIdentity[WeightSpec], headers: ByIdentity[Sequence[ModuleHeader]]) -> tuple[str, ...]:
    named = {module.name: module for module in headers.of}
    commonly = dict(zip(common_names(named), named.values(), strict=True))
    names = common_names(module.name for module in spec.of.modules)
    modules = {
        module: named.get(module.name) or commonly.get(name)
        for module, name in zip(spec.of.modules, names, strict=True)
    }
    problems = []
    missing = [module.name for module, own in modules.items() if own is None]
    if named and len(missing) == len(modules):
        problems.append(
            f"{len(missing)} of {len(modules)} modules are missing, first {missing[0]}: it adapts others, such as"
            f" {next(iter(named))}, so it is most likely of another base model."
        )
    elif missing:
        problems.append(f"{len(missing)} of {len(modules)} modules are missing, first {missing[0]}.")
    reasons = (module.misfit(own) for module, own in modules.items() if own is not None)
    if reason := next((reason for reason in reasons if reason), None):
        problems.append(reason)
    return tuple(problems)


def shared_spec(members: Iterable[HasHeaders]) -> WeightSpec:
    """The specification of the modules common to all members (common name, shapes and DoRA magnitude equal), in the
    order of the first one and as it calls them.

    Raises ModelError when they share none.
    """
    shared: dict[ModuleHeader, ModuleHeader] | None = None
    ranks: dict[ModuleHeader, set[int]] = {}
    for headers in distinct_headers(members):
        names = common_names(module.name for module in headers)
        own = {replace(module.update, name=name): module for module, name in zip(headers, names, strict=True)}
        shared = (
            own if shared is None else {key: _either(first, own[key]) for key, first in shared.items() if key in own}
        )
        for key in shared:
            ranks.setdefault(key, set()).add(own[key].rank)
    if not shared:
        raise ModelError(
            "These LoRAs share no module of the same name and shape, so no model can read them all. Choose LoRAs of one"
            " base model and of one kind."
        )
    modules = tuple(replace(module, rank=max(ranks[key])) for key, module in shared.items())
    return WeightSpec(modules, any(len(ranks[key]) > 1 for key in shared))


def _either(a: ModuleHeader, b: ModuleHeader) -> ModuleHeader:
    """What is true of two modules with the same update: of two ways to store it, neither is named."""
    return a if a.kind == b.kind else a.update


@dataclass(frozen=True)
class Batch:
    """B LoRAs as stacked factors, one pair for each group of `spec.groups`, scale folded in (√|s| into each of U and V,
    its sign into U).

    U[g]: (B, L_g, n_g, r), V[g]: (B, L_g, m_g, r), padded with zero columns to one r; ranks: (B, L), the true ones;
    magnitudes: (B, total length) or None.

    What is made here lies in memory as (L, B, r, n): all columns of one module are a matrix, which is multiplied as it
    lies. Factors that lie otherwise are as good, and slower.
    """

    spec: WeightSpec
    U: tuple[Tensor, ...]
    V: tuple[Tensor, ...]
    ranks: Tensor
    magnitudes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def rank(self) -> int:
        return self.U[0].shape[-1]

    @property
    def device(self) -> torch.device:
        return self.U[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.U[0].dtype

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every floating tensor changed."""
        magnitudes = None if self.magnitudes is None else change(self.magnitudes)
        return replace(self, U=tuple(map(change, self.U)), V=tuple(map(change, self.V)), magnitudes=magnitudes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        moved = self.map(lambda tensor: tensor.to(device=device, dtype=dtype))
        return replace(moved, ranks=self.ranks.to(device=device))

    def __getitem__(self, index: Tensor | slice) -> Batch:
        if isinstance(index, Tensor):
            index = index.to(self.device)

        def chosen(factors: Tensor) -> Tensor:
            return turned(turned(factors)[:, index])

        magnitudes = None if self.magnitudes is None else self.magnitudes[index]
        U, V = (tuple(map(chosen, side)) for side in (self.U, self.V))
        return Batch(self.spec, U, V, self.ranks[index], magnitudes)


def turned(factors: Tensor) -> Tensor:
    """(B, L, n, r) → (L, B, r, n), as factors lie in memory, and back: a view."""
    return factors.permute(1, 0, 3, 2)


def stack(loras: Sequence[LoRA], spec: WeightSpec, dtype: torch.dtype = torch.float32) -> Batch:
    """One batch of LoRAs that fit `spec` (see `WeightSpec.misfits`). Raises ModelError when one does not."""
    rows = []
    for lora in loras:
        if problems := spec.misfits(lora):
            raise ModelError(" ".join(problems))
        rows.append([lora[module.name] for module in spec.modules])
    ranks = torch.tensor([[layer.rank for layer in row] for row in rows])
    width = int(ranks.max())
    U, V = list[Tensor](), list[Tensor]()
    for (n, m), indices in spec.groups:
        layers = [row[i] for i in indices for row in rows]
        u = _stacked((layer.U for layer in layers), torch.zeros(len(layers), width, n, dtype=dtype))
        v = _stacked((layer.V for layer in layers), torch.zeros(len(layers), width, m, dtype=dtype))
        scales = torch.tensor([layer.scale for layer in layers], dtype=torch.float64)[:, None, None]
        if (scales != 1).any():
            roots = scales.abs().sqrt().to(torch.promote_types(dtype, torch.float32))
            u *= torch.where(scales < 0, -roots, roots)
            v *= roots
        for side, laid in ((U, u), (V, v)):
            side.append(turned(laid.unflatten(0, (len(indices), len(rows)))))
    magnitudes = None
    if spec.magnitudes:
        magnitudes = torch.stack(
            [torch.cat([y.magnitude.to(dtype) for y in row if y.magnitude is not None]) for row in rows]
        )
    return Batch(spec, tuple(U), tuple(V), ranks, magnitudes)


def _stacked(factors: Iterable[Tensor], into: Tensor) -> Tensor:
    """Factors (n, r) as the first rows of (how many, width, n), one below the other."""
    for i, factor in enumerate(factors):
        rows = factor.mT
        # what lies otherwise is converted as it lies and then turned, which is faster
        into[i, : len(rows)] = rows if rows.is_contiguous() else factor.to(into.dtype).mT
    return into


def unstack(batch: Batch, like: Sequence[LoRA] | None = None) -> list[LoRA]:
    """The LoRAs of a batch: `stack` of them is the batch again, exactly.

    Without `like`, scales stay folded into the factors (so each is 1) and modules are named by the specification. With
    the LoRAs that the batch was made from, or was computed from, each keeps its modules' scales, dtypes and ways to
    store their update, its other modules, and what its file said; what `stack` made in float64 then comes back with
    every number as it was. Raises ModelError when `like` has another length.
    """
    if like is not None and len(like) != len(batch):
        raise ModelError(f"A batch of {len(batch)} LoRAs and {len(like)} LoRAs to be like.")
    places = {i: (g, j) for g, (_, indices) in enumerate(batch.spec.groups) for j, i in enumerate(indices)}
    starts = [0, *accumulate(module.magnitude for module in batch.spec.modules)]
    loras = []
    for b, ranks in enumerate(batch.ranks.tolist()):
        layers: dict[str, LoRALayer] = {}
        for i, (module, rank) in enumerate(zip(batch.spec.modules, ranks, strict=True)):
            g, j = places[i]
            U, V = batch.U[g][b, j, :, :rank], batch.V[g][b, j, :, :rank]
            magnitude = None if batch.magnitudes is None else batch.magnitudes[b, starts[i] : starts[i + 1]]
            layer = _of_header(module, U, V, magnitude) if like is None else _refilled(like[b][module.name], U, V)
            layers[layer.name] = layer
        if like is None:
            loras.append(LoRA(tuple(layers.values())))
        else:
            loras.append(replace(like[b], layers=tuple(layers.get(layer.name, layer) for layer in like[b].layers)))
    return loras


def _of_header(module: ModuleHeader, U: Tensor, V: Tensor, magnitude: Tensor | None) -> LoRALayer:
    """A module with this pair, folded."""
    parametrisation: Parametrisation
    if module.factor_shapes:
        first, second = module.factor_shapes
        parametrisation = Kronecker(Whole(U.reshape(first)), Whole(V.reshape(second)))
    else:
        kind = module.kind if module.kind in (Kind.CONV, Kind.EMBEDDING) else Kind.LINEAR
        parametrisation = LowRank(U, V, module.weight_shape, kind)
    if module.magnitude and magnitude is not None:
        parametrisation = Magnitude(parametrisation, magnitude, module.magnitude_axis or 0)
    return LoRALayer(module.name, parametrisation)


def _refilled(layer: LoRALayer, U: Tensor, V: Tensor) -> LoRALayer:
    """A module with this pair in place of its own, unfolded by its scale, in its dtype."""
    root = abs(layer.scale) ** 0.5 or 1.0
    dtype = next(iter(layer.parametrisation.slots.values())).dtype
    return layer.with_pair((U / (root if layer.scale >= 0 else -root)).to(dtype), (V / root).to(dtype))


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of all, padded to the largest rank among them."""
    width = max(batch.rank for batch in batches)

    def padded(factors: Tensor) -> Tensor:
        return torch.nn.functional.pad(turned(factors), (0, 0, 0, width - factors.shape[-1]))

    first = batches[0]
    U, V = (
        tuple(turned(torch.cat([padded(factors) for factors in of], 1)) for of in zip(*sides, strict=True))
        for sides in ([batch.U for batch in batches], [batch.V for batch in batches])
    )
    return Batch(
        first.spec,
        U,
        V,
        torch.cat([batch.ranks for batch in batches]),
        (
            None
            if first.magnitudes is None
            else torch.cat([batch.magnitudes for batch in batches if batch.magnitudes is not None])
        ),
    )
