"""Spaces have the distances they promise, neighbours are found there, pictures are repeatable, and what tells a part
apart is named.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from lol_core.collections.memory import MemorySource
from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec, stack
from lol_core.core.geometry import distance, inner_product, spectrum
from lol_core.core.lora import LoRA
from lol_core.core.parametrisation import Magnitude
from lol_core.core.progress import Reporter
from lol_core.errors import TaskError
from lol_core.insight.embedding import (
    Space,
    families,
    from_gram,
    nystroem,
    padded_spectra,
    self_products,
    space_of,
)
from lol_core.insight.explanation import explain, name_clusters
from lol_core.insight.maps import MapSettings, colourings, draw_map, family_title
from lol_core.insight.picture import Method, align, displacement, project
from lol_core.insight.surveys import Surveys
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import make_model
from lol_core.learning.models.gram import gram
from lol_core.learning.tasks import Regression
from tests.builders import MODULES, random_lora, turned, write_peft, write_zoo

compiling = pytest.mark.xdist_group("umap")
"""UMAP compiles itself for half a minute, once on a machine and once more for each process that does not wait."""


@pytest.mark.parametrize("passes", [-(10**9), 10**9], ids=["by factors", "by updates"])
@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 2))
@settings(max_examples=15)
def test_the_kernel_is_exact_and_does_not_see_the_factors(passes: int, seed: int, scale: float) -> None:
    with patch.multiple("lol_core.learning.models.gram", PASSES=passes, BLOCK=70):  # several blocks of each
        check_kernel(seed, scale)


def check_kernel(seed: int, scale: float) -> None:
    loras = [random_lora(MODULES, seed + i, scale=scale) for i in range(5)]
    spec = shared_spec(loras)
    products = gram(stack(loras, spec, torch.float64))
    wider = [random_lora([(name, n, m, r + 1) for name, n, m, r in MODULES], seed + 9)]
    with_wider = gram(stack(loras, spec, torch.float64), stack(wider, shared_spec(wider), torch.float64))
    for a, product in zip(loras, with_wider, strict=True):
        pairs = zip(a.layers, wider[0].layers, strict=True)
        assert product[0] == pytest.approx(sum(inner_product(x, y) for x, y in pairs), abs=1e-8)
    for i, a in enumerate(loras):
        for j, b in enumerate(loras):
            assert products[i, j] == pytest.approx(
                sum(inner_product(x, y) for x, y in zip(a.layers, b.layers, strict=True)), abs=1e-8
            )
    others = [turned(lora, seed + i) for i, lora in enumerate(loras)]
    np.testing.assert_allclose(products, gram(stack(others, spec, torch.float64)), rtol=1e-7, atol=1e-7)
    space = from_gram("updates", [str(i) for i in range(5)], products)
    for i in range(1, 5):
        true = sum(distance(x, y) ** 2 for x, y in zip(loras[0].layers, loras[i].layers, strict=True)) ** 0.5
        assert np.linalg.norm(space.vectors[0] - space.vectors[i]) == pytest.approx(true, rel=1e-5)
    assert np.linalg.norm(from_gram("", space.ids, products, directions=True).vectors, axis=1) == pytest.approx(
        np.ones(5), rel=1e-6
    )


def test_spectra_are_a_space() -> None:
    loras = [random_lora(MODULES, i) for i in range(4)] + [random_lora([(n, a, b, 1) for n, a, b, _ in MODULES], 9)]
    spec = shared_spec(loras)
    vectors = padded_spectra([[spectrum(lora[m.name]).numpy() for m in spec.modules] for lora in loras], spec)
    assert vectors.shape == (5, sum(module.rank for module in spec.modules))


def test_a_large_collection_is_placed_by_its_products_with_some(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 40)
    zoo = Zoo.open(tmp_path / "zoo")
    exact, some = space_of(zoo, zoo.ids, "updates"), space_of(zoo, zoo.ids, "updates", landmarks=25)
    assert exact is not None and some is not None and exact.share == 1 and 0 < some.share < 1
    assert sorted(some.ids) == sorted(zoo.ids) and some.vectors.shape == (40, 25)
    true, seen = pd.DataFrame(exact.vectors, index=list(exact.ids)), pd.DataFrame(some.vectors, index=list(some.ids))
    landmarks, others = list(some.ids[:25]), list(some.ids[25:])
    products = seen @ seen.T
    np.testing.assert_allclose(
        products.loc[landmarks, :],
        (true @ true.T).loc[landmarks, some.ids],
        rtol=1e-3,
        atol=1e-3 * products.to_numpy().max(),
    )
    assert np.linalg.norm(seen.loc[others]) < np.linalg.norm(true.loc[others]), "a projection is shorter"
    directions = space_of(zoo, zoo.ids, "directions", landmarks=25)
    assert directions is not None and np.linalg.norm(directions.vectors[:25], axis=1) == pytest.approx(
        np.ones(25), rel=1e-4
    )
    assert space_of(zoo, zoo.ids, "updates", landmarks=25, reporter=Reporter(stop=lambda: True)) is None


def test_latents_are_computed_once_for_each_model_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path / "zoo", 8)
    zoo, store = Zoo.open(tmp_path / "zoo"), Store(tmp_path / "store")
    models = [make_model("svd", shared_spec(zoo.entries), 1).eval() for _ in range(2)]
    first, second = (Checkpoint(model, Regression(("y",)), TrainingConfig(), {}) for model in models)
    computed: list[int] = []
    outputs = Checkpoint.outputs

    def counted(self: Checkpoint, loras: Sequence[LoRA], embed: bool = False) -> torch.Tensor:
        computed.append(len(loras))
        return outputs(self, loras, embed)

    monkeypatch.setattr(Checkpoint, "outputs", counted)
    expected = space_of(zoo, zoo.ids, "latent", checkpoint=first)
    spaces = [space_of(zoo, ids, "latent", checkpoint=first, store=store) for ids in (zoo.ids[:5], zoo.ids, zoo.ids)]
    assert computed == [8, 5, 3] and expected is not None
    for space in spaces:
        assert space is not None
        np.testing.assert_allclose(space.vectors, expected.vectors[: len(space.ids)], rtol=1e-5, atol=1e-6)
        assert space.ids == expected.ids[: len(space.ids)]
    other = space_of(zoo, zoo.ids, "latent", checkpoint=second, store=store)
    assert computed[3:] == [8] and other is not None and not np.allclose(other.vectors, expected.vectors)
    write_peft(zoo.path(zoo.ids[2]).parent, random_lora(MODULES, seed=77))
    changed = space_of(Zoo.open(tmp_path / "zoo"), zoo.ids, "latent", checkpoint=first, store=store)
    assert computed[4:] == [1] and changed is not None
    assert [*np.isclose(changed.vectors, expected.vectors).all(1)] == [i != 2 for i in range(8)]


def test_loras_with_magnitudes_are_a_family_of_their_own() -> None:
    plain = [random_lora(MODULES, seed) for seed in range(5)]
    weighted = [
        replace(
            lora, layers=tuple(replace(y, parametrisation=Magnitude(y.parametrisation, y.U[:, 0])) for y in lora.layers)
        )
        for lora in plain[:4]
    ]
    zoo = MemorySource(dict(zip("abcdefghi", [*plain, *weighted], strict=True)))
    found = families(zoo.entries)
    assert found == [tuple("abcde"), tuple("fghi")]
    assert [family_title(zoo, ids).partition("6, ")[2] for ids in found] == ["3 modules", "3 modules, DoRA"]
    for ids in found:
        space = space_of(zoo, ids, "updates")
        assert space is not None and space.ids == ids  # they have a module in common


def test_nystroem_is_exact_where_the_landmarks_span_everything() -> None:
    X = np.random.default_rng(0).normal(size=(30, 5))
    found = X @ X[:8].T @ nystroem(X[:8] @ X[:8].T)
    np.testing.assert_allclose(found @ found.T, X @ X.T, atol=1e-8)
    batch = stack(loras := [random_lora(MODULES, i) for i in range(4)], shared_spec(loras), torch.float64)
    np.testing.assert_allclose(self_products(batch), np.diag(gram(batch)))


def test_a_map_by_sketches_reads_nothing_again_and_estimates_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, 24)
    (tmp_path / "lora003" / "adapter_model.safetensors").write_bytes(b"0" * 1000)  # refused
    zoo = Zoo.open(tmp_path)
    exact = space_of(zoo, zoo.ids, "updates")
    Surveys(zoo).complete()
    monkeypatch.setattr("lol_core.collections.folder.read_file", lambda path: pytest.fail("it reads weights"))
    made = draw_map(zoo, MapSettings(zoo.fingerprint, tuple(zoo.ids), "sketches"), store=Store(tmp_path / "store"))
    assert exact is not None and made is not None and made.space.ids == exact.ids and len(exact.ids) == 23
    [remark] = made.remarks
    assert "standard error of 10% to 25%" in remark
    ratios = pdist(made.space.vectors) / pdist(exact.vectors)
    assert abs(np.median(ratios) - 1) < 0.1 and ratios.std() < 0.25, "as the remark says"


def test_a_base_model_is_what_the_modules_suggest_or_the_file_claims(tmp_path: Path) -> None:
    for name, claimed in (("a", "someone/base"), ("b", ""), ("c", None)):
        write_peft(tmp_path / f"plain_{name}", random_lora([("net.head", 5, 4, 2)]), base_model_name_or_path=claimed)
        write_peft(tmp_path / f"bert_{name}", random_lora(MODULES), base_model_name_or_path=claimed)
    zoo = Zoo.open(tmp_path)
    expected = {e.path: e.suggested_base or e.base_model or "unknown" for e in zoo.entries}
    assert len(set(expected.values())) == 3, "suggested, claimed and unknown"
    made = colourings(zoo, pd.Series([-1, 0, 1] * 2, index=zoo.ids))
    assert made["base model"]().to_dict() == expected
    assert [*made["cluster"]()][:3] == ["in no cluster", "cluster 1", "cluster 2"]


@pytest.fixture(scope="module")
def two_clouds() -> Space:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)) + np.where(np.arange(60)[:, None] < 30, 0, 9)
    return Space("clouds", tuple(f"lora{i:02d}" for i in range(60)), vectors)


def test_neighbours_and_clusters_come_from_the_space(two_clouds: Space) -> None:
    near = two_clouds.neighbours("lora03", 5)
    assert (
        len(near) == 5
        and near.is_monotonic_increasing
        and "lora03" not in near
        and all(id < "lora30" for id in near.index)
    )
    clusters = two_clouds.clusters()
    assert clusters[clusters >= 0].nunique() == 2
    assert {clusters[f"lora{i:02d}"] for i in range(30)} - {-1} != {clusters[f"lora{i:02d}"] for i in range(30, 60)} - {
        -1
    }


def test_clusters_of_very_many_are_those_of_a_sample(two_clouds: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lol_core.insight.embedding.SAMPLED", 40)
    clusters = two_clouds.clusters()
    assert list(clusters.index) == list(two_clouds.ids) and clusters[clusters >= 0].nunique() == 2
    assert not {*clusters[:30]} & {*clusters[30:]} - {-1}


@compiling
@pytest.mark.parametrize(("method", "dimensions"), [("PCA", 2), ("PCA", 3), ("UMAP", 2)])
def test_a_picture_is_repeatable_and_keeps_clouds_apart(two_clouds: Space, method: Method, dimensions: int) -> None:
    first, second = (project(two_clouds, method, dimensions=dimensions, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert list(first.columns) == list("xyz")[:dimensions]
    gap = np.linalg.norm(first[:30].mean() - first[30:].mean())
    assert gap > 2 * max(first[:30].std().max(), first[30:].std().max())


@given(seed=st.integers(0, 1000), dimensions=st.sampled_from([2, 3]), reflect=st.booleans(), new=st.integers(0, 5))
@settings(max_examples=25)
def test_a_turned_picture_is_laid_over_the_earlier_one(seed: int, dimensions: int, reflect: bool, new: int) -> None:
    rng = np.random.default_rng(seed)
    ids, axes = [f"l{i}" for i in range(20)], list("xyz")[:dimensions]
    earlier = pd.DataFrame(rng.normal(size=(20, dimensions)) + 3, index=ids, columns=axes)
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    turn[:, 0] *= -1 if reflect else 1
    more = pd.DataFrame(rng.normal(size=(new, dimensions)), index=[f"new{i}" for i in range(new)], columns=axes)
    whole = pd.concat([earlier, more]) @ turn + rng.normal(size=dimensions)
    found = align(whole.set_axis(axes, axis=1).iloc[rng.permutation(20 + new)], earlier)
    np.testing.assert_allclose(found.loc[ids], earlier, atol=1e-9)
    np.testing.assert_allclose(found.loc[more.index], more, atol=1e-9)
    assert displacement(found, earlier) < 1e-9


@compiling
def test_what_umap_compiles_is_kept_on_disk(two_clouds: Space) -> None:
    project(two_clouds, "UMAP")
    from umap import umap_

    assert Path(umap_.smooth_knn_dist.stats.cache_path).is_dir()


@compiling
def test_a_picture_stays_in_place_when_it_starts_from_the_last(two_clouds: Space) -> None:
    """No rotation or reflection of the new picture lies nearer to the last: true of UMAP on every machine, wherever its
    rounding takes it.
    """
    first = project(two_clouds, "UMAP", seed=1)
    more = Space("clouds", (*two_clouds.ids, "new"), np.vstack([two_clouds.vectors, two_clouds.vectors[:1] + 0.1]))
    second = project(more, "UMAP", seed=2, start=first)
    moved = displacement(second, first)
    middle = second.loc[first.index].mean()
    for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        for flip in (np.eye(2), np.diag([1.0, -1.0])):
            other = pd.DataFrame((second - middle).to_numpy() @ turn @ flip, second.index, second.columns) + middle
            assert moved <= displacement(other, first) * (1 + 1e-6)
    assert set(second.index) == {*first.index, "new"}


def test_how_far_a_picture_moved_is_measured_in_its_radius() -> None:
    square = pd.DataFrame({"x": [1.0, -1, -1, 1], "y": [1.0, 1, -1, -1]}, index=list("abcd"))
    assert displacement(square, square) == 0
    assert displacement(square + 1, square) == pytest.approx(1), "shifted by √2, the distance of the corners"
    assert np.isnan(displacement(square, square.set_axis(list("efgh")))), "none in both"


def test_too_few_points_for_a_map() -> None:
    with pytest.raises(TaskError, match="more than 2"):
        project(Space("", ("a", "b"), np.zeros((2, 3))))


def test_a_selection_is_explained_by_the_columns_it_differs_in() -> None:
    rng = np.random.default_rng(1)
    ids = [f"l{i}" for i in range(80)]
    labels = pd.DataFrame(
        {
            "rate": np.r_[rng.normal(3, 1, 20), rng.normal(0, 1, 60)],
            "noise": rng.normal(size=80),
            "style": ["ink"] * 18 + ["oil"] * 2 + ["oil"] * 60,
            "name": [f"unique {i}" for i in range(80)],
            "constant": 1,
        },
        index=ids,
    )
    found = explain(labels, ids[:20])
    assert list(found["column"]) in (["rate", "style", "noise"], ["style", "rate", "noise"])
    says = dict(zip(found["column"], found["says"], strict=True))
    assert says["rate"].startswith("higher") and says["style"].startswith("ink: 90%")
    assert found["effect"].between(0, 1.0001).all() and found.set_index("column")["p"]["rate"] < 1e-6
    assert explain(labels, []).empty and explain(labels, ids).empty


def test_clusters_are_named_by_what_tells_them_apart() -> None:
    ids = [f"l{i}" for i in range(60)]
    clusters = pd.Series([i // 20 if i < 55 else -1 for i in range(60)], index=ids)
    labels = pd.DataFrame(
        {"hat": [int(i < 20) for i in range(60)], "kind": ["dog" if 20 <= i < 40 else f"k{i % 3}" for i in range(60)]},
        index=ids,
    )
    names = name_clusters(clusters, labels)
    assert names[0] == "hat" and names[1] == "dog" and set(names) == {0, 1, 2}
    unrelated = pd.DataFrame({"noise": np.tile([0.0, 1.0, 2.0], 20)}, index=ids)
    assert name_clusters(clusters, unrelated) == {k: f"cluster {k + 1}" for k in range(3)}


def test_a_map_is_kept_on_disk_and_read_again_by_another_session(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 20)
    zoo = Zoo.open(tmp_path / "zoo")
    settings = MapSettings(zoo.fingerprint, tuple(zoo.ids), "updates")
    first = draw_map(zoo, settings)
    shutil.rmtree(tmp_path / "zoo")  # nothing can be read a second time
    again = draw_map(zoo, settings)
    assert first is not None and again is not None and again.moved is None
    assert again.space.ids == first.space.ids and again.space.share == first.space.share
    np.testing.assert_array_equal(again.space.vectors, first.space.vectors)
    pd.testing.assert_series_equal(again.clusters, first.clusters)
    pd.testing.assert_frame_equal(again.picture, first.picture)
    rotated = draw_map(zoo, replace(settings, seed=1), start=first.picture)
    assert rotated is not None and rotated.moved == pytest.approx(0, abs=1e-6), "PCA of the same space"
    assert not first.remarks and ["Laid over the map before it" in remark for remark in rotated.remarks] == [True]
    table = first.table(zoo, zoo.ids[3:5], settings.axes)
    assert list(table["name"]) == ["lora003", "lora004"]
    np.testing.assert_array_equal(table[["PCA 1", "PCA 2"]], first.picture.iloc[3:5])
    near = first.neighbours(zoo, zoo.ids[0], 3)
    assert near["distance"].is_monotonic_increasing and len(near) == 3 and "lora000" not in list(near["name"])
    with pytest.raises(TaskError, match="can be read"):
        draw_map(zoo, replace(settings, kind="spectra"))


@compiling
def test_neighbours_are_looked_up_once_for_every_picture_of_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource({f"l{i}": random_lora(seed=i) for i in range(30)})
    settings = MapSettings(source.fingerprint, tuple(source.ids), "updates", method="UMAP")
    first = draw_map(source, settings, store=Store(tmp_path))
    monkeypatch.setattr("lol_core.insight.picture.k_nearest", lambda *of, **how: pytest.fail("looked up again"))
    other = draw_map(source, replace(settings, dimensions=3), store=Store(tmp_path))
    assert first is not None and other is not None and list(other.picture) == ["x", "y", "z"]
    with pytest.raises(pytest.fail.Exception):
        draw_map(source, replace(settings, neighbours=5), store=Store(tmp_path))


def test_a_map_that_was_cut_short_on_disk_is_made_again(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 12)
    zoo = Zoo.open(tmp_path / "zoo")
    settings = MapSettings(zoo.fingerprint, tuple(zoo.ids), "spectra")
    store = Store(tmp_path / "store")
    first = draw_map(zoo, settings, store=store)
    kept = list((tmp_path / "store" / "maps").iterdir())
    assert len(kept) == 2, "the space, and the picture of it"
    for path in kept:
        path.write_bytes(path.read_bytes()[:200])
    again = draw_map(zoo, settings, store=store)
    assert first is not None and again is not None
    pd.testing.assert_frame_equal(again.picture, first.picture)
    never = Reporter(stop=lambda: True)
    assert draw_map(zoo, settings, store=store, reporter=never) is not None, "taken from the store"
    assert draw_map(zoo, settings, store=Store(tmp_path / "other"), reporter=never) is None


def test_a_space_that_there_is_not_is_refused(synthetic_zoo: Zoo) -> None:
    with pytest.raises(TaskError, match="no space 'update'. Choose one of updates, "):
        space_of(synthetic_zoo, synthetic_zoo.ids, cast(Any, "update"))
    with pytest.raises(TaskError, match="There is no LoRA to place"):
        space_of(synthetic_zoo, [], "updates")
