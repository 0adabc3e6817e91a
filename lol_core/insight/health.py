"""What is wrong or odd about a LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lol_core.collections.entry import Entry
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA
from lol_core.insight.survey import Survey

LOW_RANK_USE = 0.25
"""A LoRA whose modules use on average less than this share of their rank counts as rank-deficient."""

PRODUCTS = (Kind.HADAMARD, Kind.KRONECKER)
"""Updates whose rank is not that of their factors, which is what a header claims."""


class Ailment(StrEnum):
    """What can be wrong or odd about a LoRA, in a word or two."""

    UNREADABLE = "unreadable weights"
    OVERFLOWING = "too large"
    UNTRAINED = "never trained"
    PARTLY_ZERO = "partly zero"
    RANK_DEFICIENT = "rank-deficient"
    CONTRADICTION = "claims another rank"


HARMLESS = frozenset({Ailment.RANK_DEFICIENT})
"""Odd, and nothing is wrong with a LoRA for it: in many collections nearly all are so."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong or odd about a LoRA. reason: a sentence."""

    ailment: Ailment
    reason: str


def never_trained(lora: LoRA) -> bool:
    """Whether ΔW is zero in every module, because a factor is, as it is before the first step of training."""
    return not any(bool(layer.U.any()) and bool(layer.V.any()) for layer in lora.layers)


def health(entry: Entry, survey: Survey | None) -> list[Diagnosis]:
    """What is wrong or odd about a LoRA, from its header and, where it has been read, its weights."""
    marks = contradictions(entry)
    if survey is None:
        return marks
    if survey.problem is not None:
        return [Diagnosis(Ailment.UNREADABLE, survey.problem.split(": ", 1)[-1]), *marks]
    if infinite := int((~np.isfinite(survey.norms)).sum()):
        reason = f"ΔW is too large for float32 in {infinite} of {len(survey.norms)} modules. The fine-tune diverged."
        marks.append(Diagnosis(Ailment.OVERFLOWING, reason))
    zero = survey.norms == 0
    if zero.all():
        return [Diagnosis(Ailment.UNTRAINED, "ΔW is zero in every module: it was never trained."), *marks]
    if zero.any():
        reason = f"ΔW is zero in {zero.sum()} of {len(zero)} modules: half-trained."
        marks.append(Diagnosis(Ailment.PARTLY_ZERO, reason))
    ranks = np.array([module.rank for module in entry.headers])
    large = ~zero & (ranks >= 4)
    if large.any() and (use := float((survey.effective_ranks[large] / ranks[large]).mean())) < LOW_RANK_USE:
        reason = f"Its modules use {use:.0%} of their rank on average (effective rank)."
        marks.append(Diagnosis(Ailment.RANK_DEFICIENT, reason))
    return marks


def contradictions(entry: Entry) -> list[Diagnosis]:
    """Where the header's claims and the shapes of the tensors disagree."""
    claims, marks = entry.metadata, list[Diagnosis]()
    claimed_rank = claims.get("ss_network_dim", claims.get("r"))
    try:
        rank = int(float(claimed_rank)) if claimed_rank is not None else None
    except (TypeError, ValueError):
        rank = None
    ranks = sorted({module.rank for module in entry.headers if module.kind not in PRODUCTS})
    if rank is not None and ranks and rank not in ranks and not claims.get("rank_pattern"):
        reason = f"The header claims rank {rank}; the factors have {', '.join(map(str, ranks))}."
        marks.append(Diagnosis(Ailment.CONTRADICTION, reason))
    return marks
