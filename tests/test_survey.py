"""Surveys depend on ΔW alone, and find the LoRAs that are the same function and those that are not well."""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from lol_core.collections.entry import SAMPLED_BYTES
from lol_core.collections.memory import MemorySource
from lol_core.collections.zoo import Zoo
from lol_core.core.geometry import distance, effective_rank, norm, spectrum
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Hadamard, Kronecker, LowRank, Whole
from lol_core.insight.anatomy import layer_map
from lol_core.insight.blas import one_blas_thread
from lol_core.insight.duplicates import duplicates
from lol_core.insight.health import health
from lol_core.insight.neighbours import nearest
from lol_core.insight.overview import Examination, overview, rank_used
from lol_core.insight.survey import SKETCH, sketch, survey
from lol_core.insight.surveys import Surveys
from lol_core.insight.tags import tag_counts
from lol_core.learning.models.modulewise import THIN
from tests.builders import MODULES, random_lora, turned, write_peft, write_zoo

T = TypeVar("T")
R = TypeVar("R")


def padded(lora: LoRA) -> LoRA:
    """The same function at twice the rank."""
    layers = [
        y.with_pair(torch.cat([y.U, torch.zeros_like(y.U)], 1), torch.cat([y.V, torch.randn_like(y.V)], 1))
        for y in lora.layers
    ]
    return replace(lora, layers=tuple(layers))


def transposed(factor: torch.Tensor) -> torch.Tensor:
    """The same numbers, in memory as (r, n)."""
    return factor.mT.contiguous().mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [1, 300, 2**17])
def test_modules_are_surveyed_together_as_they_are_alone(
    cached: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (("q", 30, 20, 4), ("k", 8, 20, 2), ("v", 30, 24, THIN + 1))
    shapes = [(f"block.{i}.{part}", n, m, r) for i in range(7) for part, n, m, r in parts]
    lora = random_lora(shapes, 5, dtype)
    layers = [
        replace(y, scale=(-1) ** i * (0.5 + i)).with_pair(y.U if i % 3 else transposed(y.U), transposed(y.V))
        for i, y in enumerate(lora.layers)
    ]
    monkeypatch.setattr("lol_core.core.stacks.CACHED", cached)
    together = survey(replace(lora, layers=tuple(layers)))
    alone = [survey(replace(lora, layers=(layer,))) for layer in layers]
    exact = [spectrum(layer) for layer in layers]
    np.testing.assert_allclose(together.norms, [float(values.norm()) for values in exact], rtol=1e-6)
    np.testing.assert_allclose(together.effective_ranks, [effective_rank(values) for values in exact], rtol=1e-5)
    np.testing.assert_allclose(together.sketch, np.sum([own.sketch for own in alone], 0), atol=1e-5 * together.norm)
    numbers = torch.cat([factor.float().flatten() for layer in layers for factor in (layer.U, layer.V)])
    assert together.range.tolist() == [float(numbers.min()), float(numbers.max())]


@pytest.mark.parametrize("inference", [False, True])
def test_a_survey_sees_what_was_written_to_factors_since_the_last_look(inference: bool) -> None:
    with torch.inference_mode(inference):
        lora = random_lora(MODULES)
        lora.check_finite()
        for largest in (7.0, 9.0, 8.0):
            lora.layers[-1].V[0, 0] = largest
            assert survey(lora).range[1] == largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_survey_is_exact_for_what_half_precision_stores(dtype: torch.dtype) -> None:
    """Also in a gauge of condition 100 with a falling spectrum, where Gram matrices in float32 would not do."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for i in range(4):
        left, right = (torch.linalg.qr(torch.randn(n, 8, generator=generator).double()).Q for n in (96, 64))
        R = GL.sample(8, condition=100.0, generator=generator)
        U, V = left * 0.2 ** torch.arange(8) @ R, right @ torch.linalg.inv(R).mT
        layers.append(LoRALayer.pair(f"m{i}", U.to(dtype), V.to(dtype)))
    own, exact = survey(LoRA(tuple(layers), "synthetic")), [spectrum(layer) for layer in layers]
    np.testing.assert_allclose(own.norms, [float(values.norm()) for values in exact], rtol=1e-6)
    np.testing.assert_allclose(own.effective_ranks, [effective_rank(values) for values in exact], rtol=1e-5)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3))
@settings(max_examples=25)
def test_a_survey_does_not_change_with_the_factors(seed: int, scale: float) -> None:
    lora = random_lora(MODULES, seed, scale=scale)
    first = survey(lora)
    for other in (turned(lora, seed), padded(lora)):
        second = survey(other)
        np.testing.assert_allclose(first.sketch, second.sketch, rtol=1e-3, atol=1e-4 * first.norm)
        np.testing.assert_allclose(first.norms, second.norms, rtol=1e-4)
        np.testing.assert_allclose(first.effective_ranks, second.effective_ranks, rtol=1e-3)
    assert first.norm == pytest.approx(sum(norm(layer) ** 2 for layer in lora.layers) ** 0.5, rel=1e-4)


def test_sketches_are_as_far_apart_as_the_updates() -> None:
    ratios = []
    for seed in range(60):
        a, b = random_lora(MODULES, seed), random_lora(MODULES, seed + 1000)
        true = sum(distance(x, y) ** 2 for x, y in zip(a.layers, b.layers, strict=True)) ** 0.5
        ratios.append(np.linalg.norm(sketch(a) - sketch(b)) / SKETCH**0.5 / true)
    assert np.mean(ratios) == pytest.approx(1, abs=0.1) and max(ratios) < 2 and min(ratios) > 0.4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight different LoRAs; copies of lora0: bytes, other factors, other rank, half precision; one that differs a
    little.
    """
    folder = tmp_path / "zoo"
    loras = [random_lora(MODULES, seed) for seed in range(8)]
    for i, lora in enumerate(loras):
        write_peft(folder / f"lora{i}", lora)
    write_peft(folder / "copy", loras[0])
    write_peft(folder / "turned", turned(loras[0], 1))
    write_peft(folder / "padded", padded(loras[0]))
    write_peft(folder / "bfloat", loras[0], dtype=torch.bfloat16)
    nudged = replace(
        loras[0], layers=tuple(y.with_pair(y.U + 0.1 * torch.randn_like(y.U), y.V) for y in loras[0].layers)
    )
    write_peft(folder / "nudged", nudged)
    return folder


def test_duplicates_by_function(folder: Path) -> None:
    zoo = Zoo.open(folder)
    found = duplicates(zoo, Surveys(zoo).complete())
    names = {Path(lora).parts[0]: identical for lora, identical in zip(found["lora"], found["identical"], strict=True)}
    assert names == {"lora0": True, "copy": True, "turned": False, "padded": False, "bfloat": False}
    assert found["group"].unique().tolist() == [1]


def test_health(tmp_path: Path) -> None:
    lora = random_lora(MODULES, 0)
    zero = replace(lora, layers=tuple(y.with_pair(torch.zeros_like(y.U), y.V) for y in lora.layers))
    first = lora.layers[0]
    half = replace(lora, layers=(first.with_pair(torch.zeros_like(first.U), first.V), *lora.layers[1:]))
    broken = replace(lora, layers=(first.with_pair(first.U * float("nan"), first.V), *lora.layers[1:]))
    narrow = random_lora([(name, 2 * n, 2 * m, 1) for name, n, m, _ in MODULES])
    for _ in range(3):
        narrow = padded(narrow)
    huge = first.with_pair(first.U * 1e20, first.V * 1e20)  # finite factors, no finite product
    write_peft(tmp_path / "huge", replace(lora, layers=(huge, *lora.layers[1:])))
    write_peft(tmp_path / "well", lora)
    write_peft(tmp_path / "zero", zero)
    write_peft(tmp_path / "half", half)
    write_peft(tmp_path / "broken", broken)
    write_peft(tmp_path / "narrow", narrow)
    write_peft(tmp_path / "liar", lora, r=64)
    zoo = Zoo.open(tmp_path)
    surveys = Surveys(zoo).complete()
    marks = {
        Path(id).parts[0]: " ".join(f"{mark.ailment}: {mark.reason}" for mark in health(zoo.by_id[id], surveys[id]))
        for id in zoo.ids
    }
    assert marks["well"] == ""
    assert "never trained" in marks["zero"] and "1 of 3 modules" in marks["half"] and "NaN" in marks["broken"]
    assert re.search("1[23]%", marks["narrow"]) and "claims rank 64" in marks["liar"]
    assert marks["huge"].startswith("too large: ΔW is too large for float32 in 1 of 3 modules")
    examined = Examination.of(zoo, surveys)
    assert examined is not None and {Path(id).parts[0] for id in examined.diagnoses["path"]} == {
        *("zero", "half", "broken", "liar", "huge")
    }, "a rank that is not used is no illness"
    charts = overview(zoo, surveys, zoo.ids).set_index("name")["‖ΔW‖ by module"]
    assert charts["huge"] is None and len(charts["well"]) == 3, "an infinite number is no bar of a chart"


def test_the_rank_that_a_header_claims_is_no_rank_of_a_product() -> None:
    part = LowRank(torch.randn(6, 2), torch.randn(5, 2))
    updates = (Hadamard(part, part), Kronecker(Whole(torch.randn(4, 4)), Whole(torch.randn(8, 5))))
    products = LoRA(tuple(LoRALayer(f"x{i}", of) for i, of in enumerate(updates)), metadata={"ss_network_dim": "2"})
    mixed = replace(products, layers=(*products.layers, random_lora([("y", 6, 5, 3)]).layers[0]))
    zoo = MemorySource({"products": products, "mixed": mixed})
    marks = {id: [mark.reason for mark in health(zoo.by_id[id], None)] for id in zoo.ids}
    assert marks == {"products": [], "mixed": ["The header claims rank 2; the factors have 3."]}


def test_of_the_rank_that_a_kronecker_product_may_have_no_more_is_used_than_there_is() -> None:
    layer = LoRALayer("x", Kronecker(Whole(torch.randn(4, 4)), Whole(torch.randn(8, 5))))
    zoo = MemorySource({"a": LoRA((layer,), "synthetic")})
    used = rank_used(zoo.entries[0], Surveys(zoo).complete()["a"])
    assert used == pytest.approx(float(effective_rank(spectrum(layer))) / 20, rel=1e-3) and used < 1


def test_a_lora_of_another_base_model_is_no_neighbour_however_small() -> None:
    shapes = {"a": (("x", 6, 5, 2), ("y", 6, 5, 2)), "other": (("z", 6, 5, 2),), "wider": (("x", 6, 9, 2),)}
    loras = {f"{kind}{i}": random_lora(of, i) for kind, of in shapes.items() for i in range(3)}
    part = replace(loras["a2"], layers=loras["a2"].layers[1:])
    small = {id: _scaled(lora, 1e-3) if id[0] != "a" else lora for id, lora in loras.items()}
    source = MemorySource(small | {"part": part})
    near = nearest(source, {id: survey(source.load(id)) for id in source.ids}, "a0", candidates=3)
    assert set(near.index) == {"a1", "a2", "part"}


def test_a_product_is_a_neighbour_of_the_pair_that_it_is() -> None:
    product = LoRALayer("x", Kronecker(Whole(torch.randn(3, 4)), Whole(torch.randn(2, 1) @ torch.randn(1, 4))))
    pair = LoRALayer("x", LowRank(*product.parametrisation.low_rank()))
    source = MemorySource({id: LoRA((layer,)) for id, layer in (("product", product), ("pair", pair))})
    surveys = {id: survey(source.load(id)) for id in source.ids}
    for id in source.ids:
        assert nearest(source, surveys, id)["cosine"].item() == pytest.approx(1, abs=1e-4)


def _scaled(lora: LoRA, factor: float) -> LoRA:
    return replace(lora, layers=tuple(layer.with_pair(layer.U * factor, layer.V) for layer in lora.layers))


def test_the_nearest_are_those_of_the_exact_distance(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 12)
    zoo = Zoo.open(tmp_path / "zoo")
    surveys = Surveys(zoo).complete()
    first = zoo.ids[0]
    own = zoo.load(first)
    near = nearest(zoo, surveys, first, count=5)
    exact = {
        id: math.sqrt(sum(distance(layer, zoo.load(id)[layer.name]) ** 2 for layer in own.layers)) / surveys[first].norm
        for id in zoo.ids
        if id != first
    }
    assert list(near.index) == sorted(exact, key=exact.__getitem__)[:5]
    assert near["distance"].to_dict() == pytest.approx({id: exact[id] for id in near.index}, rel=1e-4)
    assert near["cosine"].between(-1, 1).all() and first not in near.index


def test_modules_form_a_map_of_blocks_and_projections() -> None:
    names = [
        "down.0.attn.1.attn1.to_out.0",
        "down.0.attn.1.attn1.to_v",
        "down.0.attn.2.attn1.to_v",
        "down.0.attn.2.ff.net.0.proj",
        "proj_in",
    ]
    table = layer_map(pd.Series(range(1, 6), index=names))
    assert table.loc["attn1.to_out.0", "down.0.attn.1"] == 1 and table.loc["attn1.to_v", "down.0.attn.2"] == 3
    assert table.loc["ff.net.0.proj", "down.0.attn.2"] == 4 and table.loc["proj_in", ""] == 5
    assert table.notna().to_numpy().sum() == 5
    blocks = [f"layers.{i}.q" for i in (0, 1, 10, 11, 2, 20, 3)]
    assert list(layer_map(pd.Series(1.0, index=blocks)).columns) == [f"layers.{i}" for i in (0, 1, 2, 3, 10, 11, 20)]


def test_tags_are_summed_over_folders_and_nonsense_is_no_tag() -> None:
    counts = tag_counts({"ss_tag_frequency": json.dumps({"a": {"hat": 2, "dog": 5}, "b": {"hat ": 4, "bad": "x"}})})
    assert counts.to_dict() == {"hat": 6, "dog": 5} and list(counts.index) == ["hat", "dog"]
    assert (
        tag_counts({}).empty
        and tag_counts({"ss_tag_frequency": "no json"}).empty
        and tag_counts({"ss_tag_frequency": [1]}).empty
    )


def test_a_scale_beside_the_weights_is_part_of_the_update(tmp_path: Path) -> None:
    """The same factors, with another alpha in each configuration; and one whose configuration is changed later."""
    lora = random_lora(MODULES, 0)
    for name, alpha in (("one", 2.0), ("double", 4.0), ("copy", 2.0)):
        write_peft(tmp_path / name, lora, alpha)
    zoo = Zoo.open(tmp_path)
    one, double, copy = (f"{name}/adapter_model.safetensors" for name in ("one", "double", "copy"))
    surveys = Surveys(zoo).complete()
    assert surveys[double].norm == pytest.approx(2 * surveys[one].norm)
    near = nearest(zoo, surveys, one)
    assert near.loc[double, "cosine"] == pytest.approx(1) and near.loc[double, "distance"] == pytest.approx(1)
    found = duplicates(zoo, surveys)
    assert set(found["lora"]) == {one, copy} and found["identical"].all()

    write_peft(tmp_path / "copy", lora, 6.0)
    os.utime(tmp_path / "copy" / "adapter_model.safetensors", ns=(0, 0))
    again = Zoo.open(tmp_path)
    assert Surveys(again).complete()[copy].norm == pytest.approx(3 * surveys[one].norm)


def test_an_edit_in_the_midst_of_a_large_file_is_another_update(tmp_path: Path) -> None:
    """Which its digest, of the head and the tail, does not see."""
    whole = random_lora([(f"layer.{i}", 320, 320, 32) for i in range(3)], 0)
    inner = whole.layers[1]
    edited = replace(whole, layers=(whole.layers[0], inner.with_pair(3 * inner.U, inner.V), whole.layers[2]))
    for second, (name, lora) in enumerate((("whole", whole), ("edited", edited), ("copy", whole))):
        write_peft(tmp_path / name, lora, 32.0)
        os.utime(tmp_path / name / "adapter_model.safetensors", (second, second))
    zoo = Zoo.open(tmp_path)
    one, other, copy = (f"{name}/adapter_model.safetensors" for name in ("whole", "edited", "copy"))
    assert len({entry.digest for entry in zoo.entries}) == 1 and zoo.entries[0].size > 2 * SAMPLED_BYTES
    surveys = Surveys(zoo).complete()
    for id in (one, other, copy):
        assert surveys[id].norm == pytest.approx(np.linalg.norm([norm(y) for y in zoo.load(id).layers]))
    found = duplicates(zoo, surveys)
    assert set(found["lora"]) == {one, copy} and found["identical"].all()


@given(seed=st.integers(0, 200), kappa=st.floats(1, 1000), rank=st.integers(1, 6))
@settings(max_examples=15)
def test_a_survey_is_that_of_the_update_whatever_the_gauge(seed: int, kappa: float, rank: int) -> None:
    lora = random_lora([("a", 9, 7, rank), ("b", 9, 7, rank), ("c", 5, 9, rank + 2)], seed, scale=-0.7)
    for own in (survey(lora), survey(turned(lora, seed, kappa))):
        spectra = [spectrum(layer) for layer in lora.layers]
        np.testing.assert_allclose(own.norms, [float(values.norm()) for values in spectra], rtol=1e-5)
        np.testing.assert_allclose(own.effective_ranks, [effective_rank(values) for values in spectra], rtol=1e-4)
        np.testing.assert_allclose(own.sketch, sketch(lora), rtol=1e-3, atol=1e-3 * own.norm)


def blas_threads() -> set[int]:
    """Of the BLAS that NumPy brings: others may be loaded later, and are not asked for thin products."""
    own = [pool for pool in threadpool_info() if pool["user_api"] == "blas" and "numpy" in pool["filepath"]]
    return {pool["num_threads"] for pool in own}


@pytest.mark.skipif(not blas_threads(), reason="NumPy's BLAS here is none that can be told its threads")
def test_thin_products_have_one_thread_until_the_last_of_them_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def sketched(products: object) -> np.ndarray:
        seen.append(blas_threads())
        return np.zeros(SKETCH)

    monkeypatch.setattr("lol_core.insight.survey._sketch", sketched)
    with threadpool_limits(2, user_api="blas"):
        survey(random_lora(MODULES, 0))
        assert seen[0] == {1} and blas_threads() == {2}
        with ExitStack() as second:
            with one_blas_thread():  # ends before one that began later, as in threads
                second.enter_context(one_blas_thread())
            assert blas_threads() == {1}
        assert blas_threads() == {2}
