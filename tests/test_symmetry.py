from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lol_core.batches import make_batch, shared_spec
from lol_core.symmetry import act, product_change, sample_for, sample_gl, sample_orthogonal
from tests.builders import random_batch, random_lora


@given(r=st.integers(2, 8), condition=st.floats(1, 1e4), seed=st.integers(0, 1000))
def test_sampled_matrices_have_the_condition_number_asked_for(r: int, condition: float, seed: int) -> None:
    R = sample_gl(r, condition, (3,), torch.Generator().manual_seed(seed))
    torch.testing.assert_close(torch.linalg.cond(R), torch.full((3,), condition, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_gl1_is_not_trivial() -> None:
    R = sample_gl(1, 100.0, (500,), torch.Generator().manual_seed(0)).flatten()
    assert (R < 0).any() and (R > 0).any() and R.abs().max() > 3 and R.abs().min() < 0.4


def test_condition_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sample_gl(3, 0.5)


@given(r=st.integers(1, 8), seed=st.integers(0, 1000))
def test_orthogonal_matrices_are_orthogonal(r: int, seed: int) -> None:
    Q = sample_orthogonal(r, (4,), torch.Generator().manual_seed(seed))
    torch.testing.assert_close(Q @ Q.mT, torch.eye(r, dtype=torch.float64).expand(4, r, r))


def test_haar_measure_has_mean_zero_and_both_determinants() -> None:
    Q = sample_orthogonal(3, (4000,), torch.Generator().manual_seed(0))
    assert Q.mean(0).abs().max() < 0.05
    assert 0.4 < (torch.linalg.det(Q) > 0).double().mean() < 0.6


def test_the_action_is_a_group_action() -> None:
    batch = random_batch()
    R, S = (sample_for(batch, "gl", 10.0, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    one, other = act(S, act(R, batch)), act(tuple(r @ s for r, s in zip(R, S, strict=True)), batch)
    for a, b in zip((*one.U, *one.V), (*other.U, *other.V), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert product_change(one, batch) < 1e-12
    assert product_change(random_batch(seed=5), batch) > 0.5


def test_padding_is_left_alone() -> None:
    loras = [random_lora([("x", 6, 5, rank)], rank) for rank in (1, 3)]
    batch = make_batch(loras, shared_spec(loras), torch.float64)
    moved = act(sample_for(batch, "gl", 50.0, torch.Generator().manual_seed(0)), batch)
    assert (moved.U[0][0, 0, :, 1:] == 0).all() and (moved.V[0][0, 0, :, 1:] == 0).all()
    assert product_change(moved, batch) < 1e-12
