"""What the benchmarks make of their samples; that they run is tried by `python -m benchmarks --quick`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from benchmarks import __main__ as runner
from benchmarks import figure5, many
from benchmarks.figure5 import LIMIT
from benchmarks.measure import Claim, alternately, exponent
from benchmarks.models import factors, gl_net, loop_of, square
from lol_core.experiments.figure5 import LARGEST_BATCH, shape
from lol_core.experiments.timing import needs
from lol_core.learning.memory import memory_needed
from lol_core.learning.models import MODELS, ModelConfig


@given(power=st.floats(0, 3), scale=st.floats(0.01, 10))
def test_an_exponent_is_that_of_a_power(power: float, scale: float) -> None:
    sizes = [8, 16, 64]
    times = {str(size): [scale * size**power, 10 * scale * size**power, 0.1 * scale] for size in sizes}
    times = {size: [*samples[:1], samples[0], samples[1]] for size, samples in times.items()}
    assert exponent(sizes, times) == pytest.approx(power, abs=1e-6)


def test_a_ratio_is_the_median_of_samples_taken_together() -> None:
    claim = Claim("fast", 2.0, ours=[1.0, 10.0, 1.0], reference=[3.0, 30.0, 100.0], against="a loop")
    assert claim.ratio == 3.0 and claim.holds and not Claim("fast", 3.5, claim.ours, claim.reference, "").holds
    order: list[str] = []
    taken = alternately({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and [len(samples) for samples in taken.values()] == [3, 3]


def test_one_part_that_fails_leaves_the_others_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(quick: bool) -> runner.Part:
        raise RuntimeError("no browser here")

    def measured(quick: bool) -> runner.Part:
        growth = {"rank": {"exponent": 0.5, "samples (s)": {"4": [1.0]}}}
        return {"claims": [Claim("We are fast", 2.0, [1.0], [1.5], "a loop")], "growth": growth}

    parts = {"broken": broken, "measured": measured}
    monkeypatch.setattr(runner, "PARTS", parts)
    app = Typer()
    app.command()(runner.main)
    done = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path)])
    assert done.exit_code == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["broken"]["failed"] == "RuntimeError: no browser here" and report["machine"]["cores"]
    claim = report["parts"]["measured"]["claims"][0]
    assert claim["ours"] == [1.0] and claim["reference"] == [1.5] and claim["ratio"] == 1.5 and not claim["holds"]
    text = (tmp_path / "report.md").read_text()
    assert "| We are fast | 1.50 | a loop | 2 | **does not hold** |" in text and "| rank | 0.50 |" in text
    assert "no browser here" in text and "mean nothing" in text
    monkeypatch.setitem(parts, "broken", lambda quick: {"facts": {"a browser": 1}})
    assert CliRunner().invoke(app, ["--quick", "--only", "broken", "--out", str(tmp_path)]).exit_code == 0
    text = (tmp_path / "report.md").read_text()
    assert "no browser here" not in text and "| a browser | 1 |" in text and "| We are fast | 1.50 |" in text
    assert CliRunner().invoke(app, ["--only", "other", "--out", str(tmp_path)]).exit_code == 2


def test_the_loop_is_the_same_network() -> None:
    batch = factors(square(5, 70, 2), 3)
    model, step = gl_net(batch)
    gradients = []
    for call in (step, loop_of(model, batch)):
        model.zero_grad()
        call()
        gradients.append(
            [p.grad.clone() for layer in (model.head.latent[1:], model.head.out) for p in layer.parameters()]
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_figure_5_is_measured_but_for_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(model: str, size: str, at_least: float) -> dict[str, float]:
        return {"preprocess (s)": 1.0, "forward (s)": float(shape(size).spec.parameters), "peak (GiB)": 1.0}

    monkeypatch.setattr(figure5, "measured", measured)
    found = figure5.report()
    assert found["report"]["factors grow"] == 128 and "175B" not in found["report"]["MLP + Dense"]
    assert [grown["exponent"] for grown in found["growth"].values()] == pytest.approx([1.0] * 4)
    assert found["report"]["GL-net"]["175B"]["peak (GiB)"] == 1.0


@pytest.mark.parametrize("model", MODELS)
def test_the_largest_size_of_figure_5_takes_less_than_24_gib_but_for_dense(model: str) -> None:
    largest = shape("175B")
    assert largest.spec.parameters == 96 * 2 * 12_288 * 4
    need = needs(model, largest)
    used = memory_needed(model, largest.spec, 1, ModelConfig(), fitted=False)
    fits = max(need.weights + LARGEST_BATCH * need.each, used) <= LIMIT * 2**30
    assert fits == (model != "dense")


def test_of_known_copies_all_and_no_others_are_found() -> None:
    facts = many.report(200)
    assert facts["precision"] == facts["recall"] == 1
