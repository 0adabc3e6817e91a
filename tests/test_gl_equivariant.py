"""The network that gives LoRAs back is equivariant: for batches, and from a saved file to a saved file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lol_core.core.batch import Batch, stack
from lol_core.core.geometry import distance, norm
from lol_core.core.groups import GL
from lol_core.core.symmetry import TOLERANCES, equivariance_error
from lol_core.errors import ModelError
from lol_core.formats import read
from lol_core.formats.writing import write
from lol_core.learning.models.gl_equivariant import Crossing, Gates, GLEquivariantConfig, GLEquivariantNet
from tests.builders import MODULES, random_batch, random_lora, turned

SHAPES = (("a", 7, 5, 3), ("b", 6, 9, 2), ("c", 7, 5, 1), ("d", 7, 5, 3))


def trained(batch: Batch, seed: int = 0, **config: int) -> GLEquivariantNet:
    """Random in every weight, those included that start at 0: what it promises it promises whatever it learnt."""
    torch.manual_seed(seed)
    net = GLEquivariantNet(batch.spec, GLEquivariantConfig(width=8, **config)).to(batch.dtype)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    layers=st.integers(0, 3),
    atoms=st.sampled_from([0, 5]),
    condition=st.sampled_from([2.0, 100.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_network_is_equivariant_in_batches(
    seed: int, layers: int, atoms: int, condition: float, dtype: torch.dtype
) -> None:
    batch = random_batch(SHAPES, seed=seed, dtype=dtype)
    wishes = torch.randn(len(batch), 2, generator=torch.Generator().manual_seed(seed)).to(dtype)
    net = trained(batch, seed, layers=layers, wishes=2, atoms=atoms)
    generator = torch.Generator().manual_seed(seed)
    error = equivariance_error(lambda b: net(b, wishes), batch, GL, condition=condition, trials=2, generator=generator)
    assert error <= TOLERANCES[dtype]
    assert (net(batch, wishes).U[0] - batch.U[0]).norm() > 0.1 * batch.U[0].norm()
    assert all((u[..., 3:] == 0).all() for u in net(batch, wishes).U)


def test_a_crossing_reaches_what_is_no_image_of_the_own_columns_and_a_plain_product_does_not_turn() -> None:
    batch = random_batch(SHAPES)
    cross = Crossing(3, 7, 5, 4, context=2).double()
    (U, *_), (V, *_) = batch.U, batch.V
    context = torch.randn(len(batch), 2, generator=torch.Generator().manual_seed(0)).double()
    to_U, to_V = cross(U, V, context)
    c = cross.of_context(context).unflatten(1, (3, 4))
    D = torch.einsum("lnk,blk,lmk->blnm", cross.a, c, cross.b)
    torch.testing.assert_close(to_U @ (V.mT @ V), D @ V)
    torch.testing.assert_close(to_V @ (U.mT @ U), D.mT @ U)
    assert equivariance_error(lambda b: replace(b, U=(b.U[0] + D @ b.V[0], *b.U[1:])), batch, GL) > 1e-2


def test_a_gate_of_the_factors_alone_is_not_equivariant() -> None:
    batch = random_batch()
    assert equivariance_error(lambda b: replace(b, U=tuple(u.sigmoid() * u for u in b.U)), batch, GL) > 1e-2


def test_the_gates_differ_between_loras_and_have_gradients_everywhere() -> None:
    batch = random_batch(SHAPES)
    net = trained(batch)
    scaled = net(replace(batch, U=tuple(2 * u for u in batch.U)))
    assert any((s - 2 * u).abs().max() > 1e-3 for s, u in zip(scaled.U, net(batch).U, strict=True)), "it is linear"
    zero = batch.map(torch.zeros_like).map(lambda t: t.requires_grad_())
    torch.stack([u.sum() for u in net(zero).U]).sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in net.parameters())
    assert all(u.grad is not None and u.grad.isfinite().all() for u in zero.U)


def test_gates_on_one_and_a_step_are_equation_6() -> None:
    generator = torch.Generator().manual_seed(0)
    U, V = torch.randn(2, 2, 3, 6, 2, generator=generator, dtype=torch.float64)
    gates = Gates(3, 6, 1, 4).double()
    with torch.no_grad():
        for ones in (gates.p, gates.q):
            ones.fill_(1)
        for sharp in (gates.rows, gates.columns):
            sharp.fill_(1e9)
    u, v = gates(U, V, torch.zeros(2, 4).double())
    product = U @ V.mT
    torch.testing.assert_close(u, 2 * (product.sum(-1, keepdim=True) > 0) * U)
    torch.testing.assert_close(v, 2 * (product.sum(-2)[..., None] > 0) * V)


def test_an_untrained_network_gives_back_what_it_is_given_and_wishes_are_checked() -> None:
    batch = random_batch(SHAPES)
    net = GLEquivariantNet(batch.spec, GLEquivariantConfig(wishes=1)).double()
    assert all(torch.equal(a, b) for a, b in zip(net(batch, torch.ones(4, 1).double()).U, batch.U, strict=True))
    with pytest.raises(ModelError, match="takes 1 wishes with each LoRA; found none"):
        net(batch)


def test_a_saved_lora_and_its_turned_copy_become_the_same_update(tmp_path: Path) -> None:
    """Save, turn R, apply, save: the same ΔW, factors that differ by R, and the file's own dialect and scale."""
    lora = replace(random_lora(MODULES, dtype=torch.float32, scale=0.5), dialect="PEFT")
    write(lora, tmp_path / "one", "PEFT", torch.float32)
    write(turned(lora, 1), tmp_path / "two", "PEFT", torch.float32)
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    net = trained(stack([one], random_batch(MODULES).spec))
    for name, made in zip(("one", "two"), net.rewrite([one, two]), strict=True):
        write(made, tmp_path / f"{name}-edited", "PEFT", torch.float32)
    first, second = read(tmp_path / "one-edited"), read(tmp_path / "two-edited")
    assert (first.names, first.dialect, first.layers[0].scale) == (one.names, one.dialect, 0.5)
    for x, y, given_ in zip(first.layers, second.layers, one.layers, strict=True):
        assert distance(x, y) <= 1e-4 * norm(x)
        assert distance(x, given_) > 0.1 * norm(given_), "nothing was edited"
        assert (x.U - y.U).norm() > 0.1 * x.U.norm(), "R was not turned"
    for x, y, before, after in zip(first.layers, second.layers, one.layers, two.layers, strict=True):
        R = torch.linalg.lstsq(before.U.double(), after.U.double()).solution
        torch.testing.assert_close(y.U.double(), x.U.double() @ R, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y.V.double(), x.V.double() @ torch.linalg.inv(R).mT, rtol=1e-4, atol=1e-5)
