"""Several LoRAs merged into one, by their updates ΔW, which no gauge changes, or, to compare with, by their factors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lol_core.core.canonical import numerical_rank, settling
from lol_core.core.geometry import truncate
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import LowRank
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, ModelError
from lol_core.formats.base_models import base_name
from lol_core.insight.learned import learned
from lol_core.insight.naming import commonly_named
from lol_core.insight.rewriting import Resized, size
from lol_core.learning.merger import Merger


class Space(Enum):
    """Whose entries a method compares."""

    SUM = "none: Σ w ΔW, exact"
    UPDATES = "ΔW"
    CORE = "ΔW in the singular basis that all share"
    PARTS = "none: parts of each ΔW, weighed by a network"
    FACTORS = "the factors"


class Method(StrEnum):
    """How LoRAs are merged, under the names of peft's `add_weighted_adapter` where it has them. TIES keeps the largest
    entries of each, elects a sign for each place and averages those that have it (Yadav et al. 2023); DARE drops
    entries at random and rescales the others (Yu et al. 2024). With "_svd" they are entries of ΔW; without, of A and
    B, which another gauge changes.
    """

    SUM = "sum"
    """Σ w ΔW, the factors side by side (peft's "cat"; with a rank its "svd")."""
    TIES_SVD = "ties_svd"
    DARE_LINEAR_SVD = "dare_linear_svd"
    DARE_TIES_SVD = "dare_ties_svd"
    MAGNITUDE_PRUNE_SVD = "magnitude_prune_svd"
    KNOTS = "knots"
    """TIES on the coordinates Pᵀ ΔWᵢ, P the left singular vectors of [ΔW₁ … ΔW_k], with one threshold for all modules
    (Stoica et al. 2025, KnOTS-TIES)."""
    LEARNED = "learned"
    """By a network trained for one base model (`learning.merger`)."""
    LINEAR = "linear"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"
    MAGNITUDE_PRUNE = "magnitude_prune"

    @property
    def space(self) -> Space:
        if self is Method.SUM:
            return Space.SUM
        if self is Method.KNOTS:
            return Space.CORE
        if self is Method.LEARNED:
            return Space.PARTS
        return Space.UPDATES if self.endswith("_svd") else Space.FACTORS

    @property
    def invariant(self) -> bool:
        """Whether LoRAs of the same function merge to the same, whatever their factors."""
        return self.space is not Space.FACTORS

    @property
    def dare(self) -> bool:
        """Whether entries are dropped at random, and the others rescaled."""
        return self.startswith("dare")

    @property
    def trims(self) -> bool:
        """Whether only the largest entries are kept."""
        return self is Method.KNOTS or self.startswith(("ties", "magnitude"))

    @property
    def elects(self) -> bool:
        """Whether a sign is elected for each place."""
        return self is Method.KNOTS or "ties" in self


@dataclass(frozen=True)
class Term:
    """A LoRA's part in a module. of: its place among the LoRAs."""

    of: int
    layer: LoRALayer
    weight: float


def merge(
    loras: Sequence[LoRA],
    weights: Sequence[float],
    rank: int | None = None,
    method: Method = Method.SUM,
    *,
    density: float = 0.5,
    seed: int = 0,
    merger: Merger | None = None,
    reporter: Reporter = SILENT,
) -> Resized:
    """LoRAs of one base model merged, whatever their ranks and scales; a module that only some adapt is merged from
    those. With weights 1/k and a rank the sum is the LoRA nearest to k others: Σ‖ΔWᵢ − X‖² = k‖mean − X‖² + const.

    rank: None for all of a sum's and the core's, for the factors' own, and for the inputs' largest where ΔW's entries
    are compared, whose merge is of full rank; the result's `lost` is what the cut leaves out of the merge. density: the
    share of entries that TIES keeps and DARE does not drop. seed: of DARE, whose masks are drawn module by module in
    the order of their names. merger: of the learned method; by default the one that comes with the package for these
    modules.

    Raises LoRAFormatError when a module is of different shapes in two of them, when the names of modules cannot be
    brought together, when one has a DoRA magnitude, as its update is no sum, or when factors are compared that are not
    alike; ModelError for weights or a density that are none, and where no merger is for these modules; Stopped
    between two modules.
    """
    if len(loras) != len(weights):
        raise ModelError(f"A weight for each LoRA: {len(loras)} LoRAs, {len(weights)} weights.")
    if wrong := [weight for weight in weights if not math.isfinite(weight)]:
        raise ModelError(f"A weight is a number; found {wrong[0]:g}.")
    if not 0 < density <= 1:
        raise ModelError(f"A density lies above 0 and at most at 1; found {density:g}.")
    named = _of_one_naming(loras)
    terms: dict[str, list[Term]] = {}
    for of, (lora, weight) in enumerate(zip(named, weights, strict=True)):
        for layer in lora.layers:
            terms.setdefault(layer.name, []).append(Term(of, layer, weight))
    for name, summands in terms.items():
        _check(name, summands)
    rule = _Rule(method, density, torch.Generator().manual_seed(seed))
    cores: dict[str, tuple[Tensor, list[Tensor]]] = {}
    if method.space is Space.CORE:
        cores = _cores(terms, density, reporter.part(0.0, 0.7))
        reporter = reporter.part(0.7, 1.0)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    if method.space is Space.PARTS:
        made = learned(named, weights, merger)
    largest = max(term.layer.rank for summands in terms.values() for term in summands)
    cut: dict[str, tuple[LoRALayer, float, Callable[[], float]]] = {}
    for number, name in enumerate(sorted(terms)):
        reporter.count("Merging: module", number, len(terms))
        reporter.check("Nothing was written.")
        match method.space:
            case Space.UPDATES:
                cut[name] = _from_updates(name, terms[name], rule, rank or largest)
                continue
            case Space.SUM:
                whole = _sum(name, terms[name])
            case Space.CORE:
                P, parts = cores[name]
                whole = _pair(name, terms[name], P, rule(parts, [term.weight for term in terms[name]]).T)
            case Space.PARTS:
                whole = _pair(name, terms[name], *made[name])
            case Space.FACTORS:
                whole = _from_factors(name, terms[name], rule)
        layer, error = _cut(whole, terms[name], rank)
        cut[name] = layer, error, partial(size, whole)
    layers, errors, sizes_of = zip(*(cut[name] for name in terms), strict=True)
    sizes = [of() if any(errors) else 0.0 for of in sizes_of]
    task = loras[0].metadata.get("task_type")
    metadata = {"task_type": task} if all(lora.metadata.get("task_type") == task for lora in loras) else {}
    return Resized.after(LoRA(layers, named[0].dialect, loras[0].base_model, metadata), errors, sizes)


def remarks(loras: Sequence[LoRA]) -> list[str]:
    """What should make one doubt that LoRAs can be merged: other base models, by name, and no module in common."""
    found = []
    named = {base_name(lora.base_model): lora.base_model for lora in loras if lora.base_model}
    if len(named) > 1:
        found.append(
            f"They name different base models: {', '.join(named.values())}. Unless these are one, or one is trained"
            " further from the other, expect nothing of the merge."
        )
    counts = Counter(name for lora in loras for name in lora.by_common_name)
    if len(loras) > 1 and max(counts.values()) == 1:
        found.append("No module is adapted by two of them: their updates stand side by side.")
    return found


@dataclass(frozen=True)
class _Rule:
    """How entries of one place become one, as peft defines it (`peft.utils.merge_utils`): prune, elect the sign of the
    unweighted sum, 0 counting as +, weigh, then add, or, with an elected sign, average those that have it.
    """

    method: Method
    density: float
    generator: torch.Generator

    def __call__(self, parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        stacked = torch.stack([self._pruned(part) for part in parts])
        weighted = stacked * torch.tensor(weights, dtype=stacked.dtype).view(-1, *[1] * parts[0].ndim)
        if not self.method.elects:
            return weighted.sum(0)
        elected = torch.where(stacked.sum(0) >= 0, 1, -1)
        agree = stacked.sign() == elected
        return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)

    def _pruned(self, part: Tensor) -> Tensor:
        if self.density == 1 or self.method.space is Space.CORE:  # there, across modules
            return part
        if self.method.dare:
            kept = torch.bernoulli(torch.full(part.shape, self.density), generator=self.generator)
            return part * kept.to(part) / self.density
        return largest_entries([part], self.density)[0] if self.method.trims else part


def largest_entries(parts: Sequence[Tensor], density: float) -> list[Tensor]:
    """The parts with all but the largest ⌊density · entries⌋ of all their entries set to 0."""
    entries = torch.cat([part.flatten() for part in parts])
    kept = torch.zeros_like(entries)
    kept[entries.abs().topk(int(density * len(entries)), sorted=False).indices] = 1
    masks = kept.split([part.numel() for part in parts])
    return [part * mask.view(part.shape) for part, mask in zip(parts, masks, strict=True)]


def _cores(
    terms: Mapping[str, Sequence[Term]], density: float, reporter: Reporter
) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """Name → P: (n, k), the left singular vectors of [ΔW₁ … ΔW_T], and every Pᵀ ΔWᵢ: (k, m), of which the largest
    entries over all modules of a LoRA are kept. From the factors: with Vᵢ = QᵢRᵢ, P is that of the small
    [U₁R₁ᵀ … U_T R_Tᵀ].
    """
    cores: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for number, (name, summands) in enumerate(terms.items()):
        reporter.count("Finding a shared basis: module", number, len(terms))
        reporter.check("Nothing was written.")
        pairs = [_folded(term) for term in summands]
        joined = torch.cat([U @ torch.linalg.qr(V, mode="r").R.T for U, V in pairs], 1)
        P, values, _ = torch.linalg.svd(joined, full_matrices=False)
        rank = numerical_rank(values)
        P = P[:, :rank] @ settling(P[:, :rank], values[:rank])
        cores[name] = P, [(P.T @ U) @ V.T for U, V in pairs]
    for of in {term.of for summands in terms.values() for term in summands}:
        places = [(name, i) for name, summands in terms.items() for i, term in enumerate(summands) if term.of == of]
        kept = largest_entries([cores[name][1][i] for name, i in places], density)
        for (name, i), part in zip(places, kept, strict=True):
            cores[name][1][i] = part
    return cores


def _from_updates(
    name: str, terms: Sequence[Term], rule: _Rule, rank: int
) -> tuple[LoRALayer, float, Callable[[], float]]:
    """The merge of every ΔW, which is an n × m matrix here, cut to the rank; its relative error, and ‖ΔW‖ before."""
    merged = rule([U @ V.T for U, V in map(_folded, terms)], [term.weight for term in terms])
    P, values, Q = _leading(merged, rank)
    energy = float(merged.square().sum())
    left_out = max(0.0, 1 - float(values.square().sum()) / energy) if energy else 0.0
    root = values.sqrt()
    error = left_out**0.5 if rank < min(merged.shape) else 0.0
    return _pair(name, terms, P * root, Q * root), error, lambda: energy**0.5


def _leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Its `count` leading singular triplets, P (n, k), σ (k,) descending, Q (m, k): by Lanczos where they are few of
    many, which is several times as fast and as exact as a whole decomposition.
    """
    if 10 * count > min(matrix.shape) or not matrix.any():
        P, values, Qh = torch.linalg.svd(matrix, full_matrices=False)
        return P[:, :count], values[:count], Qh[:count].T
    from scipy.sparse.linalg import svds  # takes a second to import

    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    left, sigma, right = svds(matrix.numpy(), k=count, v0=start)
    order = np.argsort(-sigma)
    P, values, Q = (torch.from_numpy(part.copy()) for part in (left[:, order], sigma[order], right[order].T))
    return P, values.clamp_min(0), Q


def _from_factors(name: str, terms: Sequence[Term], rule: _Rule) -> LoRALayer:
    """The merge of every A = Vᵀ, then of every B = U, each weighed by √|ws|, the sign in A. Raises LoRAFormatError when
    they are not of one shape.
    """
    layers = [term.layer for term in terms]
    if not all(isinstance(layer.parametrisation, LowRank) for layer in layers):
        raise LoRAFormatError(f"{name} is no plain pair of factors. Choose a method that reads ΔW, such as ties_svd.")
    if len({layer.rank for layer in layers}) > 1:
        ranks = ", ".join(str(layer.rank) for layer in layers)
        raise LoRAFormatError(
            f"{name} has the ranks {ranks}: factors of different ranks have no entries in common. Choose a method that"
            " reads ΔW, such as ties_svd."
        )
    weights = [term.weight * term.layer.scale for term in terms]
    roots = [abs(weight) ** 0.5 for weight in weights]
    signed = [-root if weight < 0 else root for root, weight in zip(roots, weights, strict=True)]
    A = rule([layer.V.double().T for layer in layers], signed)
    B = rule([layer.U.double() for layer in layers], roots)
    return _pair(name, terms, B, A.T)


def _folded(term: Term) -> tuple[Tensor, Tensor]:
    """U: (n, k), the scale in it, and V: (m, k) of a ΔW."""
    U, V = term.layer.parametrisation.low_rank()
    return term.layer.scale * U.double(), V.double()


def _sum(name: str, terms: Sequence[Term]) -> LoRALayer:
    first = terms[0]
    if len(terms) == 1 and first.weight == 1:
        return first.layer
    pairs = [term.layer.parametrisation.low_rank() for term in terms]
    weights = [term.weight * term.layer.scale for term in terms]
    U = torch.cat([weight * U.float() for weight, (U, _) in zip(weights, pairs, strict=True)], 1)
    return _pair(name, terms, U, torch.cat([V.float() for _, V in pairs], 1))


def _cut(whole: LoRALayer, terms: Sequence[Term], rank: int | None) -> tuple[LoRALayer, float]:
    """A merge of no more columns than its update can have as rank, and of `rank` at most; what is left out of it."""
    possible = whole.rank
    if whole is not terms[0].layer:
        possible = min(possible, whole.n, whole.m, sum(term.layer.rank for term in terms))
    kept = min(rank or possible, possible)
    if whole.rank <= kept:
        return whole, 0.0
    layer, error = truncate(whole, kept)
    return layer, error if kept < possible else 0.0


def _pair(name: str, terms: Sequence[Term], U: Tensor, V: Tensor) -> LoRALayer:
    """In float32, a layer of the weight that the terms update."""
    of = terms[0].layer
    kind = Kind.EMBEDDING if of.kind == Kind.EMBEDDING else Kind.CONV if len(of.weight_shape) > 2 else Kind.LINEAR
    return LoRALayer.pair(name, U.float(), V.float(), kind=kind, weight_shape=of.weight_shape)


def _check(name: str, terms: Sequence[Term]) -> None:
    """Raises LoRAFormatError when these are not updates of one weight that can be added."""
    first = terms[0].layer
    for layer in (term.layer for term in terms):
        if layer.magnitude is not None:
            raise LoRAFormatError(
                f"{name} has a DoRA magnitude: what it adds depends on the base model's weight, so it is no term of a"
                " sum. Merge it into the base model instead."
            )
        if layer.kind == Kind.EXPERTS:
            raise LoRAFormatError(f"{name} has a pair for each expert, which is not summed here.")
        if layer.weight_shape != first.weight_shape:
            raise LoRAFormatError(
                f"{name} updates a weight of {_shape(first)} in one LoRA and of {_shape(layer)} in another. They belong"
                " to different base models."
            )


def _shape(layer: LoRALayer) -> str:
    return " × ".join(map(str, layer.weight_shape))


_NAMINGS = (
    re.compile(r"_(?:double|single|joint)_blocks_\d+_|_layers_\d+_attention_qkv$"),
    re.compile(r"^lora_unet_(?:single_)?transformer_blocks_\d+_|_layers_\d+_attention_to_[qkv]$"),
)
"""Common names that only the authors' code, and only diffusers', has for the blocks of one transformer."""


def _of_one_naming(loras: Sequence[LoRA]) -> list[LoRA]:
    """Raises LoRAFormatError where one weight has other names in them, or none is adapted by two."""
    fused, split = (
        [layer.name for lora in loras for name, layer in lora.by_common_name.items() if naming.search(name)]
        for naming in _NAMINGS
    )
    if fused and split:
        raise LoRAFormatError(
            f"{fused[0]} in one LoRA and {split[0]} in another: one calls the blocks as the model's authors do, with"
            " fused projections, the other as diffusers does, and these are not added to each other. Bring both into"
            " one form first."
        )
    named = commonly_named(loras)
    first = loras[0]
    for lora, renamed in zip(loras, named, strict=True):
        if lora.dialect != first.dialect and not set(renamed.names) & set(named[0].names):
            raise LoRAFormatError(
                f"{first.names[0]} in {first.dialect} and {lora.names[0]} in {lora.dialect}: no module is adapted by"
                " both. They belong to different base models."
            )
    return named
