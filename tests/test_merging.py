"""Merging beside peft's, blind to the gauge where it is said to be; one canonical copy for all of a function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lol_core.cli.rewriting import Way
from lol_core.collections.zoo import Zoo
from lol_core.core.canonical import canonical
from lol_core.core.geometry import distance, norm, same_function
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Experts, Hadamard, LowRank, Magnitude
from lol_core.errors import CheckpointError, LoRAFormatError, ModelError
from lol_core.experiments.merge_readings import READINGS, Faces, Reading
from lol_core.experiments.merger import MergerConfig, Read, cut, split_pairs, train_merger
from lol_core.experiments.merges import PAIRS
from lol_core.formats import read
from lol_core.formats.writing import write
from lol_core.insight.learned import merger_for
from lol_core.insight.merge_report import MergeReport
from lol_core.insight.merging import Method, _leading, largest_entries, merge
from lol_core.learning.merger import Meeting, Merger, Update
from tests.builders import random_lora, turned
from tests.conftest import ROOT
from tests.test_cli_rewriting import output

SHAPES = (("a", 17, 15, 3), ("b", 16, 9, 3), ("c", 7, 15, 3))
WEIGHTS = [0.7, -1.2]
PEFT = [method for method in Method if method not in (Method.KNOTS, Method.LEARNED)]


def gap(a: LoRA, b: LoRA) -> float:
    """‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖."""
    return sum(distance(x, b[x.name]) ** 2 for x in a.layers) ** 0.5 / sum(norm(x) ** 2 for x in a.layers) ** 0.5


def any_merger(seed: int = 0) -> Merger:
    """A merger of random weights (not trained), in which every term counts."""
    merger = Merger({name: (n, m) for name, n, m, _ in SHAPES})
    generator = torch.Generator().manual_seed(seed)
    for weight in merger.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return merger.eval()


@pytest.fixture(scope="module")
def wearing() -> Any:
    """A peft model of two linear modules and a convolution with two random (not fine-tuned) adapters."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(9, 12), nn.Linear(11, 8), nn.Conv2d(4, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["a", "b", "c"], init_lora_weights=False)
    model = get_peft_model(Three(), config, adapter_name="one")
    model.add_adapter("two", replace(config, lora_alpha=2))
    return model.base_model


def worn(model: Any, adapter: str) -> LoRA:
    layers = []
    for name in "abc":
        module = getattr(model.model, name)
        A, B = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
        shape = tuple(module.base_layer.weight.shape)
        layers.append(
            LoRALayer.pair(name, B.flatten(1), A.flatten(1).T, scale=module.scaling[adapter], weight_shape=shape)
        )
    return LoRA(tuple(layers), "PEFT")


@pytest.mark.parametrize("method", PEFT)
def test_a_merge_is_what_peft_makes(method: Method, wearing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cat" if method is Method.SUM else str(method)
    # seeded once the new adapter's own start has been drawn, right before peft merges
    monkeypatch.setattr("peft.tuners.lora.model._freeze_adapter", lambda *_: torch.manual_seed(5))
    wearing.add_weighted_adapter(["one", "two"], WEIGHTS, name, name, density=0.4)
    ours = merge([worn(wearing, "one"), worn(wearing, "two")], WEIGHTS, method=method, density=0.4, seed=5)
    for layer in ours.lora.layers:
        theirs = getattr(wearing.model, layer.name).get_delta_weight(name).detach()
        torch.testing.assert_close(layer.delta(), theirs, rtol=1e-4, atol=1e-5)


def test_a_cut_sum_is_pefts_svd(wearing: Any) -> None:
    wearing.add_weighted_adapter(["one", "two"], WEIGHTS, "cut", "svd", svd_rank=2)
    ours = merge([worn(wearing, "one"), worn(wearing, "two")], WEIGHTS, 2)
    for layer in ours.lora.layers:
        torch.testing.assert_close(
            layer.delta(), getattr(wearing.model, layer.name).get_delta_weight("cut").detach(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("method", [method for method in Method if method.invariant])
@given(
    seed=st.integers(0, 2**16),
    ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    condition=st.sampled_from([1.0, 10.0, 1e3]),
    density=st.sampled_from([0.2, 0.5, 1.0]),
)
@settings(max_examples=8, deadline=None)
def test_what_is_called_invariant_does_not_see_the_gauge(
    method: Method, seed: int, ranks: tuple[int, int], condition: float, density: float
) -> None:
    one, two = (random_lora([(*s[:3], r) for s in SHAPES], seed + k) for k, r in enumerate(ranks))
    plain, other = (
        merge([first, two], WEIGHTS, 3, method, density=density, merger=any_merger(seed))
        for first in (one, turned(one, seed, condition))
    )
    assert gap(plain.lora, other.lora) < 1e-5
    assert plain.lost == pytest.approx(other.lost, abs=1e-5)


@pytest.mark.parametrize("method", [method for method in Method if not method.invariant])
def test_averaging_factors_sees_the_gauge(method: Method) -> None:
    """The demonstration: the same two functions, one of them in another gauge, merge to something else altogether."""
    one, two = random_lora(SHAPES, 1), random_lora(SHAPES, 2)
    assert same_function(one, turned(one, 3), 1e-9)
    plain, other = (merge([first, two], [0.5, 0.5], method=method).lora for first in (one, turned(one, 3)))
    assert gap(plain, other) > 0.5
    assert gap(plain, merge([one, two], [0.5, 0.5], method=method).lora) < 1e-12, "the same factors merge the same"


def test_averaging_factors_takes_a_lora_and_its_own_copy_for_two() -> None:
    one = random_lora(SHAPES, 1)
    copy = turned(one, 3)
    assert gap(one, merge([one, copy], [0.5, 0.5]).lora) < 1e-6
    assert gap(one, merge([one, copy], [1, 1], 3, Method.KNOTS, density=1.0).lora) < 1e-6
    assert gap(one, merge([one, copy], [0.5, 0.5], method=Method.LINEAR).lora) > 0.5


def test_knots_is_ties_in_the_basis_of_the_concatenated_updates() -> None:
    """Against the published recipe on n × m matrices: one SVD for each module, one threshold over all of them."""
    loras, density = [random_lora(SHAPES, seed, scale=0.5) for seed in (1, 2, 4)], 0.3
    weights = [1.0, 0.5, 2.0]
    bases, parts = [], []
    for name, *_ in SHAPES:
        deltas = [lora[name].delta(torch.float64) for lora in loras]
        P, values, Q = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
        rank = int((values > 1e-5).sum())
        bases.append(P[:, :rank])
        parts.append((values[:rank, None] * Q[:rank]).split(deltas[0].shape[1], 1))
    kept = torch.stack(
        [torch.cat([x.flatten() for x in largest_entries([p[i] for p in parts], density)]) for i in range(3)]
    )
    sign = torch.where(kept.sum(0) >= 0, 1, -1)
    agree = kept.sign() == sign
    flat = (torch.tensor(weights).view(-1, 1) * kept * agree).sum(0) / agree.sum(0).clamp_min(1)
    merged = merge(loras, weights, method=Method.KNOTS, density=density).lora
    for (name, *_), P, part, core in zip(SHAPES, bases, parts, flat.split([p[0].numel() for p in parts]), strict=True):
        torch.testing.assert_close(
            merged[name].delta(torch.float64), P @ core.view(part[0].shape), rtol=1e-5, atol=1e-5
        )


def test_a_core_of_equal_singular_values_does_not_see_the_gauge() -> None:
    """Where the basis of the core is free, it is settled."""
    generator = torch.Generator().manual_seed(0)
    P, Q = (torch.linalg.qr(torch.randn(k, 6, generator=generator, dtype=torch.float64)).Q for k in (17, 15))
    one, two = (LoRA((LoRALayer.pair("a", P[:, part], Q[:, part]),), "synthetic") for part in (slice(3), slice(3, 6)))
    plain, other = (merge([first, two], [1, 1], method=Method.KNOTS).lora for first in (one, turned(one, 1)))
    assert gap(plain, other) < 1e-5


def test_a_report_says_what_each_module_kept_and_whether_the_gauge_was_seen() -> None:
    """Against dense updates."""
    loras = [random_lora(SHAPES, seed=i) for i in range(2)]
    report = MergeReport.of(loras, WEIGHTS, 2)
    total = away = 0.0
    for layer, x, y in zip(report.merged.lora.layers, *(lora.layers for lora in loras), strict=True):
        one, two, made = (of.delta(torch.float64) for of in (x, y, layer))
        exact = WEIGHTS[0] * one + WEIGHTS[1] * two
        row = report.modules.loc[layer.name]
        assert row["from the sum"] == pytest.approx(float((made - exact).norm() / exact.norm()), rel=1e-5)
        assert row["lost"] == pytest.approx(row["from the sum"], rel=1e-5)
        for i, of in enumerate((one, two), 1):
            assert row[f"cosine {i}"] == pytest.approx(float((made * of).sum() / made.norm() / of.norm()), abs=1e-5)
        total, away = total + float(exact.square().sum()), away + float((made - exact).square().sum())
    assert report.from_sum == pytest.approx((away / total) ** 0.5, rel=1e-5) and report.turned is None
    by_factors = MergeReport.of(loras, WEIGHTS, method=Method.LINEAR)
    assert by_factors.turned is not None and by_factors.turned > 0.1 and by_factors.from_sum > 0.1


@given(seed=st.integers(0, 2**16), ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=20, deadline=None)
def test_a_learned_merge_is_the_stated_sum_of_parts_and_sees_no_order(seed: int, ranks: tuple[int, int]) -> None:
    """Against dense matrices; a rotation of the weight, and turning both LoRAs and their order, go with it."""
    one, two = (random_lora([(*s[:3], r) for s in SHAPES], seed + k, scale=0.5) for k, r in enumerate(ranks))
    merger = any_merger(seed)

    def learned(loras: list[LoRA], weights: list[float]) -> LoRA:
        return merge(loras, weights, method=Method.LEARNED, merger=merger).lora

    made, (a, b) = learned([one, two], WEIGHTS), WEIGHTS
    assert gap(made, learned([turned(two, 2), turned(one, 1)], [b, a])) < 1e-5
    updates = [[Update.of(layer) for layer in lora.layers] for lora in (one, two)]
    want: dict[str, Tensor] = {name: torch.zeros(n, m, dtype=torch.float64) for name, n, m, _ in SHAPES}
    for (mine, others), weight in zip(((0, 1), (1, 0)), WEIGHTS, strict=True):
        meetings = [Meeting(*pair) for pair in zip(updates[mine], updates[others], strict=True)]
        coefficients = merger(torch.stack([meeting.invariants for meeting in meetings])).detach()
        for (name, *_), meeting, row in zip(SHAPES, meetings, coefficients, strict=True):
            x, y = meeting.one, meeting.other
            dense, C, R = (
                P * of @ Q.T for P, of, Q in ((x.P, x.values, x.Q), (y.P, y.inside, y.P), (y.Q, y.inside, y.Q))
            )
            parts = [dense, C @ dense, dense @ R, C @ dense @ R, x.P * x.flat @ x.Q.T]
            assert float(parts[-1].norm()) == pytest.approx(float(dense.norm()))
            want[name] += weight * sum(c * part for c, part in zip(row, parts, strict=True))
    for layer in made.layers:
        torch.testing.assert_close(layer.delta(torch.float64), want[layer.name], rtol=1e-4, atol=1e-4)
    flip = {name: torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for name, n, *_ in SHAPES}
    rotated = [
        LoRA(tuple(replace(y, parametrisation=LowRank(flip[y.name] @ y.U, y.V)) for y in lora.layers), "synthetic")
        for lora in (one, two)
    ]
    for layer, before in zip(learned(rotated, WEIGHTS).layers, made.layers, strict=True):
        torch.testing.assert_close(
            layer.delta(), (flip[layer.name] @ before.delta(torch.float64)).float(), rtol=1e-3, atol=1e-3
        )


def test_an_untrained_merger_sums_and_a_kept_one_merges_as_before(tmp_path: Path) -> None:
    loras = [random_lora(SHAPES, seed) for seed in (1, 2, 3)]
    shapes = {name: (n, m) for name, n, m, _ in SHAPES}
    for some, weights in ((loras[:2], WEIGHTS), (loras, [1.0, 0.5, -1.0])):
        assert (
            gap(merge(some, weights).lora, merge(some, weights, method=Method.LEARNED, merger=Merger(shapes)).lora)
            < 1e-5
        )
    merger = any_merger()
    merger.save(tmp_path / "merger.json")
    plain, again = (
        merge(loras[:2], WEIGHTS, 3, Method.LEARNED, merger=by).lora
        for by in (merger, Merger.load(tmp_path / "merger.json"))
    )
    assert gap(plain, again) < 1e-3  # five digits are kept
    (tmp_path / "merger.json").write_text('{"modules": {}}')
    with pytest.raises(CheckpointError, match="merger.json: cannot be read as a merger"):
        Merger.load(tmp_path / "merger.json")


@pytest.mark.parametrize("zoo", ["faces", "emojinette", "glosses"])
def test_the_mergers_that_come_along_fit_their_zoo_and_see_no_gauge(zoo: str) -> None:
    source = Zoo.open(ROOT / "sample_loras" / zoo)
    one, two = (source.load(id) for id in source.ids[:2])
    merger = merger_for(one)
    assert merger is not None and merger.about["fingerprint"] == source.fingerprint
    rank = max(one.ranks)
    made = merge([one, two], [1, 1], rank, Method.LEARNED).lora
    assert gap(made, merge([turned(two, 1), turned(one, 2)], [1, 1], rank, Method.LEARNED).lora) < 1e-5
    assert made.ranks == (rank,) and gap(made, merge([one, two], [1, 1], rank).lora) > 0.01
    with pytest.raises(ModelError, match="two LoRAs or more that adapt all the"):
        merge([one, replace(two, layers=two.layers[1:])], [1, 1], rank, Method.LEARNED)
    with pytest.raises(ModelError, match="faces, glosses, and these LoRAs, with a, adapt other.*such as knots"):
        merge([random_lora(SHAPES, 1)] * 2, [1, 1], method=Method.LEARNED)


def test_dare_is_the_same_for_a_seed_and_the_order_of_modules() -> None:
    one, two = random_lora(SHAPES, 1), random_lora(SHAPES, 2)
    first = merge([one, two], WEIGHTS, 3, Method.DARE_TIES_SVD, seed=1).lora
    shuffled = [LoRA(lora.layers[::-1], lora.dialect) for lora in (one, two)]
    assert gap(first, merge(shuffled, WEIGHTS, 3, Method.DARE_TIES_SVD, seed=1).lora) < 1e-6
    assert gap(first, merge([one, two], WEIGHTS, 3, Method.DARE_TIES_SVD, seed=2).lora) > 0.1


@given(seed=st.integers(0, 2**16), count=st.integers(2, 4), rank=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_cut_mean_is_nearest_to_all(seed: int, count: int, rank: int) -> None:
    loras = [random_lora(SHAPES[1:2], seed + k) for k in range(count)]
    merged = merge(loras, [1 / count] * count, rank)
    (mine,) = merged.lora.layers

    def far(X: Tensor) -> float:
        return sum(float((lora.layers[0].delta(torch.float64) - X).square().sum()) for lora in loras)

    mean = torch.stack([lora.layers[0].delta(torch.float64) for lora in loras]).mean(0)
    spread = far(mean) + count * (merged.lost * float(mean.norm())) ** 2
    assert far(mine.delta(torch.float64)) == pytest.approx(spread, rel=1e-5)
    generator = torch.Generator().manual_seed(seed)
    for step in (0.01, 0.3):
        U, V = (
            factor.double() + step * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            for factor in (mine.U, mine.V)
        )
        assert far(U @ V.T) >= far(mine.delta(torch.float64))


def test_what_cannot_be_merged_is_refused_with_a_way_out() -> None:
    one, wider = random_lora([("a", 7, 6, 2)], 0), random_lora([("a", 7, 6, 3)], 1)
    with pytest.raises(LoRAFormatError, match="the ranks 2, 3.*such as ties_svd"):
        merge([one, wider], [1, 1], method=Method.LINEAR)
    with pytest.raises(ModelError, match="density lies above 0.*found 0"):
        merge([one, one], [1, 1], method=Method.TIES_SVD, density=0)
    with pytest.raises(ModelError, match="A weight is a number; found nan"):
        merge([one, one], [1, float("nan")])
    dora = replace(one, layers=(LoRALayer("a", Magnitude(one.layers[0].parametrisation, torch.ones(7))),))
    with pytest.raises(LoRAFormatError, match="DoRA magnitude"):
        merge([one, dora], [1, 1], method=Method.KNOTS)
    U, V = (torch.randn(2, k, 2, generator=torch.Generator().manual_seed(k)) for k in (7, 6))
    product = replace(one, layers=(LoRALayer("a", Hadamard(LowRank(U[0], V[0]), LowRank(U[1], V[1]))),))
    with pytest.raises(LoRAFormatError, match="no plain pair"):
        merge([one, product], [1, 1], method=Method.TIES)
    assert merge([one, product], [1, 1], 2, Method.KNOTS).lora.ranks == (2,)


@given(
    seed=st.integers(0, 2**16),
    rank=st.integers(1, 4),
    condition=st.sampled_from([1.0, 10.0, 1e3]),
    scale=st.sampled_from([1.0, -0.5]),
    more=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_loras_of_one_function_have_one_canonical_copy(
    seed: int, rank: int, condition: float, scale: float, more: int
) -> None:
    lora = random_lora([(*s[:3], rank) for s in SHAPES], seed)
    layers = []
    for layer in turned(lora, seed + 1, condition).layers:  # another gauge, scale and rank
        unused = torch.zeros(layer.m, more, dtype=torch.float64)
        U = torch.cat([layer.U / scale, torch.ones(layer.n, more, dtype=torch.float64)], 1)
        layers.append(LoRALayer.pair(layer.name, U, torch.cat([layer.V, unused], 1), scale=scale))
    one, other = canonical(lora), canonical(replace(lora, layers=tuple(layers)))
    assert one.ranks == (rank,) and gap(lora, one) < 1e-6
    for a, b in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(a.U.T @ a.U, a.V.T @ a.V, rtol=1e-4, atol=1e-4)  # balanced
        for mine, its in ((a.U, b.U), (a.V, b.V)):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("values", [(2.0, 2.0, 1.0), (1.0, 1.0, 1.0), (3.0, 1.0, 1.0)])
def test_equal_singular_values_are_settled_too(values: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    P, Q = (torch.linalg.qr(torch.randn(k, 3, generator=generator, dtype=torch.float64)).Q for k in (9, 7))
    lora = LoRA((LoRALayer.pair("a", P * torch.tensor(values), Q),), "synthetic")
    one, other = canonical(lora).layers[0], canonical(turned(lora, 1)).layers[0]
    torch.testing.assert_close(one.U, other.U, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.V, other.V, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.delta(torch.float64), lora.layers[0].delta(torch.float64), rtol=1e-5, atol=1e-6)


def test_the_canonical_copy_of_other_parametrisations() -> None:
    U, V = (torch.randn(2, k, 2, generator=torch.Generator().manual_seed(k)) for k in (7, 6))
    product = LoRALayer("a", Hadamard(LowRank(U[0], V[0]), LowRank(U[1], V[1])), 0.5)
    dora = LoRALayer("b", Magnitude(LowRank(U[0], V[0]), torch.ones(7)))
    made = canonical(LoRA((product, dora), "synthetic"))
    for before, after in zip((product, dora), made.layers, strict=True):
        torch.testing.assert_close(after.delta(), before.delta(), rtol=1e-5, atol=1e-5)
    assert torch.equal(made["b"].magnitude, torch.ones(7))  # type: ignore[arg-type]  # there, as it was before
    zero = canonical(LoRA((LoRALayer.pair("a", torch.zeros(5, 2), torch.ones(4, 2)),), "synthetic"))
    assert zero.ranks == (1,) and not zero.layers[0].delta().any()
    with pytest.raises(LoRAFormatError, match="pair for each expert"):
        canonical(LoRA((LoRALayer("a", Experts(U, V)),), "synthetic"))


def test_the_commands_say_what_was_lost_and_what_sees_the_gauge(tmp_path: Path) -> None:
    one = random_lora([("model.a", 9, 8, 2), ("model.b", 7, 9, 2)], 3, torch.float32)
    two = random_lora([("model.a", 9, 8, 2), ("model.b", 7, 9, 2)], 4, torch.float32)
    for name, lora in (("one", one), ("copy", turned(one, 1)), ("two", two)):
        write(lora, tmp_path / name, "PEFT", torch.float32)
    number = ("--dtype", "float32")

    def merged(method: str, first: str, *more: object) -> Any:
        out = ("--method", method, *number, "--out", tmp_path / method / first, "--force")
        return output("merge", tmp_path / first, tmp_path / "two", *more, *out)

    def moved(method: str) -> float:
        return gap(*(read(tmp_path / method / name) for name in ("one", "copy")))

    rows = {(method, first): merged(method, first) for method in ("knots", "linear") for first in ("one", "copy")}
    assert rows["knots", "one"]["invariant"] and moved("knots") < 1e-5
    assert not rows["linear", "one"]["invariant"] and moved("linear") > 0.1
    assert rows["linear", "one"]["from the sum"] > 0.1
    mean = merged("sum", "one", "--mean", "--rank", 2)
    assert mean["lost"] == mean["from the sum"] > 0.1
    whole = merge([one, two], [0.5, 0.5]).lora
    assert mean["lost"] == pytest.approx(gap(whole, read(tmp_path / "sum" / "one")), abs=1e-5)
    assert gap(merge([one, two], [0.5, 0.5], 2).lora, read(tmp_path / "sum" / "one")) < 1e-5
    output("canonical", tmp_path / "one", tmp_path / "copy", "--out", tmp_path / "same")
    for a, b in zip(*(read(tmp_path / "same" / name).layers for name in ("one", "copy")), strict=True):
        torch.testing.assert_close(a.U, b.U, rtol=1e-4, atol=1e-4)
    assert output("compress", tmp_path / "one", "--rank", 1, "--out", tmp_path / "small")["written"][0]["rank"] == "1"


def test_the_command_line_offers_every_method() -> None:
    assert [way.value for way in Way] == [method.value for method in Method]


@pytest.mark.parametrize("reading", READINGS)
def test_pairs_to_be_merged_differ_in_what_is_asked_and_share_no_lora(reading: type[Reading], tmp_path: Path) -> None:
    asked = reading(ROOT / "sample_loras", tmp_path)
    pairs, labels = asked.pairs(5), asked.zoo.labels
    loras = [id for pair in pairs for id in (pair.one, pair.two)]
    assert len(pairs) == 5 and len(set(loras)) == 10 and pairs == asked.pairs(5)
    prefix = {"faces": "", "emojinette": "has ", "glosses": "saw "}[asked.zoo_name]
    for pair in pairs:
        for mine, other, columns in ((pair.one, pair.two, pair.of_one), (pair.two, pair.one, pair.of_two)):
            assert columns and all(labels.loc[mine, prefix + column] == 1 for column in columns)
            assert not any(labels.loc[other, prefix + column] for column in columns)
    judged = {id for pair in asked.pairs(PAIRS[asked.zoo_name]) for id in (pair.one, pair.two)}
    train, held = ({id for pair in part for id in (pair.one, pair.two)} for part in split_pairs(asked, MergerConfig()))
    assert train and held and not (train & held or train & judged or held & judged)


def test_a_merger_is_trained_to_do_more_of_what_is_asked() -> None:
    asked = Faces(ROOT / "sample_loras", Path())
    config = MergerConfig(pairs=1, held=1, steps=8, merges=1)
    merger = train_merger(asked, config)
    ((pair,), _), names = split_pairs(asked, config), list(merger.modules_of)
    both = [[Update.of(asked.zoo.load(id)[name]) for name in names] for id in (pair.one, pair.two)]
    goal, generator = Read(asked, names), torch.Generator()
    less, more = (
        goal.loss([cut(*of, 4) for of in by.merged(both, [1.0, 1.0])], pair, 1, generator)
        for by in (merger, Merger(merger.modules_of))
    )
    assert less < more - 0.02
    assert set(merger.about["loss on held pairs"]) == {"learned", "sum", "mean"}


def test_few_singular_triplets_of_many_are_those_of_the_whole_decomposition() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(90, 70, dtype=torch.float64)
    matrix *= torch.rand(matrix.shape) < 0.5  # as sparse as what TIES leaves, its spectrum as flat
    P, values, Q = _leading(matrix, 5)
    whole = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(values, whole.S[:5], rtol=1e-12)
    assert torch.allclose(P * values @ Q.T, whole.U[:, :5] * whole.S[:5] @ whole.Vh[:5], atol=1e-10)
    assert not _leading(torch.zeros(90, 70, dtype=torch.float64), 5)[1].any()
