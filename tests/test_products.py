"""Products of many modules, one after the other or in one piece, and the wide layer they end in."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from lol_core.core.batch import concatenate, shared_spec, stack, turned
from lol_core.learning.models import modulewise
from lol_core.learning.models.base import flat_factors
from lol_core.learning.models.gl_net import GLNet
from lol_core.learning.models.modulewise import Products, grams, left_product, product
from lol_core.learning.models.wide import WideLinear
from lol_core.learning.packed import Packing
from tests.builders import random_batch, random_lora
from tests.test_models import made


@pytest.mark.parametrize("config", [{}, {"equivariant_layers": 2}, {"mean_products": True}])
def test_a_wide_gl_net_computes_what_a_plain_one_does(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its products are many they are read in parts, from a weight stored otherwise; the values, the gradients and
    the names in a checkpoint are the same.
    """
    batch = random_batch()
    plain = made("gl_net", batch, **config)
    monkeypatch.setattr("lol_core.learning.models.layers.WIDE", 1)
    for place in ("wide", "gl_net"):
        monkeypatch.setattr(f"lol_core.learning.models.{place}.PART", 300)
    split = made("gl_net", batch, **config)
    first = split.head.latent[0]
    assert isinstance(first, WideLinear) and (config.get("mean_products") or len(first.weights) > 1)
    shapes = [{key: t.shape for key, t in model.state_dict().items()} for model in (split, plain)]
    assert shapes[0] == shapes[1]
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(split.state_dict()[key], tensor, msg=f"{key}: both begin alike")
    split.load_state_dict({key: tensor + 0.01 for key, tensor in plain.state_dict().items()})
    plain.load_state_dict({key: tensor + 0.01 for key, tensor in plain.state_dict().items()})
    torch.testing.assert_close(split(batch), plain(batch))
    torch.testing.assert_close(split.head.latent(split.features(batch)), split.embed(batch))
    for model in (split, plain):
        model(batch).square().sum().backward()
    gradient = torch.cat([part.grad for part in first.weights if part.grad is not None]).T
    torch.testing.assert_close(gradient, plain.head.latent[0].weight.grad)
    assert isinstance(split, GLNet) and isinstance(plain, GLNet)
    torch.testing.assert_close(split.first[0].Phi.grad, plain.first[0].Phi.grad)


def test_a_wide_layer_names_what_does_not_fit() -> None:
    layer = WideLinear(6, 2, [4, 2])
    with pytest.raises(RuntimeError, match=r"weight is \(2, 5\); expected \(2, 6\)"):
        layer.load_state_dict({"weight": torch.zeros(2, 5), "bias": torch.zeros(2)})
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"bias": torch.zeros(2)})
    with pytest.raises(ValueError, match="do not make 6 inputs"):
        WideLinear(6, 2, [4, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 3, 4, 8])
def test_left_products_are_those_of_each_module(rank: int, dtype: torch.dtype) -> None:
    factors = torch.randn(3, 4, 5, rank).to(dtype)
    maps = torch.randn(4, 2, 5).to(dtype).requires_grad_()
    weights = torch.randn(3, 4, 2, rank).to(dtype)
    tolerance = 10 * torch.finfo(dtype).eps
    close = partial(torch.testing.assert_close, check_dtype=False, rtol=tolerance, atol=tolerance)
    expected = maps.double() @ factors.double()
    (gradient,) = torch.autograd.grad((expected * weights.double()).sum(), maps)
    shifted = torch.cat([factors.new_zeros(1), factors.flatten()])[1:].view(factors.shape)
    transposed = factors.transpose(0, 1).contiguous().transpose(0, 1)
    of_batch = turned(turned(factors).contiguous())
    for same in (
        factors,
        shifted,
        transposed,
        of_batch,
        of_batch.clone().requires_grad_(),
        factors.clone().requires_grad_(),
    ):
        product = left_product(maps, same)
        (own,) = torch.autograd.grad((product * weights).sum(), maps)
        assert product.dtype == dtype
        close(product, expected)
        close(own, gradient)


def test_factors_of_a_batch_lie_so_that_a_module_multiplies_them_as_they_are() -> None:
    """Also those of a part of it, of some in another order, of two put together, in another type, and from a record:
    otherwise every step copies them.
    """
    loras = [random_lora([("a", 4, 3, 2), ("b", 4, 3, 2), ("c", 5, 2, 1)], seed) for seed in range(4)]
    batch = stack(loras, shared_spec(loras))
    packing = Packing(batch.spec)
    drawn = packing.batch(packing.pack(batch), [2, 0, 3])
    for same in (
        batch,
        batch[1:3],
        batch[torch.tensor([2, 0])],
        concatenate([batch, drawn]),
        batch.to(dtype=torch.float64),
        drawn,
    ):
        for factors in (*same.U, *same.V):
            columns = turned(factors).flatten(1, 2)
            assert columns.data_ptr() == factors.data_ptr() and columns.stride()[1:] == (factors.shape[2], 1)


def test_an_empty_batch_has_empty_products() -> None:
    none, templates = torch.zeros(0, 4, 5, 4), torch.randn(4, 5, 4)
    assert left_product(torch.randn(4, 2, 5), none).shape == (0, 4, 2, 4)
    assert product(none.mT, templates).shape == grams(none)[0].shape == (0, 4, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_product_is_written_where_it_belongs_and_carries_gradients(dtype: torch.dtype) -> None:
    a, b = torch.randn(3, 4, 6, 2).to(dtype), torch.randn(3, 4, 2, 2).to(dtype)
    flat = torch.zeros(3, 4 * 7 * 2).to(dtype)
    product(a, b, out=flat.view(3, 4, 7, 2)[:, :, 1:])
    torch.testing.assert_close(flat.view(3, 4, 7, 2), torch.nn.functional.pad(a @ b, (0, 0, 1, 0)))
    b.requires_grad_()
    for same in (product(a, b), product(a, b, out=torch.zeros_like(a))):
        (gradient,) = torch.autograd.grad(same.sum(), b)
        torch.testing.assert_close(gradient, a.sum(-2)[..., None].expand_as(b))


@pytest.mark.parametrize("rank", [1, modulewise.THIN - 1, modulewise.THIN])
def test_products_with_one_matrix_for_all_do_not_depend_on_how_factors_lie(rank: int) -> None:
    factors, one = torch.randn(3, 2, 20, rank, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64)
    expected = factors.mT @ one
    for same in (factors, factors.mT.contiguous().mT):
        torch.testing.assert_close(product(same.mT, one), expected)
        for out in (torch.zeros(3, 2, rank, 5).double(), torch.zeros(3, 2, rank, 6).double()[..., 1:]):
            assert product(same.mT, one, out=out) is out
            torch.testing.assert_close(out, expected)
    assert product(factors[:0].mT, one).shape == (0, 2, rank, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 4, modulewise.THIN, modulewise.THIN + 1])
@pytest.mark.parametrize("cached", [1, 300, 2**18])
def test_gram_matrices_are_computed_in_float64_however_factors_lie(
    cached: int, rank: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modulewise, "CACHED", cached)
    factors = torch.randn(3, 2, 20, rank).to(dtype)
    expected = factors.double().mT @ factors.double()
    of_batch = turned(turned(factors).contiguous())
    for same in grams(factors, factors.mT.contiguous().mT, of_batch, factors.clone().requires_grad_()):
        torch.testing.assert_close(same, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cached", [1, 100, 2**18])
def test_products_are_multiplied_without_being_made(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modulewise, "CACHED", cached)
    U, V, weight = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5, 4, 2), (3, 5, 6, 2), (120, 3))
    )
    torch.testing.assert_close(Products(U, V) @ weight, Products(U, V).made() @ weight)
    assert torch.autograd.gradcheck(lambda *of: Products(*of[:2]) @ of[2], (U, V, weight))


def test_flat_factors_leave_out_padding_and_carry_gradients() -> None:
    loras = [random_lora([("a", 4, 3, 2), ("b", 4, 3, 1), ("c", 4, 3, 1), ("d", 5, 2, 2)], seed) for seed in range(2)]
    batch = stack(loras, shared_spec(loras), torch.float32).map(lambda factor: factor.requires_grad_())
    flat = flat_factors(batch)
    for row, lora in zip(flat, loras, strict=True):
        expected = torch.cat([part for y in lora.layers for part in (y.U.float().flatten(), y.V.float().flatten())])
        assert torch.equal(row.detach(), expected)
    flat.sum().backward()
    assert batch.U[0].grad is not None and batch.U[0].grad.sum() == 2 * 4 * (2 + 1 + 1), "nothing of the padding"
