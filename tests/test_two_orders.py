"""The two-order kernel: its arithmetic beside a plain one, what it promises, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import Batch
from lol_core.core.groups import GL
from lol_core.core.progress import Reporter, Stopped
from lol_core.core.symmetry import act, invariance_error, sample_for
from lol_core.errors import ModelError
from lol_core.learning.card import model_card
from lol_core.learning.config import TrainingConfig
from lol_core.learning.link import Link
from lol_core.learning.models import make_model
from lol_core.learning.models.gram import both_orders, measured
from lol_core.learning.models.two_orders import CHOICES, RIDGES, Choice, TwoOrders, _kernel, _left_out
from lol_core.learning.training import plan, train
from tests.builders import random_batch


def known(batch: Batch, answers: torch.Tensor, link: Link = Link.IDENTITY) -> TwoOrders:
    model = make_model("two_orders", batch.spec, answers.shape[1])
    assert isinstance(model, TwoOrders)
    model = model.double()
    model.memorize(batch, answers, link=link)
    return model


def plain(batch: Batch, model: TwoOrders) -> np.ndarray:
    """The kernel of some LoRAs with themselves, from ΔW and ΔWΔWᵀ written out."""
    one, two, norms = [], [], []
    for i in range(len(batch)):
        updates = [(U[i] @ V[i].mT) for U, V in zip(batch.U, batch.V, strict=True)]
        updates = [module for group in updates for module in group]
        norms.append([module.norm().log() for module in updates])
        one.append(torch.cat([(module / module.norm()).flatten() for module in updates]))
        squares = [module @ module.mT for module in updates]
        two.append(torch.cat([(square / square.norm()).flatten() for square in squares]))
    x, modules = torch.tensor(norms), len(norms[0])
    x = (x - x.mean(0)) / x.std(0, correction=0)
    choice = Choice(*model.get_buffer("choice").tolist())
    first, second = (torch.stack(rows) @ torch.stack(rows).T / modules for rows in (one, two))
    apart = (x[:, None] - x[None]).square().mean(-1)
    d = choice.first * first + choice.second * second
    s = choice.weight * (-choice.width * apart).exp()
    return (d + s + d * s).numpy()


def test_the_kernel_is_that_of_the_updates_written_out() -> None:
    batch = random_batch(count=9)
    model = known(batch, torch.randn(9, 2).double())
    np.testing.assert_allclose(model._compared(batch).numpy(), plain(batch, model), rtol=1e-6, atol=1e-9)


def test_errors_of_those_left_out_are_those_of_fits_without_them() -> None:
    batch, y = random_batch(count=8), torch.randn(8, 2).double()
    y = y - y.mean(0)
    K = known(batch, y)._compared(batch)
    for error, ridge in _left_out(K, y):
        residuals = []
        for i in range(8):
            rest = [j for j in range(8) if j != i]
            duals = torch.linalg.solve(K[rest][:, rest] + ridge * torch.eye(7).double(), y[rest])
            residuals.append(y[i] - K[i, rest] @ duals)
        assert error == pytest.approx(float(torch.stack(residuals).square().mean()), rel=1e-6)
    assert [ridge for _, ridge in _left_out(K, y)] == list(RIDGES)


def test_what_was_learnt_is_told_and_what_is_between_is_between() -> None:
    batch = random_batch(count=30)
    seen = torch.stack([(U @ V.mT).square().sum((1, 2, 3)).log() for U, V in zip(batch.U, batch.V, strict=True)]).sum(0)
    model = known(batch, seen[:, None])
    assert np.corrcoef(model(batch)[:, 0], seen)[0, 1] > 0.9
    answers = torch.where(seen[:, None] > seen.median(), 4.0, -4.0).double()
    told = known(batch, answers, Link.LOGIT)(batch).sigmoid()
    assert told.min() >= 0.02 and told.max() <= 0.98 and ((told > 0.5) == (answers > 0)).double().mean() > 0.8
    classes = torch.nn.functional.one_hot((seen > seen.median()).long() + (seen > seen.quantile(0.8)).long()).double()
    shares = known(batch, 4 * classes, Link.LOG)(batch).softmax(1)
    assert (shares.argmax(1) == classes.argmax(1)).double().mean() > 0.7


def test_it_does_not_move_with_the_gauge_and_takes_other_ranks() -> None:
    batch, others = random_batch(count=8), random_batch(count=3, seed=50)
    model = known(batch, torch.randn(8, 2).double())
    assert invariance_error(model, others, GL, condition=100.0, trials=3) < 1e-9
    again = known(act(sample_for(batch, GL, condition=50.0), batch), torch.zeros(8, 2).double())
    torch.testing.assert_close(both_orders(again._known), both_orders(model._known), rtol=1e-5, atol=1e-7)
    U, V = (tuple(torch.cat([f, torch.zeros_like(f)], -1) for f in side) for side in (others.U, others.V))
    torch.testing.assert_close(model(replace(others, U=U, V=V)), model(others))


def test_it_stops_when_asked_and_says_how_many_loras_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(count=6)
    model = make_model("two_orders", batch.spec, 1)
    with pytest.raises(Stopped):
        model.memorize(batch, torch.randn(6, 1), reporter=Reporter(stop=lambda: True))
    monkeypatch.setattr("lol_core.learning.models.two_orders.MOST", 5)
    with pytest.raises(ModelError, match="at most 5; found 6"):
        model.memorize(batch, torch.randn(6, 1))


def test_a_zoo_that_does_not_fit_into_the_memory_is_said_before_it_is_read(
    synthetic_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainingConfig(model="two_orders")
    planned = plan(synthetic_zoo, ["size"], config)
    asked: list[int] = []
    monkeypatch.setattr("lol_core.learning.fit.fits", asked.append)
    with pytest.raises(ModelError, match="GB of memory while"):
        train(synthetic_zoo, planned, config, tmp_path / "run")
    count, numbers = len(planned.split["train"]), planned.spec.parameters
    assert asked == [4 * TwoOrders.copies * numbers * count + 8 * TwoOrders.squares * count**2]
    assert TwoOrders.copies > 1 and TwoOrders.squares > 1


def test_a_kernel_of_nothing_is_none() -> None:
    nothing = torch.zeros(2, 3)
    assert all(bool((_kernel(choice, nothing, nothing, nothing) == choice.weight).all()) for choice in CHOICES)


def test_its_card_says_that_it_gives_its_training_loras_away(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    for model, told in (("two_orders", "holds U and V of"), ("nearest_spectra", "holds the spectra of"), ("svd", "")):
        config = TrainingConfig(model=model, epochs=1)
        checkpoint = train(synthetic_zoo, plan(synthetic_zoo, ["size"], config), config, tmp_path / model)
        card = model_card(checkpoint)
        assert (told in card) if told else ("who publishes it" not in card)


def test_training_it_keeps_it_whole(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    config = TrainingConfig(model="two_orders")
    checkpoint = train(synthetic_zoo, plan(synthetic_zoo, ["size"], config), config, tmp_path / "run")
    again = type(checkpoint).load(tmp_path / "run")
    ids = checkpoint.split["test"]
    loras = [synthetic_zoo.load(id) for id in ids]
    np.testing.assert_array_equal(again.predict(loras), checkpoint.predict(loras))
    assert checkpoint.metrics["test"]["r2"] > pd.Series(checkpoint.controls["constant"])["r2"]


@pytest.mark.parametrize("passes", [-(10**9), 10**9], ids=["by factors", "by updates"])
def test_both_orders_are_those_of_products_written_out(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lol_core.learning.models.gram.PASSES", passes)
    monkeypatch.setattr("lol_core.learning.models.gram.BLOCK", 70)  # several blocks of each
    batch, others = random_batch(count=5), random_batch(count=3, seed=50)
    alone, apart = both_orders(measured(batch)), both_orders(measured(others), measured(batch))
    for rows, columns, found in ((others, batch, apart), (batch, batch, alone)):
        totals = [torch.zeros(len(rows), len(columns)).double() for _ in found]
        for U, V, U_b, V_b in zip(rows.U, rows.V, columns.U, columns.V, strict=True):
            for k in range(U.shape[1]):
                one, two = U[:, k] @ V[:, k].mT, U_b[:, k] @ V_b[:, k].mT
                for total, own, other in zip(totals, (one, one @ one.mT), (two, two @ two.mT), strict=True):
                    own, other = (of.flatten(1) / of.flatten(1).norm(dim=1, keepdim=True) for of in (own, other))
                    total += own @ other.T / len(batch.spec.modules)
        for total, product in zip(totals, found, strict=True):
            torch.testing.assert_close(product, total)
