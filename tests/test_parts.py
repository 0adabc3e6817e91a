"""Which LoRAs take part in a training, and in which of its parts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lol_core.collections.memory import MemorySource
from lol_core.collections.publishing import publish
from lol_core.collections.splits import groups_of
from lol_core.collections.zoo import Zoo
from lol_core.errors import ModelError, TaskError
from lol_core.insight.scores import describe
from lol_core.learning.card import command, model_card, runs_told
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.crossvalidation import crossvalidate
from lol_core.learning.only import chosen, conditions
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_zoo
from tests.test_training import QUICK, fit


def test_groups_stay_on_one_side(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    split = plan(synthetic_zoo, ["size"], replace(QUICK, group_column="author")).split
    sides = [set(synthetic_zoo.labels.loc[ids, "author"]) for ids in split.values()]
    assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
    with pytest.raises(TaskError, match="No label column 'nobody' to group by"):
        plan(synthetic_zoo, ["size"], replace(QUICK, group_column="nobody"))


def test_copies_of_one_file_are_in_one_part_and_in_one_fold(tmp_path: Path) -> None:
    """A model that has seen a LoRA of its test part is judged by its memory."""
    labels = write_zoo(tmp_path / "zoo", 20)
    for name in labels["name"]:
        shutil.copytree(tmp_path / "zoo" / name, tmp_path / "zoo" / f"copy of {name}")
    copies = labels.assign(name="copy of " + labels["name"])
    pd.concat([labels, copies]).to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    zoo = Zoo.open(tmp_path / "zoo")
    checkpoint = fit(zoo, tmp_path / "run", replace(QUICK, epochs=1))
    parts = {id.split("/")[0]: part for part, ids in checkpoint.split.items() for id in ids}
    assert all(parts[name] == parts[f"copy of {name}"] for name in labels["name"])
    assert checkpoint.copies == 20 and "among these: 20 LoRAs" in (tmp_path / "run" / "README.md").read_text()
    assert checkpoint.recalled == 0
    found = crossvalidate(zoo, ["size"], replace(QUICK, epochs=1), 3)
    folds = {id.split("/")[0]: fold for id, fold in zip(found.truth.index, found.fold, strict=True)}
    assert all(folds[name] == folds[f"copy of {name}"] for name in labels["name"])
    publish(zoo, tmp_path / "published", licence="mit")
    splits = pd.read_csv(tmp_path / "published" / "splits.csv")
    sides = dict(zip(splits["path"].str.split("/").str[0], splits["split"], strict=True))
    assert all(sides[name] == sides[f"copy of {name}"] for name in labels["name"])


def test_checkpoints_of_one_run_in_several_parts_are_told(tmp_path: Path) -> None:
    names = [f"run{i}/checkpoint-{step}" for i in range(6) for step in (10, 20, 30, 40)]
    labels = pd.DataFrame({"size": np.arange(24.0), "run": [name.split("/")[0] for name in names]}, index=names)
    source = MemorySource({name: random_lora(MODULES, i) for i, name in enumerate(names)}, labels)
    config = replace(QUICK, epochs=1)
    drawn = train(source, plan(source, ["size"], config), config, tmp_path / "drawn")
    (told,) = runs_told(drawn)
    assert "training runs" in told and "such as run" in told and told in (tmp_path / "drawn" / "README.md").read_text()
    config = replace(config, group_column="run")
    assert not runs_told(train(source, plan(source, ["size"], config), config, tmp_path / "kept"))


def test_of_a_mixed_collection_those_are_taken_that_meet_conditions(tmp_path: Path) -> None:
    loras = {
        f"r{rank}/{i:02d}": random_lora([(*module[:3], rank) for module in MODULES], 100 * rank + i)
        for rank in (4, 8)
        for i in range(20)
    }
    labels = pd.DataFrame({"size": np.arange(40.0), "style": ["a", "b"] * 20, "seed": [1.0, 2.0] * 20}, index=[*loras])
    zoo, config = MemorySource(loras, labels), replace(QUICK, model="mlp", model_config=None, epochs=1)
    with pytest.raises(ModelError, match="--only rank=4"):
        plan(zoo, ["size"], config)
    only = replace(config, only=("rank=4",))
    checkpoint = train(zoo, plan(zoo, ["size"], only), only, tmp_path / "some")
    assert {id for ids in checkpoint.split.values() for id in ids} == {id for id in loras if id.startswith("r4")}
    assert "--only rank=4" in str(command(checkpoint)) and "with rank=4" in model_card(checkpoint)
    assert Checkpoint.load(tmp_path / "some").config.only == ("rank=4",) and "only" not in config.to_dict()
    assert conditions(zoo) == {"rank=4": 20, "rank=8": 20}
    assert chosen(zoo, ()) == chosen(zoo, ("rank=8", "rank=4")) == zoo.ids
    even = [f"r8/{i:02d}" for i in range(0, 20, 2)]
    assert chosen(zoo, ("style=a", "rank=8")) == chosen(zoo, ("seed=1", "rank=8")) == even
    for wrong, reason in (
        (["rank"], "is no condition"),
        (["colour=red"], "by base, rank, kind, size, style, seed they can"),
        (["rank=16"], r"There are 4 \(20\), 8 \(20\)"),
        (["style=a", "seed=2"], "meets all of style=a, seed=2"),
    ):
        with pytest.raises(TaskError, match=reason):
            chosen(zoo, wrong)


def test_parts_come_from_a_column(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path / "zoo", 24)
    shutil.rmtree(tmp_path / "zoo" / "lora020")  # now a copy of one that is learnt from
    shutil.copytree(tmp_path / "zoo" / "lora000", tmp_path / "zoo" / "lora020")
    labels["part"] = [*["train"] * 14, *["Val"] * 4, *["test "] * 4, None, None]
    labels["odd"] = [*["train"] * 20, *["held out"] * 4]
    labels["two"] = [*["train"] * 20, *["test"] * 4]
    labels.to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    zoo, config = Zoo.open(tmp_path / "zoo"), replace(QUICK, split_column="part", epochs=1)
    planned = plan(zoo, ["size"], config)
    assert list(planned.split.values()) == [zoo.ids[:14], zoo.ids[14:18], zoo.ids[18:22]]
    assert list(planned.left_out) == zoo.ids[22:] and "'part' names no part" in planned.left_out[zoo.ids[22]]
    assert "2 LoRAs left out, such as lora022/adapter_model.safetensors: 'part' names no part" in describe(planned)[-1]
    fit(zoo, tmp_path / "run", config)
    again = Checkpoint.load(tmp_path / "run")
    assert again.config.split_column == "part" and again.split == planned.split and again.recalled == 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert "in the parts of part" in card and "--split part" in card and "Of the test part 1 LoRA the" in card
    assert len(crossvalidate(zoo, ["size"], config, 3).truth) == 24, "folds are drawn"
    for column, reason in (
        ("none", "No label column 'none' to take the parts from"),
        ("odd", "'odd' is 'held out' for lora020"),
        ("two", "'two' puts none of the 24 labelled LoRAs into validation"),
    ):
        with pytest.raises(TaskError, match=reason):
            plan(zoo, ["size"], replace(config, split_column=column))
    with pytest.raises(TaskError, match="name one of the two"):
        plan(zoo, ["size"], replace(config, group_column="author"))
    assert "split_column" not in QUICK.to_dict(), "so that earlier descriptions are those of today"


@pytest.mark.parametrize("dtype", ["float64", "Int64", "category", "object"])
def test_loras_without_a_group_are_one(dtype: str) -> None:
    column = pd.Series([1, None, 2, None, 1], dtype=dtype)
    first, none, second, again, last = groups_of(column)
    assert none == again == "(none)" and first == last != second and "(none)" not in (first, second)
