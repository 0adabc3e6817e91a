"""Statements of the paper, tested numerically."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lol_core.core.batch import shared_spec, stack
from lol_core.core.groups import GL
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_net import GLNet, GLNetConfig
from lol_core.learning.models.layers import EquivariantLinear
from tests.builders import random_lora


@given(
    n=st.integers(3, 8), m=st.integers(3, 8), r=st.integers(1, 3), kappa=st.floats(1, 50), seed=st.integers(0, 10_000)
)
@settings(max_examples=40)
def test_lemma_3_equal_products_mean_one_orbit(n: int, m: int, r: int, kappa: float, seed: int) -> None:
    """Full-rank (U, V) and (U′, V′) have the same product exactly when (U′, V′) = (UR, VR⁻ᵀ) for some R, which is then
    U⁺U′.
    """
    layer = random_lora([("x", n, m, r)], seed).layers[0]
    moved = layer.act(GL.sample(r, condition=kappa, generator=torch.Generator().manual_seed(seed)))
    R = torch.linalg.lstsq(layer.U, moved.U).solution
    torch.testing.assert_close(layer.U @ R, moved.U, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.linalg.solve(R, layer.V.T).T, moved.V, rtol=1e-6, atol=1e-6)
    other = random_lora([("x", n, m, r)], seed + 1).layers[0]
    S = torch.linalg.lstsq(layer.U, other.U).solution
    gap = (layer.U @ S - other.U).norm() + (torch.linalg.pinv(S) @ layer.V.T - other.V.T).norm()
    assert gap > 1e-6


def representation(R: list[torch.Tensor], n: list[int], m: list[int]) -> torch.Tensor:
    """The matrix by which (R₁, …, R_L) acts on the flattened rows of U₁, V₁, …, U_L, V_L."""
    blocks = []
    for R_i, n_i, m_i in zip(R, n, m, strict=True):
        blocks += [R_i.T] * n_i + [torch.linalg.inv(R_i)] * m_i
    return torch.block_diag(*blocks)


@given(
    n=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    m=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    n_out=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    m_out=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    r=st.integers(2, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=10)
def test_proposition_1_dimension_of_the_equivariant_maps(
    n: list[int], m: list[int], n_out: list[int], m_out: list[int], r: int, seed: int
) -> None:
    """The space of linear maps T with T ρ(R) = ρ̃(R) T for all R has dimension Σ nᵢn′ᵢ + Σ mᵢm′ᵢ (equation 15): no more
    than equation (4) gives.
    """
    g = torch.Generator().manual_seed(seed)
    constraints = []
    for draw in range(4):
        # scaled, because for r = 2 and |det R| = 1 throughout, R and R⁻ᵀ are the same representation and more maps
        # commute with them
        R = [(draw + 1) ** 0.5 * GL.sample(r, condition=5.0, generator=g) for _ in range(2)]
        into, outof = representation(R, n, m), representation(R, n_out, m_out)
        constraints.append(
            torch.kron(torch.eye(len(outof), dtype=torch.float64), into.T.contiguous())
            - torch.kron(outof, torch.eye(len(into), dtype=torch.float64))
        )
    values = torch.linalg.svdvals(torch.cat(constraints))
    nullity = int((values < 1e-8 * values[0]).sum())
    assert nullity == sum(a * b for a, b in zip(n, n_out, strict=True)) + sum(
        a * b for a, b in zip(m, m_out, strict=True)
    )


def test_theorem_2_is_of_widths_n_and_m_a_narrower_gl_net_cannot_read_what_its_maps_forget() -> None:
    """The target is linear in ΔW and supported on the kernel of Φ at the start: from the features of a GL-net as wide
    as the module it is read exactly, from those of a narrower one not at all.
    """
    torch.manual_seed(0)
    loras = [random_lora([("x", 6, 5, 2)], seed) for seed in range(80)]
    batch = stack(loras, shared_spec(loras), torch.float64)
    narrow, wide = (
        make_model("gl_net", batch.spec, 1, GLNetConfig(equivariant_width=w)).double().eval() for w in (3, 6)
    )
    assert isinstance(narrow, GLNet) and isinstance(wide, GLNet)
    layer = narrow.first[0]
    assert isinstance(layer, EquivariantLinear)
    kernel = torch.linalg.svd(layer.Phi[0]).Vh[3:].T  # (6, 3)
    delta = torch.stack([lora.layers[0].delta(torch.float64) for lora in loras])
    y = (delta * (kernel @ torch.randn(3, 5).double())).sum((1, 2))
    with torch.no_grad():
        residuals = []
        for model in (wide, narrow):
            features = model.features(batch)
            known, new = features[:60], features[60:]
            fitted = torch.linalg.lstsq(known, y[:60, None], driver="gelsd").solution
            residuals.append(float((new @ fitted - y[60:, None]).norm() / y[60:].norm()))
    assert residuals[0] < 1e-6 and residuals[1] > 0.5
