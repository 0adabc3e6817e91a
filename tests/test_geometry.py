"""Everything computed from factors agrees with the n × m matrix it never forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lol_core.core.geometry import (
    distance,
    effective_rank,
    inner_product,
    norm,
    same_function,
    singular_values,
    singular_values_of_grams,
    spectrum,
    truncate,
)
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Kronecker, Magnitude, Whole
from lol_core.errors import ModelError
from lol_core.insight.anatomy import Anatomy, Comparison
from tests.builders import random_lora

sizes = st.integers(1, 9)


@given(n=sizes, m=sizes, r=st.integers(1, 6), seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_singular_values_by_qr_and_by_gram_matrices(n: int, m: int, r: int, seed: int) -> None:
    layer = random_lora([("x", n, m, r)], seed).layers[0]
    values = singular_values(layer.U, layer.V)
    expected = torch.linalg.svdvals(layer.delta(torch.float64))[: len(values)]
    torch.testing.assert_close(values[: len(expected)], expected, rtol=1e-9, atol=1e-9)
    G_U, G_V = (factor.double().mT @ factor.double() for factor in (layer.U, layer.V))
    of_grams = singular_values_of_grams(torch.stack([G_U, 0 * G_U]), torch.stack([G_V, G_V]))
    torch.testing.assert_close(of_grams[0, : len(expected)], expected, rtol=1e-7, atol=1e-7 * float(expected.max()))
    assert of_grams[0, len(expected) :].sum() <= 1e-6 * expected.max() and not of_grams[1].any()


@given(n=sizes, m=sizes, r=st.integers(1, 4), q=st.integers(1, 4), seed=st.integers(0, 10_000), scale=st.floats(-3, 3))
@settings(max_examples=60)
def test_inner_product_norm_and_distance(n: int, m: int, r: int, q: int, seed: int, scale: float) -> None:
    a, b = random_lora([("x", n, m, r)], seed, scale=scale).layers[0], random_lora([("x", n, m, q)], seed + 1).layers[0]
    A, B = a.delta(torch.float64), b.delta(torch.float64)
    assert inner_product(a, b) == pytest.approx(float((A * B).sum()), abs=1e-9)
    assert norm(a) == pytest.approx(float(A.norm()), abs=1e-9)
    assert distance(a, b) == pytest.approx(float((A - B).norm()), abs=1e-9)


def test_updates_of_different_weights_have_no_inner_product() -> None:
    with pytest.raises(ModelError, match=r"x and y.*\(3, 4\).*\(4, 3\)"):
        inner_product(random_lora([("x", 3, 4, 1)]).layers[0], random_lora([("y", 4, 3, 1)]).layers[0])


def test_effective_rank_counts_equal_singular_values() -> None:
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_spectrum_of_a_kronecker_product() -> None:
    first, second = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    layer = LoRALayer("x", Kronecker(Whole(first), Whole(second)), 0.5)
    torch.testing.assert_close(layer.delta(torch.float64), 0.5 * torch.kron(first, second))
    expected = torch.linalg.svdvals(layer.delta(torch.float64))
    torch.testing.assert_close(spectrum(layer), expected[: len(spectrum(layer))])
    assert norm(layer) == pytest.approx(float(layer.delta(torch.float64).norm()))


@given(seed=st.integers(0, 1000), kappa=st.floats(1, 50))
def test_same_function_sees_through_gauge_dtype_and_padding(seed: int, kappa: float) -> None:
    lora = random_lora(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    moved = lora.act({layer.name: GL.sample(3, condition=kappa, generator=generator) for layer in lora.layers})
    padded = LoRA(
        tuple(
            LoRALayer.pair(y.name, torch.nn.functional.pad(y.U, (0, 2)), torch.nn.functional.pad(y.V, (0, 2)))
            for y in moved.layers
        )
    )
    assert same_function(lora, moved)
    assert same_function(lora, padded)
    half = LoRA(tuple(LoRALayer.pair(y.name, y.U.half(), y.V.half()) for y in lora.layers))
    assert same_function(lora, half, tolerance=5e-3)
    assert not same_function(lora, random_lora(seed=seed + 1))
    negated = LoRA((LoRALayer.pair("a", -lora["a"].U, lora["a"].V), *lora.layers[1:]))
    assert not same_function(lora, negated), "the same norms and spectra are not the same function"


def test_another_magnitude_is_another_function() -> None:
    plain = random_lora([("x", 6, 5, 2)])

    def with_magnitude(numbers: torch.Tensor, axis: int = 0) -> LoRA:
        (layer,) = plain.layers
        return replace(plain, layers=(replace(layer, parametrisation=Magnitude(layer.parametrisation, numbers, axis)),))

    numbers = torch.rand(6, dtype=torch.float64) + 0.5
    dora = with_magnitude(numbers)
    assert same_function(dora, with_magnitude(numbers.half()))
    for other in (plain, with_magnitude(numbers * 1.1), with_magnitude(torch.rand(5), 1)):
        assert not same_function(dora, other) and not same_function(other, dora)
        assert not Comparison.of(dora, other).same and Comparison.of(dora, dora).same


def test_distance_survives_cancellation() -> None:
    layer = random_lora([("x", 30, 20, 4)]).layers[0]
    moved = layer.act(GL.sample(4, condition=100.0, generator=torch.Generator().manual_seed(0)))
    assert distance(layer, moved) < 1e-12 * norm(layer) * math.sqrt(100) * 100


@given(n=sizes, m=sizes, r=st.integers(1, 6), k=st.integers(1, 7), seed=st.integers(0, 10_000), scale=st.floats(0.1, 3))
@settings(max_examples=60)
def test_truncation_is_the_best_of_its_rank(n: int, m: int, r: int, k: int, seed: int, scale: float) -> None:
    layer = random_lora([("x", n, m, r)], seed, scale=scale).layers[0]
    cut, error = truncate(layer, k)
    left, values, right = torch.linalg.svd(layer.delta(torch.float64), full_matrices=False)
    best = (left[:, :k] * values[:k]) @ right[:k]
    assert cut.rank <= k and error == pytest.approx(float(values[k:].norm() / values.norm()), abs=1e-6)
    torch.testing.assert_close(cut.delta(torch.float64), best, rtol=1e-4, atol=1e-4 * float(values[0]))


@given(seed=st.integers(0, 1000), k=st.integers(1, 8), scale=st.sampled_from([1.0, -0.5]))
def test_a_kronecker_product_is_truncated_by_the_triplets_of_its_factors(seed: int, k: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((3, 2), (4, 5)))
    layer = LoRALayer("x", Kronecker(Whole(first), Whole(second)), scale)
    cut, error = truncate(layer, k)
    left, values, right = torch.linalg.svd(layer.delta(torch.float64), full_matrices=False)
    assert error == pytest.approx(float(values[k:].norm() / values.norm()), abs=1e-6)
    best = (left[:, :k] * values[:k]) @ right[:k]
    torch.testing.assert_close(cut.delta(torch.float64), best, rtol=1e-4, atol=1e-4 * float(values[0]))


def test_a_comparison_has_no_least_size() -> None:
    lora, zero = random_lora(), random_lora(scale=0.0)
    faint = replace(lora, layers=tuple(replace(layer, scale=1e-20) for layer in lora.layers))
    again = Comparison.of(faint, faint)
    assert again.cosine == pytest.approx(1) and again.table["cosine"].to_numpy() == pytest.approx(1)
    shares = [Anatomy.of(one).colourings["energy of the largest singular value"] for one in (faint, lora, zero)]
    assert shares[0] == pytest.approx(shares[1]) and not shares[2].any()
    assert Comparison.of(lora, zero).distance == pytest.approx(1) and Comparison.of(zero, zero).distance == 0
    assert math.isnan(Comparison.of(zero, lora).distance), "a share of nothing"
    assert Comparison.of(zero, lora).cosine == 0 and Comparison.of(zero, zero).same
