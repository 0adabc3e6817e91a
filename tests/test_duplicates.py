"""Duplicates among real LoRAs whose every copy is known: none missed, none made up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.progress import Reporter
from lol_core.formats import read
from lol_core.insight.duplicates import duplicates
from lol_core.insight.neighbours import k_nearest, within
from lol_core.insight.surveys import Surveys
from tests.builders import turned, write_peft
from tests.conftest import ROOT

ORIGINALS = sorted((ROOT / "sample_loras" / "glosses" / "loras").iterdir())[:5]


def each(lora: LoRA, change: Callable[[LoRALayer], tuple[torch.Tensor, torch.Tensor]]) -> LoRA:
    """The LoRA with other factors."""
    return replace(lora, layers=tuple(LoRALayer.pair(layer.name, *change(layer)) for layer in lora.layers))


def padded(lora: LoRA) -> LoRA:
    def pad(factor: torch.Tensor, value: float) -> torch.Tensor:
        return torch.cat([factor, torch.full((len(factor), 2), value, dtype=factor.dtype)], 1)

    return each(lora, lambda y: (pad(y.U, 0.0), pad(y.V, 0.3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each original a folder of copies that are the same function, and others that are not."""
    folder = tmp_path_factory.mktemp("copies")
    for k, path in enumerate(ORIGINALS):
        stored = read(path)
        lora = each(stored, lambda y: (y.U.float() * y.scale, y.V.float()))
        same = folder / f"{k} same"
        write_peft(same / "original", lora)
        shutil.copytree(same / "original", same / "renamed")
        write_peft(same / "regauged", turned(lora, 1, 30))
        write_peft(same / "padded", padded(lora))
        write_peft(same / "bfloat16", lora, dtype=torch.bfloat16)
        write_peft(same / "float16", lora, dtype=torch.float16)
        write_peft(same / "negated twice", each(lora, lambda y: (-y.U, -y.V)))
        rank = lora.layers[0].rank
        write_peft(same / "scale in alpha", each(lora, lambda y: (y.U / 4, y.V)), alpha=4 * rank)
        write_peft(folder / f"{k} negated" / "one", each(lora, lambda y: (-y.U, y.V)))
        write_peft(folder / f"{k} scaled" / "one", each(lora, lambda y: (y.U * 1.05, y.V)))
    return folder


@pytest.mark.parametrize("engine", ["scikit-learn", "faiss"])
def test_every_copy_and_nothing_else(folder: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "faiss":
        pytest.importorskip("faiss", reason="faiss, an optional extra, is not installed")
        monkeypatch.setattr("lol_core.insight.duplicates.within", lambda points, radius: within(points, radius, many=0))
    zoo = Zoo.open(folder)
    found = duplicates(zoo, Surveys(zoo).complete())
    pairs = {pair for _, group in found.groupby("group") for pair in combinations(sorted(group["lora"]), 2)}
    true = {pair for pair in combinations(sorted(zoo.ids), 2) if pair[0].split("/")[0] == pair[1].split("/")[0]}
    assert len(zoo) == 50 and pairs == true, "precision and recall are 1"
    identical = {lora for lora, same in zip(found["lora"], found["identical"], strict=True) if same}
    assert {id.split("/")[1] for id in identical} == {"original", "renamed"}


@pytest.mark.parametrize("engine", ["scikit-learn", "faiss"])
def test_the_nearest_of_a_point_are_led_by_itself_among_any_copies(engine: str) -> None:
    if engine == "faiss":
        pytest.importorskip("faiss", reason="faiss, an optional extra, is not installed")
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    points[::7] = points[0]  # more copies than neighbours
    many = 0 if engine == "faiss" else 10**9
    near = k_nearest(points, 5, many=many)
    assert near is not None
    places, distances = near
    assert np.array_equal(places[:, 0], np.arange(300)) and all(len(set(row)) == 5 for row in places.tolist())
    apart = np.linalg.norm(points[places] - points[:, None], axis=2)
    assert np.allclose(distances, apart, atol=1e-3) and (np.diff(distances) >= 0).all()
    assert k_nearest(points, 5, Reporter(stop=lambda: True), many) is None


def test_faiss_finds_what_scikit_learn_finds() -> None:
    pytest.importorskip("faiss", reason="faiss, an optional extra, is not installed")
    points = np.random.default_rng(0).normal(size=(450, 8)).astype(np.float32)
    (places, distances), (same, exact) = (k_nearest(points, 5, many=many) or ((), ()) for many in (0, 10**9))
    assert np.array_equal(places, same) and np.allclose(distances, exact, atol=1e-3)
    pairs = zip(within(points, 2.0, many=0), within(points, 2.0), strict=True)
    assert all(sorted(a) == sorted(b) for a, b in pairs)
    assert sum(len(near) for near in within(points, 2.0)) > 2 * len(points)
