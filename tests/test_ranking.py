"""LoRAs in order of a score, and what they can be ranked by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lol_core.collections.memory import MemorySource
from lol_core.insight.ranking import Ranking, by_label, measured_numbers, ways
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora


@pytest.fixture
def source() -> MemorySource:
    """Thirty random LoRAs; the labels are made up."""
    loras = {f"lora{i:02d}": random_lora(MODULES, i) for i in range(30)}
    numbers = np.random.default_rng(0).normal(size=(30, 2))
    labels = pd.DataFrame(numbers, index=list(loras), columns=["size", "clip_score"])
    return MemorySource(loras, labels.assign(positive=[i % 2 for i in range(30)], kind="one"))


def test_what_loras_can_be_ranked_by_begins_with_clip_scores(source: MemorySource, tmp_path: Path) -> None:
    assert measured_numbers(source) == ["clip_score", "size"], "neither two values nor text"
    models = {}
    for target in ("size", "positive", "clip_score"):
        config = TrainingConfig(model="svd", model_config=ModelConfig(width=8), epochs=1)
        models[target] = train(source, plan(source, [target], config), config, tmp_path / target)
    assert list(ways(source, models).items()) == [
        ("clip_score predicted by clip_score", ("clip_score", "clip_score")),
        ("clip_score, measured", ("clip_score", None)),
        ("size predicted by size", ("size", "size")),
        ("size, measured", ("size", None)),
    ], "a model of yes and no ranks nothing"


def test_a_ranking_runs_from_the_highest_to_the_lowest(source: MemorySource) -> None:
    ranking = by_label(source, "size")
    assert ranking.scores.is_monotonic_decreasing and set(ranking.scores.index) == set(source.ids)
    along = ranking.along(4)
    ends = [ranking.scores.index[place] for place in (0, 10, 19, 29)]
    assert list(along) == ["#1", "#11", "#20", "#30"] and list(along.values()) == ends
    assert list(ranking.among(ends[1:3]).along(9).values()) == ends[1:3], "no LoRA twice"


def test_measured_values_stand_beside_the_scores_of_the_same_loras() -> None:
    ranking = Ranking("size", pd.Series({"b": 2.0, "a": 1.0}), pd.Series({"a": 5.0, "b": 6.0}), predicted=True)
    assert ranking.table["measured"].to_dict() == {"b": 6.0, "a": 5.0}
    assert ranking.lines("b") == ["predicted 2", "measured 6"]
    assert ranking.lines(None) == [
        "not predicted",
        "not measured",
    ]
