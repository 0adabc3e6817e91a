from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.groups import GL, GROUPS, PERMUTATION, SCALING, Group, O
from lol_core.core.symmetry import Stage, act, carried, for_spec, product_change, sample_for
from lol_core.core.symmetry import given as given_matrices
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_net import GLNet, GLNetConfig
from tests.builders import random_batch, random_lora


@given(r=st.integers(2, 8), condition=st.floats(1, 1e4), seed=st.integers(0, 1000))
def test_sampled_matrices_have_the_condition_number_asked_for(r: int, condition: float, seed: int) -> None:
    R = GL.sample(r, condition=condition, count=(3,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        torch.linalg.cond(R), torch.full((3,), condition, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_gl1_is_not_trivial() -> None:
    R = GL.sample(1, condition=100.0, count=(500,), generator=torch.Generator().manual_seed(0)).flatten()
    assert (R < 0).any() and (R > 0).any() and R.abs().max() > 3 and R.abs().min() < 0.4


def test_condition_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GL.sample(3, condition=0.5)


@given(r=st.integers(1, 8), seed=st.integers(0, 1000))
def test_orthogonal_matrices_are_orthogonal(r: int, seed: int) -> None:
    Q = O.sample(r, count=(4,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(Q @ Q.mT, torch.eye(r, dtype=torch.float64).expand(4, r, r))


def test_haar_measure_has_mean_zero_and_both_determinants() -> None:
    Q = O.sample(3, count=(4000,), generator=torch.Generator().manual_seed(0))
    assert Q.mean(0).abs().max() < 0.05
    assert 0.4 < (torch.linalg.det(Q) > 0).double().mean() < 0.6


def test_the_action_is_a_group_action() -> None:
    batch = random_batch()
    R, S = (sample_for(batch, GL, condition=10.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    one, other = act(S, act(R, batch)), act(tuple(r @ s for r, s in zip(R, S, strict=True)), batch)
    for a, b in zip((*one.U, *one.V), (*other.U, *other.V), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert product_change(one, batch) < 1e-12
    assert product_change(random_batch(seed=5), batch) > 0.5


def test_padding_is_left_alone() -> None:
    loras = [random_lora([("x", 6, 5, rank)], rank) for rank in (1, 3)]
    batch = stack(loras, shared_spec(loras), torch.float64)
    moved = act(sample_for(batch, GL, condition=50.0, generator=torch.Generator().manual_seed(0)), batch)
    assert (moved.U[0][0, 0, :, 1:] == 0).all() and (moved.V[0][0, 0, :, 1:] == 0).all()
    assert product_change(moved, batch) < 1e-12


@given(r=st.integers(1, 8), seed=st.integers(0, 1000))
def test_permutations_hold_a_single_one_in_every_row_and_column(r: int, seed: int) -> None:
    R = PERMUTATION.sample(r, count=(5,), generator=torch.Generator().manual_seed(seed))
    assert ((R == 0) | (R == 1)).all() and (R.sum(-1) == 1).all() and (R.sum(-2) == 1).all()


@given(r=st.integers(2, 8), condition=st.floats(1, 1e4), seed=st.integers(0, 1000))
def test_scalings_are_diagonal_with_the_condition_number_asked_for(r: int, condition: float, seed: int) -> None:
    R = SCALING.sample(r, condition=condition, count=(3,), generator=torch.Generator().manual_seed(seed))
    assert (R - torch.diag_embed(torch.diagonal(R, dim1=-2, dim2=-1)) == 0).all()
    torch.testing.assert_close(
        torch.linalg.cond(R), torch.full((3,), condition, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_permutations_of_three_are_all_drawn_and_scalings_have_both_signs() -> None:
    assert (
        len(
            {
                tuple(R.argmax(-1).tolist())
                for R in PERMUTATION.sample(3, count=(300,), generator=torch.Generator().manual_seed(0))
            }
        )
        == 6
    )
    diagonal = torch.diagonal(
        SCALING.sample(3, condition=9.0, count=(300,), generator=torch.Generator().manual_seed(0)), dim1=-2, dim2=-1
    )
    assert (diagonal < 0).any(0).all() and (diagonal > 0).any(0).all() and len(diagonal[:, 0].abs().unique()) == 3


@pytest.mark.parametrize("group", GROUPS)
def test_a_shared_r_is_one_for_all_modules_of_a_rank(group: Group) -> None:
    loras = [random_lora([("a", 6, 5, 3), ("b", 7, 6, 3), ("c", 6, 5, 2)], seed) for seed in (0, 1)]
    batch = stack(loras, shared_spec(loras), torch.float64)
    R = sample_for(batch, group, condition=5.0, generator=torch.Generator().manual_seed(0), shared=True)
    (a, c), b = R[0].unbind(1), R[1][:, 0]
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a[0], a[1])
    assert (c[:, 2, :2] == 0).all() and (c[:, :2, 2] == 0).all()
    assert product_change(act(R, batch), batch) < 1e-12


def test_a_matrix_given_by_hand_acts_on_the_modules_of_its_rank_alone() -> None:
    loras = [random_lora([("a", 6, 5, 3), ("b", 6, 5, 2)], 0)]
    batch = stack(loras, shared_spec(loras), torch.float64)
    R = given_matrices(batch, {3: torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))})
    moved = act(R, batch)
    torch.testing.assert_close(moved.U[0][0, 0, :, 0], 2 * batch.U[0][0, 0, :, 0])
    torch.testing.assert_close(moved.V[0][0, 0, :, 0], batch.V[0][0, 0, :, 0] / 2)
    assert torch.equal(moved.U[0][0, 1], batch.U[0][0, 1])


def test_r_for_fewer_modules_is_the_same_r() -> None:
    lora = random_lora([("a", 6, 5, 3), ("b", 7, 6, 3), ("c", 6, 5, 2)], 0)
    own, fewer = shared_spec([lora]), shared_spec([random_lora([("c", 6, 5, 2), ("b", 7, 6, 3)], 0)])
    batch, small = (stack([lora], spec, torch.float64) for spec in (own, fewer))
    R = sample_for(batch, GL, condition=5.0, generator=torch.Generator().manual_seed(0))
    part = for_spec(R, own, fewer, small.rank)
    assert torch.equal(part[0][:, 0], R[0][:, 1]) and torch.equal(part[1][:, 0], R[1][:, 0])


def test_r_enters_gl_net_and_leaves_it_in_the_products() -> None:
    batch = random_batch()
    model = make_model("gl_net", batch.spec, 1, GLNetConfig(equivariant_layers=2)).double()
    assert isinstance(model, GLNet)
    found = carried(
        model.stages, batch, sample_for(batch, GL, condition=10.0, generator=torch.Generator().manual_seed(0))
    )
    assert [stage.name for stage in found] == ["linear 1", "σ 1", "linear 2"]
    assert all(stage.moved > 0.1 and stage.off < 1e-9 and stage.product < 1e-9 for stage in found)

    def bent(x: Batch) -> list[Stage]:  # a layer that is not equivariant is seen
        last = model.stages(x)[0]
        return [Stage("relu", last.U.relu(), last.V.relu())]

    broken = carried(bent, batch, sample_for(batch, GL, condition=10.0, generator=torch.Generator().manual_seed(0)))
    assert broken[0].off > 0.1 and broken[0].product > 0.1
