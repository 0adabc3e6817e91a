"""Each way to store an update: what it multiplies to, the group that leaves it alone, and its exact low-rank form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lol_core.core.batch import shared_spec, stack, unstack
from lol_core.core.geometry import truncate
from lol_core.core.groups import GL, GROUPS, PERMUTATION, SCALING, O, Product, named
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import (
    Blocks,
    Experts,
    Hadamard,
    Kronecker,
    LowRank,
    Magnitude,
    Parametrisation,
    Place,
    Tucker,
    Whole,
)
from lol_core.core.symmetry import TOLERANCES, act, product_change, relative_change, sample_for, sample_own
from lol_core.errors import LoRAFormatError, ModelError
from lol_core.formats.factors import block_diagonal, spans
from lol_core.learning.models import find_model, make_model
from tests.builders import random_lora

Draw = Callable[..., Tensor]


def low_rank(draw: Draw, n: int = 6, m: int = 5, r: int = 2) -> LowRank:
    return LowRank(draw(n, r), draw(m, r))


def tucker(draw: Draw) -> Tucker:
    return Tucker(draw(6, 2), draw(2, 3, 3, 3), draw(4, 3))


def blocks(draw: Draw, n: tuple[int, ...], m: tuple[int, ...], ranks: tuple[int, ...], tail: int = 1) -> Blocks:
    """A pair for each block, of n[g] × m[g] entries: one above the other where there is one m (a MergedLinear, whose
    last part, of 2 rows, is not adapted; the groups of a convolution with `tail` positions), side by side where there
    is one n (BD-LoRA), both where there are several of each.
    """
    high, wide = len(n) == 1, len(m) == 1
    us = [draw(k, r) for k, r in zip(n * (len(ranks) if high else 1), ranks, strict=True)]
    vs = [draw(k * tail, r) for k, r in zip(m * (len(ranks) if wide else 1), ranks, strict=True)]
    U, V = (torch.cat(x, 1) if full else block_diagonal(x) for x, full in ((us, high), (vs, wide)))
    unused = 0 if high or tail > 1 else 2
    U = torch.cat([U, U.new_zeros(unused, U.shape[1])])
    rows, columns = (
        [(0, len(x))] * len(ranks) if full else spans(map(len, parts))
        for x, full, parts in ((U, high, us), (V, wide, vs))
    )
    places = zip(rows, columns, spans(ranks), strict=True)
    shape = (len(U), sum(m), tail) if tail > 1 else (len(U), sum(m))
    return Blocks(U, V, shape, places=tuple(Place(*(slice(*span) for span in place)) for place in places))


BUILDERS: dict[str, Callable[[Draw], Parametrisation]] = {
    "low rank": low_rank,
    "convolution": lambda draw: LowRank(draw(6, 2), draw(4 * 9, 2), (6, 4, 3, 3), Kind.CONV),
    "embedding": lambda draw: LowRank(draw(9, 2), draw(4, 2), kind=Kind.EMBEDDING),
    "Tucker": tucker,
    "LoHa": lambda draw: Hadamard(low_rank(draw), low_rank(draw, r=3)),
    "LoHa with cores": lambda draw: Hadamard(tucker(draw), tucker(draw)),
    "LoKr": lambda draw: Kronecker(Whole(draw(2, 3)), Whole(draw(3, 2))),
    "LoKr, factorised": lambda draw: Kronecker(low_rank(draw, 3, 2, 1), low_rank(draw, 4, 5, 2)),
    "LoKr of a convolution": lambda draw: Kronecker(Whole(draw(2, 3)), Whole(draw(3, 2, 3, 3))),
    "LoKr with a core": lambda draw: Kronecker(Whole(draw(2, 2)), tucker(draw)),
    "experts": lambda draw: Experts(draw(3, 4, 2), draw(3, 5, 2)),
    "merged projections": lambda draw: blocks(draw, (3, 4), (5,), (2, 1)),
    "convolution in groups": lambda draw: blocks(draw, (2, 2), (2,), (1, 1), tail=9),
    "BD-LoRA": lambda draw: blocks(draw, (6,), (3, 2), (2, 2)),
    "merged projections with DoRA": lambda draw: Magnitude(blocks(draw, (3, 2), (4,), (1, 1)), draw(7).abs()),
    "DoRA": lambda draw: Magnitude(low_rank(draw), draw(6).abs()),
    "DoRA by inputs": lambda draw: Magnitude(tucker(draw), draw(4).abs(), axis=1),
}


def made(name: str, seed: int, dtype: torch.dtype = torch.float64) -> Parametrisation:
    generator = torch.Generator().manual_seed(seed)
    return BUILDERS[name](lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype))


kinds = pytest.mark.parametrize("name", BUILDERS)
few = settings(max_examples=15)


@pytest.mark.parametrize("dtype", TOLERANCES)
@kinds
@few
@given(seed=st.integers(0, 500), kappa=st.floats(2, 100))
def test_its_group_leaves_the_update_alone_and_moves_the_factors(
    name: str, dtype: torch.dtype, seed: int, kappa: float
) -> None:
    before = made(name, seed, dtype)
    R = before.group.sample(condition=kappa, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    assert before.group.contains(R)
    after = before.act(R)
    assert relative_change(after.delta(torch.float64), before.delta(torch.float64)) <= TOLERANCES[dtype]
    still = [key for key, slot in after.slots.items() if torch.equal(slot, before.slots[key])]
    assert still == (["magnitude"] if isinstance(before, Magnitude) else [])
    S, (U, V), (U2, V2) = before.on_pair(R), before.pair(), after.pair()
    assert relative_change(U2, U @ S) <= TOLERANCES[dtype]
    assert relative_change(V2, torch.linalg.solve(S, V.mT).mT) <= TOLERANCES[dtype]


@kinds
def test_an_element_acts_in_its_own_precision_on_numbers_of_a_lower_one(name: str) -> None:
    before = made(name, 0, torch.float16)
    after = before.act(before.group.sample(generator=torch.Generator().manual_seed(0)))
    moved = [key for key in after.slots if key != "magnitude"]
    assert {after.slots[key].dtype for key in moved} == {torch.float64}
    assert relative_change(after.delta(torch.float64), before.delta(torch.float64)) <= 1e-6


@kinds
@few
@given(seed=st.integers(0, 500))
def test_the_low_rank_form_and_the_spectrum_are_exact(name: str, seed: int) -> None:
    of = made(name, seed)
    whole = of.delta(torch.float64)
    assert tuple(whole.shape) == of.weight_shape
    flat = whole.flatten(0, 1) if of.kind is Kind.EXPERTS else whole.reshape(len(whole), -1)
    U, V = of.low_rank()
    torch.testing.assert_close(U @ V.T, flat)
    values = torch.linalg.svdvals(flat)
    own = of.singular_values()
    torch.testing.assert_close(own[: len(values)], values[: len(own)])
    P, leading, Q = of.leading(2)
    torch.testing.assert_close(leading, values[: len(leading)])
    torch.testing.assert_close((P.T @ flat @ Q).diagonal(), leading)


@kinds
@few
@given(seed=st.integers(0, 500))
def test_inner_products_are_those_of_the_updates(name: str, seed: int) -> None:
    a, b = made(name, seed), made(name, seed + 1)
    expected = float((a.delta(torch.float64) * b.delta(torch.float64)).sum())
    assert a.inner(b) == pytest.approx(expected, abs=1e-9)


def test_inner_products_of_updates_stored_in_different_ways() -> None:
    a, b = made("LoKr", 0), made("low rank", 1)
    b = LowRank(torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64))
    assert a.inner(b) == pytest.approx(float((a.delta(torch.float64) * b.delta(torch.float64)).sum()))
    assert b.inner(a) == pytest.approx(a.inner(b))
    conv = Kronecker(Whole(torch.randn(2, 3).double()), Whole(torch.randn(3, 2, 3, 3).double()))
    pair = LowRank(torch.randn(6, 2).double(), torch.randn(54, 2).double(), (6, 6, 3, 3), Kind.CONV)
    expected = float((conv.delta(torch.float64) * pair.delta(torch.float64)).sum())
    assert conv.inner(pair) == pytest.approx(expected) == pair.inner(conv)
    other = Kronecker(Whole(torch.randn(3, 2).double()), Whole(torch.randn(2, 3).double()))
    assert a.inner(other) == pytest.approx(float((a.delta(torch.float64) * other.delta(torch.float64)).sum()))
    with pytest.raises(ModelError, match="a weight"):
        a.inner(made("low rank", 0))


@kinds
def test_what_models_read_is_known_without_multiplying(name: str) -> None:
    of = made(name, 0)
    U, V = of.pair()
    assert of.pair_shape == (len(U), len(V), U.shape[1])
    again = of.with_pair(U, V)
    torch.testing.assert_close(again.delta(torch.float64), of.delta(torch.float64).reshape(again.weight_shape))
    assert of.parameters == sum(slot.numel() for slot in of.slots.values())


def conv_of(draw: Draw, n: int, m: int, r: int) -> LowRank:
    return LowRank(draw(n, r), draw(m * 9, r), (n, m, 3, 3), Kind.CONV)


def tucker_of(draw: Draw, n: int, m: int, r1: int, r2: int) -> Tucker:
    return Tucker(draw(n, r1), draw(r1, r2, 3, 3), draw(m, r2))


LARGER: dict[str, Callable[[Draw, int], Parametrisation]] = {
    "low rank": lambda draw, k: low_rank(draw, 7, 6 + k, 2 + k),
    "convolution": lambda draw, k: conv_of(draw, 5 + k, 3, 2 + k),
    "embedding": lambda draw, k: LowRank(draw(9, 2 + k), draw(4, 2 + k), kind=Kind.EMBEDDING),
    "Tucker": lambda draw, k: tucker_of(draw, 6, 4 + k, 2, 3 + k),
    "LoHa": lambda draw, k: Hadamard(low_rank(draw, 11, 10 + k, 2), low_rank(draw, 11, 10 + k, 2 - k)),
    "LoHa with cores": lambda draw, k: Hadamard(tucker_of(draw, 8, 9, 2, 2), tucker_of(draw, 8, 9, 2 - k, 2)),
    "LoKr": lambda draw, k: Kronecker(Whole(draw(3, 2 + k)), Whole(draw(4, 5))),
    "LoKr, factorised": lambda draw, k: Kronecker(low_rank(draw, 4, 3, 2), low_rank(draw, 4, 5, 2 + k)),
    "LoKr with a core": lambda draw, k: Kronecker(Whole(draw(2, 2)), tucker_of(draw, 6, 4, 2, 3 - k)),
    "experts": lambda draw, k: Experts(draw(3 + k, 5, 2), draw(3 + k, 4, 2)),
    "merged projections": lambda draw, k: blocks(draw, (4, 4, 5), (5,), (1 + k, 2, 2)),
    "convolution in groups": lambda draw, k: blocks(draw, (3, 3), (2,), (1 + k, 1 + k), tail=9),
    "BD-LoRA": lambda draw, k: blocks(draw, (6,), (4, 3 + k), (2, 1 + k)),
    "blocks in a diagonal": lambda draw, k: blocks(draw, (4, 3), (3 + k, 4), (1 + k, 2)),
    "DoRA": lambda draw, k: Magnitude(low_rank(draw, 7, 6, 2 + k), torch.ones(7)),
}
"""Of sizes at which ΔW leaves its factors no freedom besides the group; two shapes each, k = 0 and 1."""


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("name", LARGER)
def test_the_group_is_all_that_leaves_the_update_alone(name: str, k: int) -> None:
    """The directions in which the stored numbers may move while ΔW stays, to first order, are as many as the orbit has
    dimensions: no larger connected group acts.
    """
    generator = torch.Generator().manual_seed(0)
    drawn: list[Tensor] = []

    def draw(*shape: int) -> Tensor:
        drawn.append(torch.randn(*shape, generator=generator, dtype=torch.float64))
        return drawn[-1]

    of = LARGER[name](draw, k)
    shapes = [slot.shape for slot in drawn]

    def update(flat: Tensor) -> Tensor:
        slots = iter(
            part.reshape(shape) for part, shape in zip(flat.split(list(map(prod, shapes))), shapes, strict=True)
        )
        return LARGER[name](lambda *shape: next(slots), k).delta(torch.float64).flatten()

    jacobian = torch.autograd.functional.jacobian(update, torch.cat([slot.flatten() for slot in drawn]))
    nullity = jacobian.shape[1] - int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))
    assert jacobian.shape[1] == of.parameters - (7 if name == "DoRA" else 0)
    assert nullity == of.orbit_dimension


@pytest.mark.parametrize("name", ["merged projections", "BD-LoRA"])
def test_what_a_file_of_blocks_does_not_store_stays_zero(name: str) -> None:
    """What acts on it is a subgroup of what acts on the pair that models read, with zeros that stay."""
    before = made(name, 0)
    after = before.act(before.group.sample(generator=torch.Generator().manual_seed(0)))
    for x, y in zip(before.low_rank(), after.low_rank(), strict=True):
        assert torch.equal(x != 0, y != 0) and not torch.allclose(x, y)
    assert sum(int((x != 0).sum()) for x in before.low_rank()) == before.parameters
    resized, _ = truncate(LoRALayer("x", before), 2)
    assert (resized.kind, resized.weight_shape) == (Kind.LINEAR, before.weight_shape)
    with pytest.raises(LoRAFormatError, match="columns 0:2 of U"):
        Blocks(torch.zeros(4, 3), torch.zeros(3, 3), places=(Place(slice(0, 4), slice(0, 3), slice(0, 2)),))


def test_the_products_of_a_loha_may_change_places() -> None:
    """The one element besides its connected group, where both have one rank (docs/mathematics.md)."""
    before = made("LoHa with cores", 0)
    assert isinstance(before, Hadamard)
    torch.testing.assert_close(Hadamard(before.second, before.first).delta(), before.delta())


def test_factors_that_do_not_fit_are_refused_with_their_shapes() -> None:
    with pytest.raises(LoRAFormatError, match=r"U \(4, 2\) and V \(3, 1\)"):
        LowRank(torch.zeros(4, 2), torch.zeros(3, 1))
    with pytest.raises(LoRAFormatError, match=r"a weight \(4, 5\)"):
        LowRank(torch.zeros(4, 2), torch.zeros(3, 2), (4, 5))
    with pytest.raises(LoRAFormatError, match="core"):
        Tucker(torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(LoRAFormatError, match="two products"):
        Hadamard(LowRank(torch.zeros(4, 2), torch.zeros(3, 2)), LowRank(torch.zeros(4, 2), torch.zeros(4, 2)))
    with pytest.raises(LoRAFormatError, match=r"expected \(4,\)"):
        Magnitude(LowRank(torch.zeros(4, 2), torch.zeros(3, 2)), torch.zeros(3))
    with pytest.raises(ModelError, match=r"GL\(2\)"):
        LowRank(torch.zeros(4, 2), torch.zeros(3, 2)).act([torch.eye(3)])


# Groups -----------------------------------------------------------------------------------------------------------


@few
@given(r=st.integers(2, 6), kappa=st.floats(2, 100), seed=st.integers(0, 500))
def test_groups_contain_what_they_draw_and_what_their_subgroups_draw(r: int, kappa: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in GROUPS:
        R = group.sample(r, condition=kappa, count=(3,), generator=generator)
        assert group.contains(R)
        for other in GROUPS:
            if other.includes(group):
                assert other.contains(R)
    assert not O.contains(SCALING.sample(r, condition=kappa, generator=generator))
    assert not PERMUTATION.contains(O.sample(r, generator=generator))
    assert not SCALING.contains(GL.sample(r, condition=kappa, generator=generator))
    assert not GL.contains(torch.zeros(r, r))


def test_a_product_of_many_is_counted_and_a_family_leaves_lengths_out() -> None:
    assert Product(((GL, 2),) * 3).title == "GL(2) × GL(2) × GL(2)"
    many = Product(((GL, 2), *((SCALING, n) for n in (5, 6, 5, 6))))
    assert many.title == "GL(2) × scalings of 5 × scalings of 6 × scalings of 5 × scalings of 6"
    assert (many.family, Product(()).title) == ("GL(2) × scalings^4", "{1}")


def test_groups_are_known_by_their_keys() -> None:
    assert [named(group.key) for group in GROUPS] == list(GROUPS)
    with pytest.raises(ValueError, match="no group 'sl'"):
        named("sl")


# Batches ----------------------------------------------------------------------------------------------------------


def mixed_loras(dtype: torch.dtype = torch.float32) -> list[LoRA]:
    """Two LoRAs with modules stored in every way, at other scales, one of another rank."""

    def layers(seed: int) -> tuple[LoRALayer, ...]:
        own = [LoRALayer(name, made(name, seed, dtype), scale=(-0.3, 1.7)[seed % 2]) for name in BUILDERS]
        generator = torch.Generator().manual_seed(seed)
        extra = (torch.randn(k, 1 + seed % 2, generator=generator).to(dtype) for k in (7, 5))
        return (*own, LoRALayer.pair("mixed rank", *extra, scale=0.5))

    return [LoRA(layers(seed), "synthetic", notes=(f"number {seed}",)) for seed in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unstacked_loras_stack_to_the_same_batch(dtype: torch.dtype) -> None:
    loras = mixed_loras(dtype)
    spec = shared_spec(loras)
    batch = stack(loras, spec, dtype)
    again = stack(unstack(batch), spec, dtype)
    assert all(torch.equal(x, y) for x, y in zip(batch.U + batch.V, again.U + again.V, strict=True))
    assert torch.equal(batch.ranks, again.ranks)
    assert batch.magnitudes is not None and again.magnitudes is not None
    assert torch.equal(batch.magnitudes, again.magnitudes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_loras_come_back_from_a_batch_number_for_number(dtype: torch.dtype) -> None:
    loras = [random_lora([("a", 7, 5, rank), ("b", 6, 9, 3)], rank, dtype, scale=0.3 * rank) for rank in (2, 3)]
    loras = [replace(lora, notes=("kept",)) for lora in loras]
    back = unstack(stack(loras, shared_spec(loras), torch.float64), like=loras)
    for lora, own in zip(loras, back, strict=True):
        assert own.notes == ("kept",) and own.ranks == lora.ranks and own.dtypes == lora.dtypes
        for x, y in zip(lora.layers, own.layers, strict=True):
            assert torch.equal(x.U, y.U) and torch.equal(x.V, y.V) and x.scale == y.scale
    with pytest.raises(ModelError, match="2 LoRAs and 1"):
        unstack(stack(loras, shared_spec(loras)), like=loras[:1])


def test_what_comes_back_is_the_same_function_after_an_action() -> None:
    loras = mixed_loras(torch.float64)
    batch = stack(loras, shared_spec(loras), torch.float64)
    moved = act(sample_for(batch, GL, generator=torch.Generator().manual_seed(0)), batch)
    for lora, own in zip(loras, unstack(moved, like=loras), strict=True):
        for x, y in zip(lora.layers, own.layers, strict=True):
            assert relative_change(y.delta(torch.float64).flatten(), x.delta(torch.float64).flatten()) <= 1e-9


SIZED: dict[str, Callable[[Draw, int, int, int], Parametrisation]] = {
    "low rank": low_rank,
    "convolution": conv_of,
    "embedding": lambda draw, n, m, r: LowRank(draw(n, r), draw(m, r), kind=Kind.EMBEDDING),
    "Tucker": lambda draw, n, m, r: tucker_of(draw, n, m, r, r + 1),
    "LoHa": lambda draw, n, m, r: Hadamard(low_rank(draw, n, m, r), low_rank(draw, n, m, r + 1)),
    "LoHa with cores": lambda draw, n, m, r: Hadamard(tucker_of(draw, n, m, r, 1), tucker_of(draw, n, m, 1, r)),
    "LoKr": lambda draw, n, m, r: Kronecker(Whole(draw(n, 2)), low_rank(draw, m, n, r)),
    "LoKr with a core": lambda draw, n, m, r: Kronecker(low_rank(draw, m, n, r), tucker_of(draw, n, m, r, 2)),
    "experts": lambda draw, n, m, r: Experts(draw(3, n, r), draw(3, m, r)),
    "merged projections": lambda draw, n, m, r: blocks(draw, (n, m), (m,), (r, r + 1)),
    "BD-LoRA": lambda draw, n, m, r: blocks(draw, (n,), (m, n), (r, 1)),
    "DoRA": lambda draw, n, m, r: Magnitude(low_rank(draw, n, m, r), draw(n).abs()),
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("model", ["svd", "dense", "gl_net"])
@settings(max_examples=4)
@given(
    n=st.integers(3, 8),
    m=st.integers(3, 8),
    ranks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kappa=st.floats(2, 100),
    seed=st.integers(0, 500),
)
def test_models_are_invariant_under_the_own_group_of_every_module(
    model: str, dtype: torch.dtype, n: int, m: int, ranks: tuple[int, int], kappa: float, seed: int
) -> None:
    """One zoo that mixes every way to store an update: its files are moved, slot by slot, and read again."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loras = [LoRA(tuple(LoRALayer(name, SIZED[name](draw, n, m, r), -0.3) for name in SIZED)) for r in ranks]
    spec = shared_spec(loras)
    assert len(spec.modules) == len(SIZED)
    batch = stack(loras, spec, torch.float64).to(dtype=dtype)
    torch.manual_seed(0)
    net = make_model(model, spec, 2, find_model(model).configure(width=8))
    net.prepare(batch.to(dtype=torch.float32), torch.Generator().manual_seed(0))
    net = net.to(dtype).eval().requires_grad_(False)
    moved = [
        lora.act({y.name: y.parametrisation.group.sample(condition=kappa, generator=generator) for y in lora.layers})
        for lora in loras
    ]
    before, after = net(batch), net(stack(moved, spec, torch.float64).to(dtype=dtype))
    R = sample_own(loras, batch, condition=kappa, generator=generator)
    again = act(R, batch)
    assert relative_change(after, before) <= TOLERANCES[dtype]
    assert relative_change(net(again), before) <= TOLERANCES[dtype]
    assert product_change(again, batch) <= TOLERANCES[dtype] < relative_change(again.U[0], batch.U[0])


def test_a_model_without_the_promise_is_moved_by_the_own_group() -> None:
    loras = [LoRA((LoRALayer("x", made("LoHa", seed)),)) for seed in range(2)]
    batch = stack(loras, shared_spec(loras))
    torch.manual_seed(0)
    net = make_model("mlp", batch.spec, 2).eval().requires_grad_(False)
    R = sample_own(loras, batch, generator=torch.Generator().manual_seed(0))
    assert relative_change(net(act(R, batch)), net(batch)) > 0.01


def test_kronecker_products_of_other_factor_shapes_are_not_stacked() -> None:
    def lora(one: tuple[int, int], two: tuple[int, int]) -> LoRA:
        return LoRA((LoRALayer("x", Kronecker(Whole(torch.randn(one)), Whole(torch.randn(two)))),))

    a, b = lora((2, 8), (8, 2)), lora((4, 4), (4, 4))
    with pytest.raises(ModelError, match="share no module"):
        shared_spec([a, b])
    assert "Kronecker product of 4 × 4 and 4 × 4" in shared_spec([a]).misfits(b)[0]
    both = LoRA((*a.layers, LoRALayer("y", b.layers[0].parametrisation)))
    assert len(shared_spec([both]).groups) == 2
