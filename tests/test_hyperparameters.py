"""What is read of a LoRA's factors that GL(r) takes away, and what of ΔW: the mathematics of `experiment
hyperparameters`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec, stack
from lol_core.core.symmetry import product_change
from lol_core.experiments.context import Context
from lol_core.experiments.hyperparameters import Reading, features, own, read, starts_of, statistics, turned
from tests.builders import random_batch
from tests.conftest import ROOT


def test_factors_turned_have_the_same_update_other_statistics_and_the_same_own_factors() -> None:
    batch = random_batch()
    moved = turned(batch, seed=0)
    assert product_change(moved, batch) < 1e-6 and product_change(own(batch), batch) < 1e-12
    torch.testing.assert_close(statistics(own(moved)), statistics(own(batch)), rtol=1e-4, atol=1e-4)
    assert (statistics(moved) - statistics(batch)).abs().amax(1).min() > 1
    assert (statistics(turned(batch, seed=1)) - statistics(moved)).abs().amax(1).min() > 1


def test_what_is_in_the_gauge_alone_is_read_from_the_factors_alone_and_not_when_they_are_turned() -> None:
    batch = random_batch(count=60)
    y = torch.linspace(-1, 1, 60, dtype=torch.float64)[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    size = y.exp()[:, None, None, None]
    gauged = replace(batch, U=tuple(size * U for U in batch.U), V=tuple(V / size for V in batch.V))
    seen = features(gauged, None)
    assert set(seen) == {Reading.DELTA, Reading.TRAINED, Reading.BOTH, Reading.TURNED}
    rows = dict(zip(("train", "validation", "test"), np.split(np.arange(60), [30, 45]), strict=True))
    explained = {}
    for reading, X in seen.items():
        values, _ = read(X, rows, y.numpy()[:, None])
        asked = y.numpy()[rows["test"]]
        explained[reading] = 1 - ((values[:, 0] - asked) ** 2).sum() / ((asked - asked.mean()) ** 2).sum()
    assert min(explained[Reading.TRAINED], explained[Reading.BOTH]) > 0.9
    assert max(explained[Reading.DELTA], explained[Reading.TURNED]) < 0.5


def test_a_lora_of_faces_is_nearer_to_the_start_of_its_own_seed_than_to_anothers() -> None:
    pytest.importorskip("diffusers")
    zoo = Zoo.open(ROOT / "sample_loras" / "faces")
    ids = zoo.ids[:2]
    loras = [zoo.load(id) for id in ids]
    batch = stack(loras, shared_spec(loras), torch.float64)
    start = starts_of(zoo, Context(ROOT / "sample_loras", ROOT), ids, batch.spec)
    for V, V0 in zip(batch.V, start.V, strict=True):
        found = torch.einsum("alnr,blnr->abl", V, V0)
        assert (found[[0, 1], [0, 1]].mean(-1) > 3 * found[[0, 1], [1, 0]].mean(-1).abs()).all()
    assert not any(U0.any() for U0 in start.U)
