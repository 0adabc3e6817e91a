"""New LoRAs from the distribution of a collection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lol_core.core.geometry import same_function
from lol_core.core.lora import LoRA
from lol_core.errors import ModelError
from lol_core.formats import read
from lol_core.formats.writing import write
from lol_core.insight.principal import principal_weights, sample_new
from tests.builders import random_lora, turned
from tests.test_cli_rewriting import output

SHAPES = (("model.a", 9, 8, 2), ("model.b", 7, 9, 2))
LORAS = [random_lora(SHAPES, seed, torch.float32) for seed in range(5)]


def dense(loras: list[LoRA]) -> np.ndarray:
    return np.stack([np.concatenate([y.delta(torch.float64).flatten() for y in lora.layers]) for lora in loras])


def test_samples_have_the_mean_and_the_covariance_of_the_updates() -> None:
    X = dense(LORAS)
    weights = principal_weights(X @ X.T, 4000)
    np.testing.assert_allclose(weights.sum(1), 1)
    drawn = weights @ X
    _, sizes, axes = np.linalg.svd(X - X.mean(0), full_matrices=False)
    along = (drawn - X.mean(0)) @ axes[:4].T
    np.testing.assert_allclose(along.std(0), sizes[:4] / 2, rtol=0.05)  # √(λ / (N − 1)), N = 5
    np.testing.assert_allclose(np.corrcoef(along.T), np.eye(4), atol=0.06)
    first = (principal_weights(X @ X.T, 3, components=1, spread=0.5) @ X - X.mean(0)) @ axes.T
    assert np.abs(first[:, 1:]).max() < 1e-9 < 0.1 < np.abs(first[:, 0]).min()


def test_a_sample_does_not_see_the_gauge_and_is_what_the_weights_say() -> None:
    X = dense(LORAS)
    made = [one.lora for one in sample_new(LORAS, 2, rank=16, seed=3)]
    np.testing.assert_allclose(dense(made), principal_weights(X @ X.T, 2, seed=3) @ X, atol=1e-4)
    other = sample_new([turned(lora, k) for k, lora in enumerate(LORAS)], 2, rank=16, seed=3)
    assert all(same_function(a, b.lora, 1e-4) for a, b in zip(made, other, strict=True))
    with pytest.raises(ModelError, match="two LoRAs or more that differ; these 2 do not"):
        next(sample_new([LORAS[0], turned(LORAS[0], 1)], 1))


def test_the_command_writes_new_loras(tmp_path: Path) -> None:
    for k, lora in enumerate(LORAS):
        write(lora, tmp_path / "zoo" / str(k), "PEFT", torch.float32)
    made = output("sample", tmp_path / "zoo", "--count", 2, "--out", tmp_path / "new", "--dtype", "float32")
    assert made["from"] == 5 and [row["lora"] for row in made["written"]] == ["0001", "0002"]
    for row, one in zip(made["written"], sample_new(LORAS, 2), strict=True):
        assert row["lost"] == pytest.approx(one.lost, rel=1e-3) and 0.1 < one.lost < 0.9 and row["rank"] == "2"
        assert same_function(read(tmp_path / "new" / row["lora"]), one.lora, 1e-3)
