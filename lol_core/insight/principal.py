"""New LoRAs from the distribution of a collection: a Gaussian over the principal components of its updates ΔW.

weights2weights (Dravid et al. 2024) does so with the numbers of the files, which another gauge changes; ΔW is a chart
that none does. With the centred products ⟨ΔWᵢ − mean, ΔWⱼ − mean⟩ = E Λ Eᵀ of N LoRAs, mean + Σₖ zₖ √(λₖ / (N − 1)) dₖ,
dₖ the k-th direction of norm 1, is Σᵢ cᵢ ΔWᵢ with c = 1/N + E z / √(N − 1): a merge, exact from the factors, which is
then cut to the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from lol_core.core.batch import shared_spec, stack
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ModelError
from lol_core.insight.merging import merge
from lol_core.insight.rewriting import Resized
from lol_core.learning.models.gram import gram

NEGLIGIBLE = 1e-9
"""Share of the largest variance below which a component is rounding."""


def principal_weights(
    products: np.ndarray, count: int, components: int | None = None, spread: float = 1.0, *, seed: int = 0
) -> np.ndarray:
    """The weights of each LoRA in each new one: (count, N), every row's sum 1. products: (N, N), of the updates, or of
    whatever is linear; components: of the largest variance, None for all; spread: of z, 0 for the mean. Raises
    ModelError for fewer than two LoRAs, or none that differ.
    """
    N = len(products)
    centred = products - products.mean(0) - products.mean(0)[:, None] + products.mean()
    variances, basis = np.linalg.eigh(centred)
    kept = (variances > NEGLIGIBLE * np.trace(products)).nonzero()[0][::-1][:components]
    if not len(kept):
        raise ModelError(f"A distribution takes two LoRAs or more that differ; these {N} do not.")
    E = basis[:, kept]
    x = np.random.default_rng(seed).standard_normal((count, N))  # z = Eᵀ x, so that E's free signs play no part
    weights: np.ndarray = 1 / N + spread * x @ E @ E.T / np.sqrt(N - 1)
    return weights


def sample_new(
    loras: Sequence[LoRA],
    count: int,
    *,
    rank: int | None = None,
    components: int | None = None,
    spread: float = 1.0,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Iterator[Resized]:
    """New LoRAs of the modules that all share, with what the cut to the rank leaves out; rank: by default the largest
    of the LoRAs. Raises as `principal_weights` and `merge`, ModelError when they share no module, Stopped.
    """
    spec = shared_spec(loras)
    names = [module.name for module in spec.modules]
    alike = [replace(lora, layers=tuple(lora[name] for name in names)) for lora in loras]
    products = gram(stack(alike, spec, torch.float64))
    for number, weights in enumerate(principal_weights(products, count, components, spread, seed=seed)):
        reporter.count("Sampling: LoRA", number, count)
        reporter.check("Those that were made are kept.")
        yield merge(alike, weights.tolist(), rank or spec.rank)
