"""What learns from a collection or looks at it runs on LoRAs made in Python as it does on a folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lol_core.collections.memory import MemorySource
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, ZooError
from lol_core.insight.embedding import space_of
from lol_core.insight.surveys import Surveys
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_zoo


def test_a_model_is_trained_on_loras_made_in_python(tmp_path: Path) -> None:
    loras = {f"lora{i}": random_lora(MODULES, i) for i in range(40)}
    size = [float(lora.layers[0].delta().norm()) for lora in loras.values()]
    source = MemorySource(loras, pd.DataFrame({"size": size}, index=list(loras)))
    config = TrainingConfig("dense", epochs=2)
    train(source, plan(source, ["size"], config), config, tmp_path / "model")
    answers = Answers.of(Checkpoint.load(tmp_path / "model"), source)
    assert list(answers.values.index) == list(answers.marks.index) == source.ids and not answers.refused


def in_memory(zoo: Zoo) -> MemorySource:
    return MemorySource({id: zoo.load(id) for id in zoo.ids}, zoo.labels, zoo.name)


class FirstHalf(Source):
    """A source outside the package: the first half of another one."""

    name = "half"

    def __init__(self, whole: Source):
        self.whole = whole
        self.entries = whole.entries[: len(whole) // 2]
        self.labels = whole.labels.iloc[: len(self.entries)]

    def load(self, id: str) -> LoRA:
        return self.whole.load(id)


def test_a_source_of_ones_own_is_four_members(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    half = FirstHalf(synthetic_zoo)
    assert len(half) == 30 and half.ids == synthetic_zoo.ids[:30] and half.fingerprint != synthetic_zoo.fingerprint
    config = TrainingConfig("dense", epochs=1)
    model = train(half, plan(half, ["size"], config), config, tmp_path / "model")
    assert model.compare(half) == [] and len(Answers.of(model, half).values) == 30
    assert len(Surveys(half).complete()) == len(half.table()) == 30


def test_memory_and_folder_give_the_same_model_and_the_same_views(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 40)
    zoo = Zoo.open(tmp_path / "zoo")
    memory = in_memory(zoo)
    config = TrainingConfig("dense", epochs=2)
    models = [train(s, plan(s, ["size"], config), config, tmp_path / type(s).__name__) for s in (zoo, memory)]
    answers = [Answers.of(model, source) for model, source in zip(models, (zoo, memory), strict=True)]
    pd.testing.assert_frame_equal(answers[0].values, answers[1].values)
    pd.testing.assert_frame_equal(answers[0].marks, answers[1].marks)
    assert models[1].compare(memory) == [] and models[0].split == models[1].split
    spaces = [space_of(source, source.ids, "updates") for source in (zoo, memory)]
    assert spaces[0] is not None and spaces[1] is not None
    np.testing.assert_allclose(spaces[0].vectors, spaces[1].vectors)
    surveys = [Surveys(source).complete() for source in (zoo, memory)]
    np.testing.assert_allclose(surveys[0][zoo.ids[0]].norms, surveys[1][zoo.ids[0]].norms)
    assert Surveys(memory).known().keys() == set(memory.ids)
    assert memory.table()["name"].tolist() == zoo.table()["name"].tolist()


def test_the_fingerprint_of_a_memory_source_is_of_its_numbers() -> None:
    first, again = ({"a": random_lora(MODULES, 1), "b": random_lora(MODULES, 2)} for _ in range(2))
    assert MemorySource(first).fingerprint == MemorySource(again).fingerprint
    assert MemorySource(first | {"b": random_lora(MODULES, 3)}).fingerprint != MemorySource(first).fingerprint
    assert MemorySource(first | {"b": random_lora(MODULES, 2, scale=2)}).fingerprint != MemorySource(first).fingerprint


def test_labels_of_a_memory_source_may_be_called_by_numbers(tmp_path: Path) -> None:
    loras = {f"lora{i}": random_lora(MODULES, i) for i in range(20)}
    source = MemorySource(loras, pd.DataFrame(np.arange(20.0), index=list(loras)))
    assert plan(source, ["0"], TrainingConfig("mlp")).task.targets == ("0",)


def test_labels_of_a_memory_source_belong_to_its_loras() -> None:
    loras = {id: random_lora(MODULES, seed) for seed, id in enumerate("abc")}
    source = MemorySource(loras, pd.DataFrame({"x": [1.0, 2.0]}, index=["c", "a"]))
    assert source.labels.index.tolist() == ["a", "b", "c"]
    assert source.labels["x"].isna().tolist() == [
        False,
        True,
        False,
    ]
    with pytest.raises(ZooError, match="1 rows of the labels belong to no LoRA, first 'd'"):
        MemorySource(loras, pd.DataFrame({"x": [1.0]}, index=["d"]))
    with pytest.raises(ZooError, match="more than one row of 'a'"):
        MemorySource(loras, pd.DataFrame({"x": [1.0, 2.0]}, index=["a", "a"]))


def test_a_lora_that_is_not_finite_is_named() -> None:
    lora = random_lora(MODULES)
    lora.layers[0].U[0, 0] = float("nan")
    with pytest.raises(LoRAFormatError, match=r"^diverged: 1 of 3 modules"):
        MemorySource({"diverged": LoRA(lora.layers)}).load("diverged")
