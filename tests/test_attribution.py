"""What a prediction rests on, against finite differences of the prediction itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.insight.attribution import contributions
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import MODELS, ModelConfig
from lol_core.learning.training import plan, train


@pytest.mark.parametrize(("model", "target"), [*((name, "size") for name in MODELS), ("dense", "positive")])
def test_contributions_are_how_fast_the_prediction_grows(
    model: str, target: str, synthetic_zoo: Zoo, tmp_path: Path
) -> None:
    config = TrainingConfig(model=model, model_config=ModelConfig(width=16), epochs=5)
    checkpoint = train(synthetic_zoo, plan(synthetic_zoo, [target], config), config, tmp_path / "run")
    lora = synthetic_zoo.load(synthetic_zoo.ids[0])

    def predicted(scaled: LoRA) -> float:
        raw = checkpoint.outputs([scaled]).double()
        return float(raw[0, 0] * checkpoint.task.units[0])

    found = contributions(checkpoint, lora)
    assert list(found.index) == [module.name for module in checkpoint.spec.modules]
    step = 1e-3
    for k, layer in enumerate(lora.layers):
        ends = []
        for sign in (
            1,
            -1,
        ):  # scaling U alone is what the definition scales; MLP reads the factors, the others only see the product
            layers = tuple(
                y.with_pair(y.U * (1 + sign * step), y.V) if i == k else y for i, y in enumerate(lora.layers)
            )
            ends.append(predicted(replace(lora, layers=layers)))
        assert found[layer.name] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.1, abs=2e-3)
