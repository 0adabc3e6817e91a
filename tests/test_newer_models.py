"""The models of others, and our own: invariance, what each sees, and the parts of TuckerNet."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis as kurtosis_of

from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.geometry import singular_values
from lol_core.core.groups import GL
from lol_core.core.symmetry import TOLERANCES, act, invariance_error, relative_change, sample_for
from lol_core.errors import ModelError
from lol_core.experiments.paper import PUBLISHED
from lol_core.learning.models import MODELS, LoLModel, ModelConfig, find_model, make_model
from lol_core.learning.models.apart import Apart
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.models.mvprobe import Branch, MVProbe
from lol_core.learning.models.spectral import kurtosis
from lol_core.learning.models.spectral_sizes import statistics
from lol_core.learning.models.triplets import triplets
from lol_core.learning.models.tucker import Part, TuckerConfig, TuckerNet, leading_directions
from lol_core.learning.models.views import Views
from tests.builders import SHAPES, random_batch, random_lora
from tests.test_models import FLOATS, shapes_of

SMALL_PROBES = {"probes": 6, "encoding": 5, "hidden": 16}
BY_TRIPLETS = ("w2t", "triplets")
"""Invariant where singular values differ."""


def made(name: str, batch: Batch, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> LoLModel:
    """A model with random weights everywhere, prepared on the batch; one that memorises knows it, with random
    answers.
    """
    torch.manual_seed(seed)
    model = make_model(name, batch.spec, 3, find_model(name).configure(width=16, **SMALL_PROBES | options))
    sample = batch.to(dtype=torch.float32)
    model.prepare(sample, torch.Generator().manual_seed(seed))
    if model.memorizes:
        model.memorize(sample, torch.randn(len(batch), 3))
    for parameter in model.parameters():  # some begin at zero
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "name",
    [name for name, kind in MODELS.items() if kind.symmetry is not None and kind.any_rank and name not in BY_TRIPLETS],
)
@given(ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3), kappa=st.floats(1, 100), seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_what_a_model_promises_holds(name: str, dtype: torch.dtype, ranks: list[int], kappa: float, seed: int) -> None:
    group = MODELS[name].symmetry
    assert group is not None, "it promises nothing"
    batch = random_batch(shapes_of(ranks, seed), 3, seed).to(dtype=dtype)
    model = made(name, batch, dtype, seed)
    for function in (model, model.embed):
        assert (
            invariance_error(
                function, batch, group, condition=kappa, trials=2, generator=torch.Generator().manual_seed(seed)
            )
            <= TOLERANCES[dtype]
        )


@pytest.mark.parametrize("name", BY_TRIPLETS)
@given(ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3), kappa=st.floats(1, 100), seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_triplets_are_invariant_where_singular_values_differ(
    name: str, ranks: list[int], kappa: float, seed: int
) -> None:
    batch = random_batch(shapes_of(ranks, seed), 3, seed)
    for U, V in zip(batch.U, batch.V, strict=True):
        values = triplets(U, V)[1]
        if ((values[..., :-1] - values[..., 1:]) < 1e-3 * values[..., :1]).any():
            assume(False)
    assert (
        invariance_error(
            made(name, batch, seed=seed),
            batch,
            GL,
            condition=kappa,
            trials=2,
            generator=torch.Generator().manual_seed(seed),
        )
        <= 1e-9
    )


def test_mixed_and_other_ranks_are_read_and_padding_changes_nothing() -> None:
    loras = [random_lora([("a", 7, 5, rank), ("b", 6, 9, rank)], rank) for rank in (1, 2, 4)]
    spec = shared_spec(loras)
    batch = stack(loras, spec, torch.float64)
    higher = stack([random_lora([("a", 7, 5, 5), ("b", 6, 9, 6)])], spec, torch.float64)
    for name in (name for name, kind in MODELS.items() if kind.any_rank):
        model = made(name, batch)
        alone = torch.cat([model(stack([lora], spec, torch.float64)) for lora in loras])
        torch.testing.assert_close(alone, model(batch), msg=name)
        assert torch.isfinite(model(higher)).all(), name


def test_an_update_of_zero_is_read_too() -> None:
    zero = random_batch().map(torch.zeros_like)
    for name in (name for name, kind in MODELS.items() if kind.any_rank):
        assert torch.isfinite(made(name, random_batch())(zero)).all(), name


@pytest.mark.parametrize(("name", "options"), [("mvprobe", {"place": 0.0}), ("gl_net", {"gl_norm": True})])
def test_a_module_of_zeros_leaves_gradients_finite(name: str, options: dict[str, Any]) -> None:
    batch = random_batch()
    one_zero = Batch(batch.spec, tuple(U.clone() for U in batch.U), batch.V, batch.ranks)
    one_zero.U[0][1, 0] = 0
    model = made(name, batch, **options)
    model(one_zero).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_which_models_see_the_sign_of_an_update() -> None:
    batch = random_batch()
    flipped = Batch(batch.spec, tuple(-U for U in batch.U), batch.V, batch.ranks)
    blind_ones = {"dsire", "spectral", "nearest_spectra", "spectral_sizes"}
    for name in (*PUBLISHED, "nearest_spectra", "spectral_sizes", "triplets", "views", "tucker"):
        blind = name in blind_ones
        model = made(name, batch)
        assert (relative_change(model.embed(flipped), model.embed(batch)) < 1e-9) == blind, name


def test_triplets_are_the_singular_value_decomposition_and_have_one_sign() -> None:
    U, V = torch.randn(2, 7, 3).double(), torch.randn(2, 5, 3).double()
    u, values, v = triplets(U, V)
    torch.testing.assert_close(u * values[:, None] @ v.mT, U @ V.mT)
    torch.testing.assert_close(values, singular_values(U, V))
    for part, other in zip(triplets(-U, -V), (u, values, v), strict=True):
        torch.testing.assert_close(part, other)


def test_views_are_what_the_probes_see_of_the_product() -> None:
    U, V = torch.randn(4, 2, 7, 3).double(), torch.randn(4, 2, 5, 3).double()
    views = Views(2, 7, 5).double()
    delta = U @ V.mT
    norm = delta.square().sum((-1, -2), keepdim=True).sqrt()
    expected = [
        views.encoders_n[0] @ delta @ views.probes_m[0].mT,
        views.encoders_m[0] @ delta.mT @ views.probes_n[0].mT,
        views.encoders_n[1] @ (delta @ delta.mT / norm) @ views.probes_n[1].mT,
        views.encoders_m[1] @ (delta.mT @ delta / norm) @ views.probes_m[1].mT,
    ]
    torch.testing.assert_close(views(U, V), torch.stack([view.flatten(2) for view in expected], 2))


def test_spectral_statistics_of_known_spectra() -> None:
    even, single = statistics(torch.ones(4)), statistics(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(even, torch.tensor([0.6931472, 0.0, 0.25, 1.3862944, 1.3862944]))
    torch.testing.assert_close(single, torch.tensor([0.6931472, 0.6931472, 1.0, 0.0, 0.6931472]))


@pytest.mark.parametrize("name", ["dsire", "nearest_spectra"])
def test_spectra_give_a_known_lora_its_own_answer_and_vote_by_module(name: str) -> None:
    batch = random_batch(count=5)
    model = make_model(name, batch.spec, 2)
    assert (model(batch.to(dtype=torch.float32)) == 0).all(), "nothing is known yet"
    answers = torch.randn(5, 2)
    model.memorize(batch.to(dtype=torch.float32), answers)
    torch.testing.assert_close(model(batch.to(dtype=torch.float32)), answers)
    mixed = Batch(batch.spec, (batch.U[0][:1], batch.U[1][1:2]), (batch.V[0][:1], batch.V[1][1:2]), batch.ranks[:1])
    torch.testing.assert_close(model(mixed.to(dtype=torch.float32))[0], (2 * answers[0] + answers[1]) / 3)


def test_dsire_reads_the_factors_too_so_that_only_orthogonal_changes_leave_it_alone() -> None:
    batch = random_batch()
    model = made("dsire", batch)
    assert invariance_error(model.embed, batch, GL, condition=10.0, trials=2) > 1e-2
    values = model.embed(batch).unflatten(1, (3, -1, batch.spec.rank))
    for row, factors in ((0, batch.V), (1, batch.U)):
        torch.testing.assert_close(values[:, row], torch.cat([torch.linalg.svdvals(factor) for factor in factors], 1))


@pytest.mark.parametrize("name", ["mvprobe", "probex"])
def test_probes_answer_from_the_factors_what_they_answer_of_the_product(name: str) -> None:
    """Against the published formula on ΔW: standardise over all entries, Linear of Sᵀ, ReLU."""
    batch = random_batch()
    model = made(name, batch, place=1.0)
    assert isinstance(model, MVProbe)
    X = batch.U[model.group][:, model.inside] @ batch.V[model.group][:, model.inside].mT
    views = [view for view in model.views if isinstance(view, Branch)]
    answers = [X @ views[0].probes]
    if name == "mvprobe":
        answers += [X @ X.mT @ views[1].probes, X.mT @ views[2].probes, X.mT @ X @ views[3].probes]
        answers = [(S - S.mean((1, 2), keepdim=True)) / (S.std((1, 2), keepdim=True) + 1e-8) for S in answers]
    expected = [torch.relu(view.encoder(S.mT)).flatten(1) for S, view in zip(answers, views, strict=True)]
    torch.testing.assert_close(model.features(batch), torch.cat(expected, 1))
    doubled = Batch(batch.spec, tuple(2 * U for U in batch.U), batch.V, batch.ranks)
    assert (relative_change(model(doubled), model(batch)) < 1e-6) == (name == "mvprobe"), "MVProbe sees no size"


@pytest.mark.parametrize("entries", [1, 100, 2**18])
def test_kurtosis_is_that_of_the_entries(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lol_core.learning.models.spectral.BLOCK", entries)
    batch = random_batch()
    U, V = batch.U[0], batch.V[0]
    expected = [[float(kurtosis_of(each.flatten().numpy(), fisher=False)) for each in row] for row in U @ V.mT]
    torch.testing.assert_close(kurtosis(U, V), torch.tensor(expected, dtype=U.dtype))
    tiny = kurtosis(1e-8 * U.float(), 1e-8 * V.float())  # whose squared variance is no float32
    torch.testing.assert_close(tiny, torch.tensor(expected), rtol=1e-3, atol=1e-3)
    torch.autograd.gradcheck(kurtosis, (U[:, :1].clone().requires_grad_(), V[:, :1]))  # contributions ask for it
    ones = torch.ones(1, 1, 9, 2)
    assert kurtosis(ones, ones).item() == kurtosis(0 * ones, ones).item() == 0


def test_w2t_augments_in_training_only() -> None:
    batch = random_batch()
    model = made("w2t", batch, augment=1.0)
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.allclose(model(batch), model(batch))


@given(n=st.integers(1, 8), N=st.integers(1, 8), count=st.integers(1, 8), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_leading_directions_span_what_varies_most(n: int, N: int, count: int, seed: int) -> None:
    columns = torch.randn(2, n, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = leading_directions(columns, min(count, n))
    kept = (found.mT @ columns).square().sum((-1, -2))
    best = torch.linalg.svdvals(columns)[:, : min(count, n)].square().sum(-1)
    torch.testing.assert_close(kept, best)


@pytest.mark.parametrize("without", Part)
def test_tuckernet_is_invariant_without_any_of_its_parts_too(without: Part) -> None:
    batch = random_batch(count=6)
    model = made("tucker", batch, parts=frozenset(Part) - {without})
    assert invariance_error(model, batch, GL, condition=100.0) <= 1e-9
    full = made("tucker", batch)
    assert full.n_features() != model.n_features() or not torch.allclose(full(batch), model(batch))


def test_tuckernet_reads_products_in_its_bases() -> None:
    """With every direction kept, its invariants are Φ D Ψᵀ and the two covariances of D = ΔW / ‖ΔW‖, whose norm is
    known.
    """
    batch = random_batch(count=6)
    model = made("tucker", batch)
    assert isinstance(model, TuckerNet)
    U, V = batch.U[0], batch.V[0]
    delta = U @ V.mT
    unit = delta / delta.square().sum((-1, -2), keepdim=True).sqrt()
    R_U, R_V = (torch.linalg.qr(factor, mode="r").R for factor in (U, V))
    found = model._invariants(0, U, V, R_U, R_V=R_V, values=singular_values(U, V))
    left, right = model.get_buffer("left_0"), model.get_buffer("right_0")
    torch.testing.assert_close(found[..., : 7 * 5], (left.mT @ unit @ right).flatten(2), atol=1e-6, rtol=1e-5)
    second = (unit @ unit.mT).square().sum((-1, -2))
    torch.testing.assert_close(found[..., 35 : 35 + 28].square().sum(-1), second, atol=1e-5, rtol=1e-5)


def test_tuckernet_separates_size_from_direction() -> None:
    batch = random_batch(count=6)
    model = made("tucker", batch)
    larger = batch.map(lambda factor: 3 * factor)
    before, after = model.described(batch), model.described(larger)
    sizes = len(batch.spec.modules) * (batch.spec.rank + 1)
    torch.testing.assert_close(before[:, :-sizes], after[:, :-sizes])
    assert not torch.allclose(before[:, -sizes:], after[:, -sizes:])


def test_the_weight_of_directions_leaves_the_sizes_alone() -> None:
    batch = random_batch(count=6)
    whole, tenth = (
        make_model("tucker", batch.spec, 1, TuckerConfig(direction_weight=weight)).double() for weight in (1.0, 0.1)
    )
    sizes = len(batch.spec.modules) * (batch.spec.rank + 1)
    one, other = whole.described(batch), tenth.described(batch)
    torch.testing.assert_close(0.1 * one[:, :-sizes], other[:, :-sizes])
    torch.testing.assert_close(one[:, -sizes:], other[:, -sizes:])


@pytest.mark.parametrize("name", ["gl_net", "w2t", "mvprobe"])
def test_size_can_be_read_apart_from_direction(name: str) -> None:
    batch = random_batch(shapes_of([2, 3], 0), 3, 0).to(dtype=torch.float64)
    twice = replace(batch, U=tuple(2 * U for U in batch.U))

    def moved(*parts: Apart) -> float:
        """How far twice the update moves the outputs."""
        model = made(name, batch, apart=frozenset(parts))
        return relative_change(model(twice), model(batch))

    assert name != "gl_net" or moved() > 1e-3, "the others hardly see size, or not at all"
    assert moved(Apart.UNIT_NORM) < 1e-6 < 1e-3 < moved(Apart.UNIT_NORM, Apart.LOG_SIZES)
    assert moved(Apart.LINEAR_SKIP, Apart.UNIT_NORM) < 1e-6
    whole = made(name, batch, apart=frozenset(Apart))
    assert invariance_error(whole, batch, GL, condition=20.0, trials=2) <= TOLERANCES[torch.float64]
    assert all(g is not None and g.any() for g in torch.autograd.grad(whole(batch).sum(), list(whole.parameters())))
    again = make_model(
        name, batch.spec, 3, type(whole.config).from_dict(json.loads(json.dumps(whole.config.to_dict())))
    )
    again.double().load_state_dict(whole.state_dict())
    torch.testing.assert_close(again.eval()(batch), whole(batch))
    assert "apart" not in MODELS[name].configure().to_dict(), "lines of fits from before stay those of this model"


def test_a_configuration_belongs_to_its_model() -> None:
    spec = random_batch().spec
    with pytest.raises(ModelError, match="GL-net is configured by GLNetConfig; found TuckerConfig"):
        make_model("gl_net", spec, 1, TuckerConfig())
    plain = make_model("gl_net", spec, 1, ModelConfig(width=5)).config
    assert plain == GLNetConfig(width=5), "choices that every model has leave a model's own as usual"
    assert MODELS["svd"].configure(width=5, equivariant_width=3) == ModelConfig(width=5)


def test_features_computed_once_are_those_of_the_forward_pass() -> None:
    batch = random_batch(SHAPES, 5)
    for name in ("tucker", "spectral"):
        model = made(name, batch)
        R = sample_for(batch, GL, condition=10.0, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.head.out(model.head.latent(model.described(batch))), model(act(R, batch)))
