"""What a merge kept, module by module: of the sum of its LoRAs, of each of them, and whether it saw their gauge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from lol_core.core.groups import GL
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.insight.anatomy import Comparison, cosines
from lol_core.insight.merging import Method, merge
from lol_core.insight.rewriting import Resized

CONDITION = 10.0
"""Of the R that a LoRA is turned by, to see whether a merge changes."""


@dataclass(frozen=True)
class MergeReport:
    """A merge and what became of its terms. from_sum: ‖ΔW − Σ wᵢ ΔWᵢ‖ / ‖Σ wᵢ ΔWᵢ‖; turned: by how much of its norm
    the merge moves when the last LoRA is written in another gauge, None for a method that cannot see one. modules: a
    row for each, `lost` what the cut to the rank left out, `from the sum`, and `cosine i` with each LoRA that has it.
    """

    merged: Resized
    from_sum: float
    turned: float | None
    modules: pd.DataFrame

    @classmethod
    def of(
        cls,
        loras: Sequence[LoRA],
        weights: Sequence[float],
        rank: int | None = None,
        method: Method = Method.SUM,
        *,
        density: float = 0.5,
        reporter: Reporter = SILENT,
    ) -> MergeReport:
        """Merges, and compares. Arguments and errors as of `merge`."""

        def merged(of: Sequence[LoRA], reporter: Reporter) -> Resized:
            return merge(of, weights, rank, method, density=density, reporter=reporter)

        made = merged(loras, reporter.part(0.0, 0.6))
        exact = merge(loras, weights, reporter=reporter.part(0.6, 0.8)).lora
        away = Comparison.of(exact, made.lora)
        again = None
        if not method.invariant:
            other = merged([*loras[:-1], turned(loras[-1], 0)], reporter.part(0.8, 0.9)).lora
            again = Comparison.of(made.lora, other).distance
        modules = pd.DataFrame({"lost": made.errors}, index=list(made.lora.names))
        sizes = away.table["‖ΔW₁‖"]
        modules["from the sum"] = away.table["‖ΔW₁ − ΔW₂‖"] / sizes.where(sizes > 0)
        for i, lora in enumerate(loras):
            reporter.count("Comparing: LoRA", i + 1, len(loras))
            modules[f"cosine {i + 1}"] = cosines(made.lora, lora)
        return cls(made, away.distance, again, modules)


def turned(lora: LoRA, seed: int) -> LoRA:
    """The same function in another gauge: an R ∈ GL(r) of condition number `CONDITION` for each module."""
    generator = torch.Generator().manual_seed(seed)
    draws = {y.name: GL.sample(y.rank, condition=CONDITION, generator=generator) for y in lora.layers}
    return lora.act(draws)
