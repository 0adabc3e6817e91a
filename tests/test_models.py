"""Theorem 1 in both directions, and equations (3), (4) and (6) as written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.geometry import singular_values
from lol_core.core.groups import GL, O
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import LowRank, Magnitude
from lol_core.core.symmetry import TOLERANCES, equivariance_error, invariance_error, relative_change
from lol_core.errors import ModelError
from lol_core.learning.memory import check_memory, memory_needed
from lol_core.learning.models import MODELS, LoLModel, ModelConfig, find_model, layers, make_model, modulewise
from lol_core.learning.models.apart import Apart
from lol_core.learning.models.gl_net import GLNet, GLNetConfig, Order, Reading
from lol_core.learning.models.layers import (
    NONLINEARITIES,
    EquivariantDropout,
    EquivariantLinear,
    EquivariantNonlinearity,
    GLNorm,
    InvariantProducts,
    Start,
)
from lol_core.learning.models.o_align import procrustes
from lol_core.learning.models.svd import spectra
from tests.builders import SHAPES, random_batch, random_lora

FLOATS = [torch.float32, torch.float64]
GL_MODELS = ["svd", "dense", "gl_net"]


def made(name: str, batch: Batch, dtype: torch.dtype = torch.float64, seed: int = 0, **config: Any) -> LoLModel:
    """A model with random weights, prepared on the batch."""
    torch.manual_seed(seed)
    model = make_model(name, batch.spec, 3, find_model(name).configure(width=16, equivariant_width=4, **config))
    model.prepare(batch.to(dtype=torch.float32), torch.Generator().manual_seed(seed))
    return model.to(dtype).eval()


def shapes_of(ranks: list[int], seed: int) -> list[tuple[str, int, int, int]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (
            f"m{i}",
            int(torch.randint(max(2, r), 12, (1,), generator=g)),
            int(torch.randint(max(2, r), 12, (1,), generator=g)),
            r,
        )
        for i, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", GL_MODELS)
@given(ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3), kappa=st.floats(1, 100), seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_gl_invariance_holds(name: str, dtype: torch.dtype, ranks: list[int], kappa: float, seed: int) -> None:
    batch = random_batch(shapes_of(ranks, seed), 3, seed).to(dtype=dtype)
    for group in (GL, O):
        assert (
            invariance_error(
                made(name, batch, dtype, seed),
                batch,
                group,
                condition=kappa,
                trials=2,
                generator=torch.Generator().manual_seed(seed),
            )
            <= TOLERANCES[dtype]
        )


OPTIONS: tuple[dict[str, Any], ...] = (
    {"reading": Reading.PER_MODULE},
    {"reading": Reading.TRANSFORMER, "mean_products": True},
    {"gl_norm": True},
    {"gl_norm": True, "reading": Reading.PER_MODULE, "equivariant_layers": 2, "equivariant_dropout": 0.5},
    {"start": Start.NORMAL, "equivariant_layers": 2},
    {"start": Start.LEADING, "equivariant_layers": 2},
    {"order": Order.COLUMNS},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_gl_net_keeps_its_promises_with_every_option_of_the_authors(options: dict[str, Any]) -> None:
    batch = random_batch(shapes_of([2, 3], 0), 3, 0)
    model = made("gl_net", batch, **options)
    generator = torch.Generator().manual_seed(0)
    assert (
        invariance_error(model, batch, GL, condition=50.0, trials=2, generator=generator) <= TOLERANCES[torch.float64]
    )
    whole = model(batch)
    (whole.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    again = make_model("gl_net", batch.spec, 3, GLNetConfig.from_dict(json.loads(json.dumps(model.config.to_dict()))))
    again.double().load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(batch), whole)


def test_the_norm_of_the_authors_makes_every_product_one_and_their_dropout_drops_rows() -> None:
    U, V = torch.randn(5, 2, 4, 3).double(), torch.randn(5, 2, 4, 3).double()
    u, v = GLNorm(2, 4).double()(U, V)
    products = U @ V.mT
    torch.testing.assert_close(u @ v.mT, products / products.norm(dim=(-1, -2), keepdim=True), rtol=1e-5, atol=1e-6)
    drop = EquivariantDropout(0.5)
    dropped = drop(U, V)[0]
    zero = (dropped == 0).all(-1)
    assert zero.any() and not zero.all() and torch.equal(dropped[~zero], U[~zero])
    torch.testing.assert_close(drop.eval()(U, V)[1], V / 2)


def test_phi_starts_from_the_variance_that_is_asked_for() -> None:
    for start, variance in ((Start.UNIFORM, 1 / 3), (Start.NORMAL, 1.0)):
        layer = EquivariantLinear(8, 64, 32, n_out=32, m_out=32, start=start)
        for matrix, n in ((layer.Phi, 64), (layer.Psi, 32)):
            assert (matrix.var() * n).item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("dtype", FLOATS)
@given(rank=st.integers(2, 6), seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_o_align_holds_for_o_and_fails_for_gl(dtype: torch.dtype, rank: int, seed: int) -> None:
    batch = random_batch(shapes_of([rank, rank], seed), 3, seed).to(dtype=dtype)
    model = made("o_align", batch, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    assert invariance_error(model, batch, O, trials=2, generator=generator) <= TOLERANCES[dtype]
    assert invariance_error(model, batch, GL, condition=10.0, trials=4, generator=generator) > 1e-2


@pytest.mark.parametrize("dtype", FLOATS)
@given(rank=st.integers(2, 6), seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_mlp_fails_for_both_groups(dtype: torch.dtype, rank: int, seed: int) -> None:
    batch = random_batch(shapes_of([rank, rank], seed), 3, seed).to(dtype=dtype)
    model = made("mlp", batch, dtype, seed)
    for group in (GL, O):
        assert (
            invariance_error(
                model, batch, group, condition=10.0, trials=4, generator=torch.Generator().manual_seed(seed)
            )
            > 1e-2
        )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"mean_products": True},
        {"equivariant_layers": 3},
        {"equivariant_layers": 2, "sigma": "sigmoid"},
        {"normalize": True},
    ],
)
def test_every_gl_net_keeps_its_promise_and_its_inner_layers_are_equivariant(config: dict[str, Any]) -> None:
    batch = random_batch()
    model = made("gl_net", batch, **config)
    assert isinstance(model, GLNet)
    assert invariance_error(model, batch, GL, condition=100.0) <= 1e-9
    assert invariance_error(model.embed, batch, GL, condition=100.0) <= 1e-9

    # R for the stack of all modules, in the order in which the groups are concatenated
    def inner(b: Batch) -> Batch:
        last = model.stages(model.normalized(b))[-1]
        sizes = [len(i) for _, i in b.spec.groups]
        return Batch(b.spec, tuple(last.U.split(sizes, 1)), tuple(last.V.split(sizes, 1)), b.ranks)

    assert equivariance_error(inner, batch, GL, condition=100.0) <= 1e-9


def test_equation_4_is_left_multiplication() -> None:
    layer = EquivariantLinear(2, 7, 5, n_out=4, m_out=3).double()
    U, V = torch.randn(6, 2, 7, 3).double(), torch.randn(6, 2, 5, 3).double()
    out_U, out_V = layer(U, V)
    for module in range(2):
        torch.testing.assert_close(out_U[:, module], torch.stack([layer.Phi[module] @ u for u in U[:, module]]))
        torch.testing.assert_close(out_V[:, module], torch.stack([layer.Psi[module] @ v for v in V[:, module]]))


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_equation_6_row_by_row(name: str) -> None:
    sigma = NONLINEARITIES[name]
    U, V = torch.randn(7, 3).double(), torch.randn(5, 3).double()
    product = U @ V.T
    expected_U = torch.stack([sigma(product[i].sum()) * U[i] for i in range(7)])
    expected_V = torch.stack([sigma(product[:, j].sum()) * V[j] for j in range(5)])
    out_U, out_V = EquivariantNonlinearity(name)(U[None, None], V[None, None])
    torch.testing.assert_close(out_U[0, 0], expected_U)
    torch.testing.assert_close(out_V[0, 0], expected_V)


def test_the_default_nonlinearity_zeroes_whole_rows() -> None:
    U = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    out, _ = EquivariantNonlinearity()(U[None, None], torch.ones(1, 1, 3, 2))
    assert (out[0, 0, 0] == U[0]).all() and (out[0, 0, 1] == 0).all()


def test_a_pointwise_nonlinearity_is_not_equivariant() -> None:
    def pointwise(b: Batch) -> Batch:
        return b.map(torch.relu)

    assert equivariance_error(pointwise, random_batch(), GL, condition=10.0) > 1e-2


def test_the_invariant_head_flattens_products_or_takes_their_means() -> None:
    U, V = torch.randn(2, 3, 4, 2).double(), torch.randn(2, 3, 5, 2).double()
    products = U @ V.mT
    torch.testing.assert_close(InvariantProducts()(U, V), products.flatten(1))
    torch.testing.assert_close(InvariantProducts(mean=True)(U, V), products.mean((-1, -2)))


@given(r=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_equation_3_procrustes_is_the_best_rotation(r: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    U, V, TU, TV = (torch.randn(k, r, generator=g, dtype=torch.float64) for k in (6, 5, 6, 5))

    def cost(Q: torch.Tensor) -> float:
        return float((U @ Q - TU).square().sum() + (V @ Q - TV).square().sum())

    best = cost(procrustes(U, V, TU, TV))
    assert all(best <= cost(Q) + 1e-9 for Q in O.sample(r, count=(50,), generator=g))
    Q = O.sample(r, count=(), generator=g)
    torch.testing.assert_close(procrustes(U, V, U @ Q, V @ Q), Q)


def test_procrustes_of_what_is_not_finite_says_so() -> None:
    large = torch.full((5, 2), 1e30)
    with pytest.raises(ModelError, match="not all finite"):
        procrustes(large, large, large, large)


@pytest.mark.parametrize("cached", [1, 300, 2**18])
@pytest.mark.parametrize("rank", [1, 3, 4, 8])
def test_o_align_turns_every_module_of_every_lora_to_its_template(
    rank: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modulewise, "CACHED", cached)
    batch = random_batch([("a", 16, 12, rank), ("b", 9, 10, rank), ("c", 16, 12, rank)], 5)
    model = made("o_align", batch)
    U, V = ([factors.clone().requires_grad_() for factors in side] for side in (batch.U, batch.V))
    features = model.features(replace(batch, U=tuple(U), V=tuple(V)))
    for b, row in enumerate(features):
        expected = []
        for g, (_, indices) in enumerate(batch.spec.groups):
            templates = [model.get_buffer(f"template_{side}_{g}") for side in "UV"]
            for k in range(len(indices)):
                Q = procrustes(U[g][b, k], V[g][b, k], templates[0][k], templates[1][k])
                expected += [(U[g][b, k] @ Q).flatten(), (V[g][b, k] @ Q).flatten()]
        torch.testing.assert_close(row, torch.cat(expected))
    features.sum().backward()
    assert (
        all(torch.isfinite(factors.grad).all() for factors in U + V if factors.grad is not None)
        and U[0].grad is not None
    )


def test_mixed_ranks_go_to_the_models_that_take_them() -> None:
    loras = [random_lora([("a", 7, 5, rank), ("b", 6, 9, rank)], rank) for rank in (1, 2, 4)]
    spec = shared_spec(loras)
    assert spec.mixed_ranks and spec.rank == 4
    batch = stack(loras, spec, torch.float64)
    for name in GL_MODELS:
        model = made(name, batch)
        alone = torch.cat([model(stack([lora], spec, torch.float64)) for lora in loras])
        torch.testing.assert_close(alone, model(batch), msg="padding changed the prediction")
        assert invariance_error(model, batch, GL, condition=50.0) <= 1e-9
    for name in ("mlp", "o_align"):
        with pytest.raises(ModelError, match="takes LoRAs of one rank"):
            make_model(name, spec, 1)


def test_another_rank_than_the_trained_one() -> None:
    batch = random_batch()
    higher = stack([random_lora([(n, a, b, 5) for n, a, b, _ in SHAPES])], batch.spec, torch.float64)
    for name in GL_MODELS:
        assert torch.isfinite(made(name, batch)(higher)).all()
    for name in ("mlp", "o_align"):
        with pytest.raises(ModelError, match=r"rank 3 and takes no other; found ranks \[5\]"):
            made(name, batch)(higher)


def test_svd_sees_neither_sign_nor_direction() -> None:
    batch = random_batch()
    flipped = batch.map(lambda t: t)
    flipped = Batch(flipped.spec, tuple(-u for u in flipped.U), flipped.V, flipped.ranks)
    svd, gl_net = made("svd", batch), made("gl_net", batch)
    torch.testing.assert_close(svd(batch), svd(flipped))
    assert not torch.allclose(gl_net(batch), gl_net(flipped))


def test_svd_of_float32_loses_no_digits_to_the_choice_of_factors() -> None:
    """At κ(R) = 1,000, where a QR decomposition in float32 is off by 1e-5 and more."""
    batch = random_batch([("a", 40, 30, 4)], 5)
    R = GL.sample(4, condition=1000.0, count=(5, 1), generator=torch.Generator().manual_seed(0))
    turned = Batch(
        batch.spec, (batch.U[0].double() @ R,), (torch.linalg.solve(R, batch.V[0].double().mT).mT,), batch.ranks
    )
    exact = singular_values(*(factors.float().double() for factors in (turned.U[0], turned.V[0])))
    torch.testing.assert_close(spectra(turned.to(dtype=torch.float32), 4).double(), exact, rtol=1e-6, atol=1e-6)


def with_magnitudes(lora: LoRA, seed: int) -> LoRA:
    """DoRA's, as they are: norms of the base's rows that a fine-tune changed by a few percent."""
    generator, rows = (torch.Generator().manual_seed(k) for k in (1000 + seed, 0))

    def layer(y: LoRALayer) -> LoRALayer:
        base = 5 + torch.rand(y.n, generator=rows, dtype=torch.float64)
        vector = base * (1 + 0.01 * torch.randn(y.n, generator=generator, dtype=torch.float64))
        return LoRALayer(y.name, Magnitude(LowRank(y.U, y.V), vector))

    return LoRA(tuple(map(layer, lora.layers)))


def test_dora_magnitudes_are_standardised_features_of_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loras = [with_magnitudes(random_lora(seed=i), i) for i in range(6)]
    spec = shared_spec(loras)
    batch = stack(loras, spec, torch.float64)
    assert batch.magnitudes is not None and batch.magnitudes.shape == (6, sum(n for _, n, _, _ in SHAPES))
    other = replace(batch, magnitudes=batch.magnitudes * 1.01)
    for name, kind in MODELS.items():
        if kind.memorizes:
            continue
        model = made(name, batch).requires_grad_(False)
        read = model.normalized(batch).magnitudes
        assert read is not None
        torch.testing.assert_close(read.mean(0), torch.zeros(read.shape[1]).double(), atol=1e-3, rtol=0)
        torch.testing.assert_close(read.std(0, correction=0), torch.ones(read.shape[1]).double(), atol=1e-3, rtol=0)
        assert relative_change(model.embed(other), model.embed(batch)) > 1e-3, name
        if kind.symmetry is not None:
            assert invariance_error(model, batch, kind.symmetry, condition=100.0, trials=2) <= 1e-9, name
    monkeypatch.setattr(layers, "WIDE", 0)
    in_parts = made("gl_net", batch).requires_grad_(False)
    assert relative_change(in_parts.embed(other), in_parts.embed(batch)) > 1e-3


def test_a_magnitude_that_never_differs_is_read_by_its_share_and_not_by_its_rounding() -> None:
    loras = [with_magnitudes(random_lora(seed=i), 0) for i in range(3)]
    batch = stack(loras, shared_spec(loras))
    assert batch.magnitudes is not None
    read = made("svd", batch, torch.float32).normalized(replace(batch, magnitudes=1.1 * batch.magnitudes)).magnitudes
    assert read is not None
    torch.testing.assert_close(read, torch.full_like(read, 0.1))


def test_a_checkpoint_from_before_magnitudes_were_standardised_reads_them_as_they_are() -> None:
    loras = [with_magnitudes(random_lora(seed=i), i) for i in range(3)]
    batch = stack(loras, shared_spec(loras))
    kept = {name: value for name, value in made("gl_net", batch).state_dict().items() if "magnitude" not in name}
    model = make_model("gl_net", batch.spec, 3, find_model("gl_net").configure(width=16, equivariant_width=4))
    model.load_state_dict(kept)
    read = model.normalized(batch).magnitudes
    assert read is not None and batch.magnitudes is not None and torch.equal(read, batch.magnitudes)


def test_dense_says_what_memory_it_needs() -> None:
    huge = shared_spec(
        [LoRA((LoRALayer.pair("x", torch.zeros(200_000, 1, device="meta"), torch.zeros(200_000, 1, device="meta")),))]
    )
    config, cpu = ModelConfig(), torch.device("cpu")
    assert memory_needed("dense", huge, 1, config) > 32 * 64 * 200_000**2
    with pytest.raises(ModelError, match=r"Dense of 1 modules at width 64 needs about [\d.e+]+ GB"):
        check_memory("dense", huge, 1, config, device=cpu)
    check_memory("gl_net", huge, 1, config, device=cpu)


def test_members_without_a_common_module_are_refused() -> None:
    with pytest.raises(ModelError, match="share no module"):
        shared_spec([random_lora([("a", 3, 4, 1)]), random_lora([("a", 4, 3, 1)])])


def test_normalising_keeps_every_symmetry_and_gives_unit_entries() -> None:
    batch = random_batch(count=50).map(lambda t: 1e-3 * t)
    model = made("gl_net", batch, normalize=True)
    normal = model.normalized(batch)
    for factors in (*normal.U, *normal.V):
        assert factors.std().item() == pytest.approx(1, abs=0.1)
    assert invariance_error(model, batch, GL, condition=100.0) <= 1e-9


@pytest.mark.parametrize("scale", [0.25, 4.0, -2.0])
def test_scale_is_part_of_the_function(scale: float) -> None:
    """A batch holds s U Vᵀ: what alpha says reaches every model, and a scale moved into the factors is the same
    LoRA.
    """
    scaled = random_lora(scale=scale)
    moved = LoRA(tuple(LoRALayer.pair(y.name, scale * y.U, y.V) for y in scaled.layers))
    spec = shared_spec([scaled])
    batch = stack([scaled], spec, torch.float64)
    for (_, indices), U, V in zip(spec.groups, batch.U, batch.V, strict=True):
        for g, i in enumerate(indices):
            torch.testing.assert_close(U[0, g] @ V[0, g].T, scaled[spec.modules[i].name].delta(torch.float64))
            assert U[0, g].norm() / scaled[spec.modules[i].name].U.norm() == pytest.approx(abs(scale) ** 0.5), (
                "√|s| goes into each factor"
            )
    for name in GL_MODELS:
        model = made(name, batch)
        torch.testing.assert_close(model(batch), model(stack([moved], spec, torch.float64)))
        assert not torch.allclose(model(batch), model(stack([random_lora()], spec, torch.float64)))


def test_choices_are_written_as_words() -> None:
    asked = GLNetConfig().having("order=columns", "depth=1", "dropout=0", "gl_norm=true", "apart=unit norm,log sizes")
    apart = frozenset({Apart.UNIT_NORM, Apart.LOG_SIZES})
    assert asked == GLNetConfig(order=Order.COLUMNS, depth=1, dropout=0, gl_norm=True, apart=apart)
    for model in MODELS.values():
        config = model.configure()
        as_words = [
            f"{name}={','.join(value) if isinstance(value, list) else json.dumps(value).strip(chr(34))}"
            for name, value in config.to_dict().items()
        ]
        assert config.having(*as_words) == config
    for wrong, why in (
        ("ordre=columns", "no choice 'ordre'. It has width"),
        ("order=rows", "'rows' is not a valid Order"),
        ("depth=one", "usually 2"),
        ("depth=true", "usually 2"),
        ("gl_norm=1", "usually False"),
        ("depth", "usually 2"),
        ("apart=size", "'size' is not a valid Apart"),
    ):
        with pytest.raises(ModelError, match=why):
            GLNetConfig().having(wrong)
