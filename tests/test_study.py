"""The invariance study: what one R does to several models of one LoRA."""

from __future__ import annotations

import pytest
import torch

from lol_core.core.batch import WeightSpec
from lol_core.core.groups import GL
from lol_core.core.symmetry import act, sample_for
from lol_core.insight import invariance
from lol_core.insight.invariance import Examined, Study
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
