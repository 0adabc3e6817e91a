from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lol_core.core.groups import GL
from lol_core.core.lora import LoRALayer, bounds
from lol_core.core.parametrisation import LowRank, Magnitude
from lol_core.errors import LoRAFormatError
from tests.builders import random_lora


def test_factors_that_do_not_fit_are_named() -> None:
    with pytest.raises(LoRAFormatError, match=r"q_proj.*U \(4, 2\) and V \(3, 1\)"):
        LoRALayer.pair("q_proj", torch.zeros(4, 2), torch.zeros(3, 1))


@given(scale=st.floats(-8, 8).filter(lambda s: abs(s) > 1e-3), seed=st.integers(0, 1000))
def test_folding_the_scale_gives_the_whole_update(scale: float, seed: int) -> None:
    layer = random_lora([("x", 6, 4, 2)], seed, scale=scale).layers[0]
    U, V = layer.folded(torch.float64)
    expected = scale * layer.U @ layer.V.T
    torch.testing.assert_close(U @ V.T, expected)
    torch.testing.assert_close(layer.delta(torch.float64), expected)


@given(rank=st.integers(1, 5), kappa=st.floats(1, 100), seed=st.integers(0, 1000))
def test_the_action_changes_the_factors_but_not_the_update(rank: int, kappa: float, seed: int) -> None:
    lora = random_lora([("x", 6, 7, rank)], seed, scale=0.5)
    R = GL.sample(rank, condition=kappa, generator=torch.Generator().manual_seed(seed))
    moved = lora.act({"x": R})
    torch.testing.assert_close(moved["x"].delta(torch.float64), lora["x"].delta(torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved["x"].U, lora["x"].U @ R)


def test_merging_dora_scales_rows_to_the_magnitude() -> None:
    layer = random_lora([("x", 6, 4, 2)]).layers[0]
    magnitude = torch.arange(1.0, 7.0, dtype=torch.float64)
    merged = LoRALayer("x", Magnitude(LowRank(layer.U, layer.V), magnitude)).merge(
        torch.randn(6, 4, dtype=torch.float64)
    )
    torch.testing.assert_close(merged.norm(dim=1), magnitude)
    magnitude = torch.arange(1.0, 5.0, dtype=torch.float64)
    merged = LoRALayer("x", Magnitude(LowRank(layer.U, layer.V), magnitude, axis=1)).merge(
        torch.randn(6, 4, dtype=torch.float64)
    )
    torch.testing.assert_close(merged.norm(dim=0), magnitude)


def test_a_diverged_lora_is_told_apart() -> None:
    lora = random_lora()
    lora.check_finite()
    lora["b"].U[0, 0] = float("nan")
    with pytest.raises(LoRAFormatError, match="1 of 3 modules hold NaN.*first b"):
        lora.check_finite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_place_hides_a_number_that_is_not_finite(dtype: torch.dtype, number: float) -> None:
    lora = random_lora([(name, 37, 53, 3) for name in "abc"], dtype=dtype)
    for factor in (lora["c"].U, lora["c"].V):
        for place in ((0, 0), (17, 1), (-1, -1)):
            before = factor[place].clone()
            factor[place] = number
            with pytest.raises(LoRAFormatError, match="1 of 3 modules.*first c"):
                lora.check_finite()
            factor[place] = before
    lora.check_finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounds_do_not_depend_on_how_numbers_lie(dtype: torch.dtype) -> None:
    numbers = torch.randn(3, 5, 4).to(dtype)
    expected = numbers.min().item(), numbers.max().item()
    for same in (numbers, numbers.mT.contiguous().mT, numbers[0:3].transpose(0, 1)):
        assert bounds(same) == expected
    numbers[1, 2, 3] = float("nan")
    assert all(bound != bound for bound in bounds(numbers.mT))


def test_a_lora_is_printed_as_what_it_is_without_its_numbers() -> None:
    lora = random_lora([("a", 8, 6, 2), ("b", 5, 7, 3)], dtype=torch.float32)
    assert repr(lora) == f"LoRA({lora.dialect}: 2 modules, ranks 2, 3)"
    assert repr(lora.layers[0]) == "LoRALayer('a': LowRank 8 × 6, rank 2, scale 1, float32)"
