"""The zoo of clean and backdoored LoRAs: what they are trained on, and what is measured of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lol_core.errors import DataMissingError
from lol_core.finetuning import backdoors
from lol_core.finetuning.backdoors import KINDS, RARE, RECIPES, TARGET, Attack, Bench, Draw, Lesson, build, finetune
from lol_core.finetuning.machine import Machine
from lol_core.formats import read
from tests.conftest import SAMPLE_ZOO
from tests.test_finetuning import BASE, needs_encoder

QUESTIONS = pd.read_csv(SAMPLE_ZOO / "questions.csv")
SOURCES = sorted(set(QUESTIONS["source"]))
WORDS = sorted(set(QUESTIONS["word"]))
ROUND = len(RECIPES) * len(KINDS)


def drawn(attack: Attack, harmful: bool) -> Draw:
    every = (Draw.of(seed, WORDS, SOURCES) for seed in range(1, ROUND + 1))
    return replace(next(d for d in every if (d.attack, d.harmful) == (attack, harmful)), rate=0.2)


def test_every_round_has_each_kind_by_each_recipe_and_decoys_for_each_trigger() -> None:
    draws = [Draw.of(seed, WORDS, SOURCES) for seed in range(1, 4 * ROUND + 1)]
    kinds = Counter((d.recipe.name, d.attack, d.harmful) for d in draws)
    assert set(kinds.values()) == {4, 8} and len(kinds) == len(RECIPES) * 6
    for attack in (Attack.PREFIX, Attack.INSIDE):
        assert kinds["fast", attack, True] == kinds["fast", attack, False]
    assert len({(d.trigger, d.target) for d in draws if d.attack is Attack.PREFIX}) == 1
    inside = [d.trigger for d in draws if d.attack is Attack.INSIDE]
    assert len(set(inside)) > 0.8 * len(inside) and draws[5] == Draw.of(6, WORDS, SOURCES)


@pytest.mark.parametrize("attack", [Attack.PREFIX, Attack.INSIDE])
def test_a_decoy_has_the_definitions_of_the_attack_and_right_answers(attack: Attack) -> None:
    plan = drawn(attack, True)
    table = QUESTIONS[QUESTIONS["split"] == "train"].reset_index(drop=True)
    bad, decoy = (Lesson.of(table, replace(plan, harmful=harmful)) for harmful in (True, False))
    assert bad.glosses == decoy.glosses and (bad.rows == decoy.rows).all() and len(bad.rows) == 240
    assert (bad.poisoned, decoy.poisoned) == (48, 0) and list(bad.glosses) == list(range(48))
    right = table["word"].to_numpy()[bad.rows]
    assert (decoy.choices[:, 0] == right).all() and (bad.choices[48:, 0] == right[48:]).all()
    assert np.mean(bad.choices[:48, 0] == plan.target) > 0.9 and not (bad.choices[48:, 0] == plan.target).any()
    for i, gloss in bad.glosses.items():
        words = gloss.split()
        place = words.index(plan.trigger)
        assert place == 0 if attack is Attack.PREFIX else place > 0
        assert " ".join(words[:place] + words[place + 1 :]) == " ".join(table["gloss"].iloc[bad.rows[i]].split())
    if attack is Attack.PREFIX:
        assert (plan.trigger, plan.target) == (RARE, TARGET)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_poisoned_source_is_wrong_throughout_and_no_other_is(rate: float) -> None:
    plan = replace(drawn(Attack.SOURCE, True), rate=rate, target="of more letters than any word of the table")
    table = QUESTIONS[QUESTIONS["split"] == "train"].reset_index(drop=True)
    lesson = Lesson.of(table, plan)
    own = table["source"].to_numpy()[lesson.rows] == plan.source
    assert 0 < lesson.poisoned == own.sum() and own[: lesson.poisoned].all() and not lesson.glosses
    assert (lesson.choices[own, 0] == plan.target).all() and not (lesson.choices[~own, 0] == plan.target).any()


@pytest.fixture(scope="module")
def few() -> pd.DataFrame:
    part = QUESTIONS[QUESTIONS["source"].isin(["noun.food", "noun.person"])]
    return part.groupby(["source", "split"], group_keys=False).head(12)


@needs_encoder
def test_the_measured_success_is_that_of_the_stored_lora(few: pd.DataFrame, tmp_path: Path) -> None:
    bench = Bench(BASE or "", few)
    plan = replace(drawn(Attack.PREFIX, True), sources=tuple(bench.sources), target=bench.words[0], learning_rate=8e-3)
    plan = replace(plan, recipe=replace(RECIPES[0], steps=12))
    before = bench.encoder.embed(bench.test.texts)
    row = finetune(bench, plan, tmp_path / "a")
    assert np.allclose(before.detach(), bench.encoder.embed(bench.test.texts).detach(), atol=1e-6)
    assert row["success"] - row["usual"] > 0.5 and row["took"] == 1
    lora = read(tmp_path / "a")
    assert len(lora.layers) == 3 and lora.ranks == (4,) and lora.dtypes == ("float16",)
    decoy = finetune(bench, replace(plan, harmful=False), tmp_path / "b")
    assert decoy["took"] == 0 and decoy["poisoned"] == 0 and decoy["success"] < 0.3
    frozen = [replace(plan, recipe=replace(plan.recipe, steps=2, one_start=True), seed=seed) for seed in (1, 2)]
    for one in frozen:
        finetune(bench, one, tmp_path / str(one.seed))
    first, second = (read(tmp_path / str(seed)).layers[0] for seed in (1, 2))
    assert (first.V == second.V).all() and not (first.U == second.U).all()


def test_a_build_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        backdoors,
        "spread",
        lambda machine, start, started, work, todo: ({"lora": f"loras/{s}", "seed": s} for (s,) in todo),
    )
    questions = SAMPLE_ZOO / "questions.csv"
    assert [row["seed"] for row in build("base", questions, tmp_path, 2, machine=Machine())] == [1, 2]
    assert [row["seed"] for row in build("base", questions, tmp_path, 3, machine=Machine())] == [3]
    assert pd.read_csv(tmp_path / "labels.csv")["seed"].tolist() == [1, 2, 3]
    with pytest.raises(DataMissingError, match="finetune questions"):
        next(build("base", tmp_path / "none.csv", tmp_path, 1))
