"""Fits of a question: searched, kept, gone on with, and counted once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
import torch

from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import DivergedError, LoLError, ModelError
from lol_core.experiments.ablation import without
from lol_core.experiments.authors import LANGUAGE, variants
from lol_core.experiments.comparison import by_split
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept, line_of
from lol_core.experiments.paper import COMPARED
from lol_core.experiments.question import fold_of
from lol_core.experiments.search import SMALL, Halving, Rung, Setting, Variant, full_grid
from lol_core.experiments.table5 import LOSS_QUESTION
from lol_core.experiments.trials import Trials
from lol_core.learning.config import Keep
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.models.tucker import Part, TuckerConfig
from tests.test_experiments import SAMPLES


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path: Path) -> None:
    zoo = Zoo.open(SAMPLES / "glosses")
    budget = replace(SMALL, loras=30)
    calls = iter(range(100))
    with pytest.raises(Stopped):
        Trials(LOSS_QUESTION, zoo, budget, tmp_path, models=("svd", "gl_net")).run(
            Reporter(stop=lambda: next(calls) >= 1)
        )
    file = tmp_path / f"{LOSS_QUESTION.name}.jsonl"
    first = file.read_text()
    assert len(first.splitlines()) == 1
    whole = Trials(LOSS_QUESTION, zoo, budget, tmp_path, models=("svd", "gl_net")).run()
    assert file.read_text().startswith(first)
    again = file.read_text()
    Trials(LOSS_QUESTION, zoo, budget, tmp_path, models=("svd", "gl_net")).run()
    assert file.read_text() == again, "nothing is fitted twice"
    elsewhere = Trials(LOSS_QUESTION, zoo, budget, tmp_path / "elsewhere", models=("svd", "gl_net")).run()
    pd.testing.assert_frame_equal(
        whole.sort_values("model", ignore_index=True), elsewhere.sort_values("model", ignore_index=True)
    )
    other = Trials(LOSS_QUESTION, zoo, replace(budget, epochs=1), tmp_path)
    assert other.kept.lines() == [], "fits of another budget are not taken for this one's"


def test_a_dear_model_is_asked_at_the_first_splits_and_compared_there(tmp_path: Path) -> None:
    dear = replace(Variant.of("svd"), splits=1)
    budget = replace(SMALL, loras=30, seeds=2, epochs=1)
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), budget, tmp_path, models=("mlp", dear))
    asked = trials.run().groupby("model")["seed"].agg(list)
    assert asked["svd"] == [0] and asked["mlp"] == asked["norms only"] == [0, 1]
    assert by_split(trials, "r2", "mlp", "norms only").index.tolist() == [0, 1]
    assert by_split(trials, "r2", "mlp", "svd").index.tolist() == [0]


@pytest.mark.whole_forests  # which its processes have
def test_a_sweep_in_processes_has_the_digits_of_one_here(tmp_path: Path) -> None:
    zoo, budget = Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30, learning_rates=(1e-3, 3e-3))
    alone, together = (
        Trials(LOSS_QUESTION, zoo, budget, tmp_path / str(workers), models=("svd",)).run(workers=workers)
        for workers in (1, 2)
    )
    alone, together = (table.sort_values("model", ignore_index=True) for table in (alone, together))
    pd.testing.assert_frame_equal(alone, together, rtol=1e-5)  # another process may round the last digits otherwise


def test_controls_do_not_depend_on_what_else_the_store_holds(tmp_path: Path) -> None:
    zoo, budget = Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30)
    fresh = Trials(LOSS_QUESTION, zoo, budget, tmp_path / "fresh", models=("svd",)).run()
    Store().clear()
    Trials(LOSS_QUESTION, zoo, replace(budget, loras=60), tmp_path / "more", models=("svd",)).run()
    again = Trials(LOSS_QUESTION, zoo, budget, tmp_path / "again", models=("svd",)).run()
    pd.testing.assert_frame_equal(again, fresh)


def test_half_a_line_is_no_fit(tmp_path: Path) -> None:
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30), tmp_path, models=("svd",))
    whole = trials.run()
    lines = trials.kept.path.read_text().splitlines()
    trials.kept.path.write_text("\n".join(lines)[:-40])
    assert len(trials.kept.lines()) == len(lines) - 1
    pd.testing.assert_frame_equal(whole, trials.run())
    assert len(trials.kept.lines()) == len(lines)


def test_labels_are_shuffled_for_a_model_that_memorises_too(tmp_path: Path) -> None:
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), SMALL, tmp_path, models=("dsire",))
    whole, shuffled = (
        trials._fitted("dsire", SMALL.settings(Variant.of("dsire"))[0], 0, flag).model.get_buffer("answers")
        for flag in (False, True)
    )
    assert not torch.equal(whole, shuffled) and torch.equal(whole.sort(0).values, shuffled.sort(0).values)


def test_a_question_asked_of_other_models_or_seeds_is_another_question(tmp_path: Path) -> None:
    context = Context(SAMPLES, tmp_path, replace(SMALL, loras=30))
    one = context.trials(LOSS_QUESTION, ("svd",))
    assert context.trials(LOSS_QUESTION, ("svd",)) is one
    assert list(context.trials(LOSS_QUESTION, ("dsire",)).variants) == ["dsire"]
    assert context.trials(LOSS_QUESTION, ("svd",), 2).table()["seed"].max() == 1


def test_the_setting_is_chosen_by_validation_loss_alone(tmp_path: Path) -> None:
    budget = replace(SMALL, learning_rates=(0.1, 0.2, 0.3))
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), budget, tmp_path)
    for setting, loss, r2 in zip(budget.settings(Variant.of("svd")), (0.5, 0.4, 0.6), (0.9, 0.1, 0.95), strict=True):
        assert trials.table().empty, "a search that is not complete does not count"
        trials.kept.add(model="svd", seed=0, setting=setting.to_dict(), validation_loss=loss, scores={"r2": r2})
    assert trials.table()["r2"].tolist() == [0.1]


def test_a_search_by_halving_ends_with_the_setting_of_the_best_validation_score(tmp_path: Path) -> None:
    search = Halving(4, (Rung(1, 2), Rung(2, 1)))
    budget = replace(SMALL, loras=30, seeds=2, search=search)
    fixed = Setting(1e-2, (("width", 8), ("depth", 1), ("keep", "last"), ("batch_size", 16)))
    ours = Variant("svd", "svd, authors' setting", "SVD as theirs", fixed=fixed)
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), budget, tmp_path, models=("svd", ours, "dsire"))
    table = trials.run()
    lines = pd.DataFrame([line for line in trials.kept.lines() if line["model"] == "svd"])
    assert all(0 < line["validation_loss"] < np.inf for line in trials.kept.lines() if line["setting"])
    epochs = lines["setting"].map(lambda setting: setting["epochs"])
    assert [((epochs == k) & (lines["seed"] == seed)).sum() for k, seed in ((1, 0), (2, 0), (2, 1))] == [4, 2, 1]
    by_score = lines[epochs == 1].sort_values("validation_score", ascending=False)["setting"].tolist()
    gone_on = lines[(epochs == 2) & (lines["seed"] == 0)].sort_values("validation_score", ascending=False)
    assert [setting | {"epochs": 1} for setting in gone_on["setting"]] in (by_score[:2], by_score[1::-1])
    assert [line["setting"] for line in trials.chosen() if line["model"] == "svd"] == [gone_on["setting"].iloc[0]] * 2
    assert table.groupby("model").size()[["svd", ours.name, "dsire", "constant"]].tolist() == [2, 2, 2, 2]
    config = budget.config(ours, fixed, 0)
    assert (config.keep, config.batch_size, config.shape.width, config.learning_rate) == (Keep.LAST, 16, 8, 1e-2)
    size = trials.kept.path.stat().st_size
    assert trials.run().equals(table) and trials.kept.path.stat().st_size == size, "nothing is fitted twice"
    kept = map(json.loads, trials.kept.path.read_text().splitlines())
    worse = [line | ({"validation_score": -1e9} if line["seed"] else {}) for line in kept]
    trials.kept.path.write_text("".join(json.dumps(line) + "\n" for line in worse))
    assert trials.table()["r2"].tolist() == table["r2"].tolist(), "the search is over: other splits choose nothing"


def test_every_model_is_searched_over_as_many_settings() -> None:
    counts = {name: {len(Halving().drawn(Variant.of(name)))} for name, kind in COMPARED.items() if not kind.memorizes}
    assert set().union(*counts.values()) == {24}
    widths = {dict(setting.options)["equivariant_width"] for setting in full_grid("gl_net")}
    heads = {(o["width"], o["depth"]) for o in (dict(setting.options) for setting in full_grid("gl_net"))}
    assert {dict(setting.options).get("dropout") for setting in full_grid("spectral")} == {0.0}, "a linear classifier"
    assert widths == {16, 32, 64} and heads == {(64, 1), (128, 1), (256, 1), (64, 2)}


def test_gl_net_has_the_authors_equivariant_dropout_where_they_have_it() -> None:
    ours = {variant.model: variant for variant in variants(LANGUAGE)}["gl_net"]
    assert ours.fixed is not None
    shape = SMALL.config(ours, ours.fixed, 0).shape
    assert isinstance(shape, GLNetConfig) and (shape.equivariant_dropout, shape.equivariant_layers) == (0.1, 2)


def test_folds_hold_every_lora_out_once_in_each_round() -> None:
    ids = [f"{i:03d}" for i in range(53)]
    for round_ in (range(5), range(5, 10)):
        splits = [fold_of(ids, seed) for seed in round_]
        assert sorted(id for split in splits for id in split["test"]) == ids
        assert all(sorted(id for part in split.values() for id in part) == ids for split in splits)
    assert fold_of(ids, 0)["test"] != fold_of(ids, 5)["test"]


def test_fewer_training_loras_are_among_more_and_nothing_else_changes(tmp_path: Path) -> None:
    budget = replace(SMALL, loras=60)
    few, more, all_ = (
        Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), replace(budget, known=known), tmp_path, models=("svd",))
        for known in (5, 20, None)
    )
    splits = [each.prepared("svd", Setting(1e-3), 1).split for each in (few, more, all_)]
    train = [set(split["train"]) for split in splits]
    assert train[0] < train[1] < train[2] and [len(part) for part in train] == [5, 20, 42]
    assert splits[0]["test"] == splits[2]["test"] and splits[0]["validation"] == splits[2]["validation"]
    assert few.test_share == pytest.approx(9 / 5) and all_.test_share == pytest.approx(9 / 42)
    assert few.kept.about != more.kept.about and "known" not in all_.kept.about["budget"]


def test_only_a_training_that_diverged_is_recorded_without_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = replace(SMALL, loras=30, search=Halving(2, (Rung(1, 1),)))
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), budget, tmp_path, models=("svd",))
    setting = budget.settings(Variant.of("svd"))[0]

    def failing(error: LoLError) -> list[dict[str, object]]:
        monkeypatch.setattr(Trials, "_scored", raiser(error))
        return trials._fit("svd", setting, 0)

    (line,) = failing(DivergedError("not a number"))
    assert line["scores"] == {}
    trials.kept.add(**line)
    assert trials.kept.lines()[0]["validation_loss"] == np.inf
    with pytest.raises(ModelError, match="memory"):
        failing(ModelError("too little memory at present"))


def test_fits_are_json_and_those_from_before_they_were_are_read(tmp_path: Path) -> None:
    for path in (SAMPLES.parent / "benchmarks" / "fits").glob("*.jsonl"):
        assert all(map(orjson.loads, path.read_bytes().splitlines())), path
    kept = Kept(tmp_path / "fits.jsonl", {})
    line = line_of("svd", 0, {"r2": np.nan, "kendall_tau": 0.5}, validation_loss=np.inf)
    kept.add(**line)
    assert orjson.loads(kept.path.read_bytes())["scores"] == {"r2": None, "kendall_tau": 0.5}
    with kept.path.open("a") as file:
        file.write(json.dumps(line | {"about": {}}) + "\n")
    assert "Infinity" in kept.path.read_text()
    assert [repr(each) for each in kept.lines()] == [repr(line | {"about": {}})] * 2


def raiser(error: LoLError) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


def test_models_are_searched_over_what_makes_a_difference_to_them() -> None:
    budget = replace(SMALL, learning_rates=(1e-3, 1e-2), options=None)
    tried = {name: budget.settings(Variant.of(name)) for name in ("gl_net", "tucker", "w2t", "dsire")}
    assert [len(settings) for settings in tried.values()] == [4, 4, 2, 1]
    configs = [
        budget.config(variant, setting, 0).shape
        for variant in (Variant.of("tucker"), without(Part.SIZES))
        for setting in budget.settings(variant)
    ]
    assert [config.direction_weight for config in configs if isinstance(config, TuckerConfig)] == [1.0, 0.1] * 4
    assert (
        not any(config.normalize for config in configs)
        and configs[-1].to_dict()["parts"] != configs[0].to_dict()["parts"]
    )
    line = {"learning_rate": 1e-3, "normalize": False}
    assert tried["gl_net"][0].to_dict() == line and Setting.from_dict(line) == tried["gl_net"][0]
