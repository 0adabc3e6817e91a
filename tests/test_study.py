"""The invariance study: what one R does to several models of one LoRA."""

from __future__ import annotations

import pytest
import torch

from lol_core.core.batch import WeightSpec
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Hadamard, Kronecker, LowRank, Whole
from lol_core.core.symmetry import act, sample_for, sample_own
from lol_core.insight import invariance
from lol_core.insight.invariance import Dial, Examined, Study, matrix_of
from lol_core.learning.models import MODELS, make_model
from tests.builders import random_lora

LORA = random_lora([("a", 9, 7, 2), ("b", 9, 7, 2), ("c", 6, 5, 2)])
KINDS = {name: MODELS[name] for name in ("mlp", "svd", "dense")}


def test_models_too_large_to_answer_are_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Study.of(LORA, {}, KINDS)
    assert len(whole.models) == 3 and not whole.problems
    parameters = [examined.model.n_parameters for examined in whole.models]
    monkeypatch.setattr(invariance, "LARGEST", max(parameters) - 1)
    some = Study.of(LORA, {}, KINDS)
    assert [examined.title for examined in some.models] == ["MLP (untrained)", "MLP + SVD (untrained)"]
    assert len(some.problems) == 1 and "MLP + Dense (untrained) is left out" in some.problems[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_model_sees_the_lora_before_and_after_each_r(dtype: torch.dtype) -> None:
    study = Study.of(LORA, {}, KINDS)
    two = WeightSpec(study.spec.modules[1:])
    other = Examined("of two modules", make_model("mlp", two, 1).eval())
    study = Study(LORA, (*study.models, other))
    for seed in range(2):
        R = sample_for(study.start(dtype), GL, generator=torch.Generator().manual_seed(seed))
        table = study.turn(R, GL, dtype).table.set_index("model")
        for examined in study.models:
            batch = study.start(dtype, examined.model.spec)
            own = R if examined is not other else (R[0][:, 1:], R[1])
            with torch.no_grad():
                expected = [float(study.model(examined, dtype)(b)) for b in (batch, act(own, batch))]
            assert [*table.loc[examined.title, ["before R", "after R"]]] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_r_of_a_module_is_that_which_turns_its_factors() -> None:
    study = Study.of(LORA, {}, KINDS)
    R = sample_for(study.start(torch.float64), GL, generator=torch.Generator().manual_seed(0))
    turned = study.turn(R, GL, torch.float64)
    for module in study.spec.modules:
        before, after = (study.corner(batch, module)["U"] for batch in (turned.before, turned.after))
        assert before @ matrix_of(R, turned.before, module) == pytest.approx(after)


def test_a_prediction_that_is_not_finite_is_a_problem_and_no_dial() -> None:
    study = Study.of(LORA, {}, {"mlp": MODELS["mlp"]})
    with torch.no_grad():
        next(study.models[0].model.parameters()).fill_(torch.inf)
    turned = study.turn(sample_for(study.start(torch.float32), GL), GL, torch.float32)
    assert not turned.dials and turned.table.empty and "not finite in torch.float32" in turned.problems[0]


def test_what_acts_on_the_file_is_named_module_by_module_and_can_be_drawn() -> None:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    parts = [
        *(Hadamard(LowRank(draw(6, 2), draw(5, 2)), LowRank(draw(6, 2), draw(5, 2))) for _ in range(2)),
        Kronecker(Whole(draw(2, 3)), Whole(draw(3, 2))),
    ]
    lora = LoRA(tuple(LoRALayer(name, part) for name, part in zip("abc", parts, strict=True)))
    study = Study.of(lora, {}, {"mlp": MODELS["mlp"], "gl_net": MODELS["gl_net"]})
    assert "GL(2) × GL(2) × scalings × scalings (2 modules: 36 of 88 numbers" in study.own_groups
    assert "GL(1) (1 module: 1 of 12 numbers" in study.own_groups
    R = sample_own([lora], study.start(torch.float64), generator=generator)
    turned = study.turn(R, GL, torch.float64)
    assert [*turned.table["verdict"]] == ["moves, as it may", "holds"]
    assert turned.moved["ΔW"] <= 1e-12 < 0.1 < turned.moved["U"]


@pytest.mark.parametrize(
    ("low", "high", "value", "place"), [(0, 2, 0.5, 0.25), (0, 2, -9, 0), (0, 2, 9, 1), (3, 3, 3, 0), (-4, -2, -3, 0.5)]
)
def test_a_needle_rests_at_the_ends_of_its_scale(low: float, high: float, value: float, place: float) -> None:
    assert Dial("GL-net", "score", low, high, value, value, "holds", keeps=True).place(value) == place
