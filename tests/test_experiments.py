"""The experiments' plumbing, run small, and the mathematics in them. Scores of small runs mean nothing and are not
looked at.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.groups import GL
from lol_core.core.progress import Reporter, Stopped
from lol_core.core.symmetry import act, sample_for
from lol_core.errors import DivergedError, LoLError, ModelError, ZooError
from lol_core.experiments import NAMES, OF_PAPER, run
from lol_core.experiments.ablation import without
from lol_core.experiments.authors import LANGUAGE, variants
from lol_core.experiments.comparison import differences
from lol_core.experiments.context import Context
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.experiments.models import beats, unseen
from lol_core.experiments.paired import paired
from lol_core.experiments.paper import COMPARED, FIVE
from lol_core.experiments.question import fold_of
from lol_core.experiments.result import (
    Finding,
    Holds,
    Result,
    alike,
    blocks,
    verdict,
    weakest,
    wide,
    with_interval,
    with_spread,
    write_report,
)
from lol_core.experiments.search import SMALL, Halving, Rung, Setting, Variant, full_grid
from lol_core.experiments.table4 import size_accuracy
from lol_core.experiments.table5 import LOSS_QUESTION
from lol_core.experiments.timing import Shape, needs
from lol_core.experiments.trials import Trials
from lol_core.learning.checkpoint import Keep
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.models.tucker import Part, TuckerConfig
from lol_core.learning.tasks import Multiclass, classes, regression
from lol_core.learning.verdict import Difference, over_seeds
from tests.builders import random_batch, random_lora, write_peft
from tests.conftest import ROOT

SAMPLES = ROOT / "sample_loras"
pytestmark = pytest.mark.xdist_group("experiments")  # they share their fits
CELLS = ["row", "column", "mean", "std", "paper", "paper_std"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fits are shared by the experiments that ask the same question, as in a full run."""
    return tmp_path_factory.mktemp("experiments")


@cache
def glosses() -> Zoo:
    return Zoo.open(SAMPLES / "glosses")


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forests of the controls that take no time: half of what a small experiment computes is theirs."""
    for module in (classes, regression):
        monkeypatch.setattr(module, "TREES", 3)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_small_and_comes_back_whole(
    name: str, kept: Path, in_threads: None, few_trees: None
) -> None:
    result = run(name, Context(SAMPLES, kept / "fits", SMALL, work=kept / "work"))
    assert "the scores mean nothing" in result.title and result.findings and result.notes
    assert list(result.cells.columns) == CELLS and result.cells["mean"].notna().any()
    assert all(isinstance(finding.holds, Holds) for finding in result.findings)
    back = Result.read(result.write(kept / "results"))
    assert (back.title, back.findings, back.notes) == (result.title, result.findings, result.notes)
    pd.testing.assert_frame_equal(back.cells, result.cells, check_dtype=False, rtol=1e-4)
    assert json.loads(json.dumps(back.settings)) == back.settings and len(back.figure.data) == len(result.figure.data)
    assert f"## {result.title}" in write_report(kept).read_text()


def test_a_stopped_experiment_goes_on_where_it_was(tmp_path: Path) -> None:
    zoo = Zoo.open(SAMPLES / "glosses")
    budget = replace(SMALL, loras=30)
    calls = iter(range(100))
    with pytest.raises(Stopped):
        Trials(LOSS_QUESTION, zoo, budget, tmp_path, ("svd", "gl_net")).run(Reporter(stop=lambda: next(calls) >= 1))
    file = tmp_path / f"{LOSS_QUESTION.name}.jsonl"
    first = file.read_text()
    assert len(first.splitlines()) == 1
    whole = Trials(LOSS_QUESTION, zoo, budget, tmp_path, ("svd", "gl_net")).run()
    assert file.read_text().startswith(first)
    again = file.read_text()
    Trials(LOSS_QUESTION, zoo, budget, tmp_path, ("svd", "gl_net")).run()
    assert file.read_text() == again, "nothing is fitted twice"
    elsewhere = Trials(LOSS_QUESTION, zoo, budget, tmp_path / "elsewhere", ("svd", "gl_net")).run()
    pd.testing.assert_frame_equal(
        whole.sort_values("model", ignore_index=True), elsewhere.sort_values("model", ignore_index=True)
    )
    other = Trials(LOSS_QUESTION, zoo, replace(budget, epochs=1), tmp_path)
    assert other.kept.lines() == [], "fits of another budget are not taken for this one's"


def test_a_sweep_in_processes_has_the_digits_of_one_here(tmp_path: Path) -> None:
    zoo, budget = Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30, learning_rates=(1e-3, 3e-3))
    alone, together = (
        Trials(LOSS_QUESTION, zoo, budget, tmp_path / str(workers), ("svd",)).run(workers=workers) for workers in (1, 2)
    )
    alone, together = (table.sort_values("model", ignore_index=True) for table in (alone, together))
    pd.testing.assert_frame_equal(alone, together, rtol=1e-5)  # another process may round the last digits otherwise


def test_controls_do_not_depend_on_what_else_the_store_holds(tmp_path: Path) -> None:
    zoo, budget = Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30)
    fresh = Trials(LOSS_QUESTION, zoo, budget, tmp_path / "fresh", ("svd",)).run()
    Store().clear()
    Trials(LOSS_QUESTION, zoo, replace(budget, loras=60), tmp_path / "more", ("svd",)).run()
    again = Trials(LOSS_QUESTION, zoo, budget, tmp_path / "again", ("svd",)).run()
    pd.testing.assert_frame_equal(again, fresh)


def test_half_a_line_is_no_fit(tmp_path: Path) -> None:
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30), tmp_path, ("svd",))
    whole = trials.run()
    lines = trials.kept.path.read_text().splitlines()
    trials.kept.path.write_text("\n".join(lines)[:-40])
    assert len(trials.kept.lines()) == len(lines) - 1
    pd.testing.assert_frame_equal(whole, trials.run())
    assert len(trials.kept.lines()) == len(lines)


def test_labels_are_shuffled_for_a_model_that_memorises_too(tmp_path: Path) -> None:
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), SMALL, tmp_path, ("dsire",))
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
    trials = Trials(LOSS_QUESTION, Zoo.open(SAMPLES / "glosses"), budget, tmp_path, ("svd", ours, "dsire"))
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


def test_only_a_training_that_diverged_is_recorded_without_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = replace(SMALL, loras=30, search=Halving(2, (Rung(1, 1),)))
    trials = Trials(LOSS_QUESTION, glosses(), budget, tmp_path, ("svd",))
    setting = budget.settings(Variant.of("svd"))[0]

    def failing(error: LoLError) -> list[dict[str, object]]:
        monkeypatch.setattr(Trials, "_scored", raiser(error))
        return trials._fit("svd", setting, 0)

    assert failing(DivergedError("not a number"))[0]["scores"] == {}
    with pytest.raises(ModelError, match="memory"):
        failing(ModelError("too little memory at present"))


def raiser(error: LoLError) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


def with_scores(folder: Path, scores: Mapping[str, Sequence[float | None]], folded: bool = False) -> Trials:
    """Trials that found these R² at each seed; None where a model diverged."""
    question = replace(LOSS_QUESTION, folded=folded)
    budget = replace(SMALL, seeds=len(next(iter(scores.values()))))
    trials = Trials(question, glosses(), budget, folder, tuple(scores))
    for name, values in scores.items():
        for seed, value in enumerate(values):
            line = {"model": name, "seed": seed, "validation_loss": 0.0}
            found = {"scores": {}} if value is None else {"scores": {"r2": value}, "predicted": [value]}
            trials.kept.add(**line, setting=budget.settings(Variant.of(name))[0].to_dict(), **found)
    return trials


def test_a_split_at_which_a_model_diverged_leaves_its_differences_open(tmp_path: Path) -> None:
    trials = with_scores(tmp_path, {"svd": [0.9, 0.91, None], "mlp": [0.1, 0.12, 0.13], "dense": [None] * 3})
    assert verdict(differences(trials, "r2", "svd", "mlp")) == Holds.NOT_CLEAR
    assert verdict(differences(trials, "r2", "dense", "mlp")) == Holds.NOT_CLEAR
    assert "not defined" in with_interval(differences(trials, "r2", "svd", "mlp"))
    assert np.isnan(paired(with_scores(tmp_path / "folds", {"svd": [None], "mlp": [0.1]}, True), "svd", "mlp").value)


def test_tuckernet_is_judged_at_the_seeds_it_was_not_made_on_and_for_all_questions_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (
        [0.6, 0.9, 0.9, *[0.7] * 5],
        [0.5, 0.5, 0.5, *(0.7 - gap for gap in (0.01, 0.017, 0.012, 0.016, 0.03))],
    )
    trials = with_scores(tmp_path, {"tucker": ours, "gl_net": theirs})
    context = Context(SAMPLES, tmp_path, replace(trials.budget, loras=None, search=Halving()))
    monkeypatch.setattr(Context, "trials", lambda *_: trials)
    judged = unseen(context, LOSS_QUESTION, "r2")
    assert judged.index.tolist() == [3, 4, 5, 6, 7]
    assert len(unseen(context, replace(LOSS_QUESTION, folded=True), "r2")) == 8
    assert verdict(over_seeds((judged["tucker"] - judged["gl_net"]).tolist(), trials.test_share)) == Holds.YES
    assert beats(trials, judged, "validation loss, R²", "r2").holds == Holds.NOT_CLEAR


def test_a_paired_bootstrap_over_folds_tells_a_good_ranking_from_a_bad_one(tmp_path: Path) -> None:
    question = replace(LOSS_QUESTION, folded=True, score="kendall_tau")
    trials = Trials(question, Zoo.open(SAMPLES / "glosses"), replace(SMALL, seeds=5), tmp_path, ("svd",))
    rng = np.random.default_rng(0)
    for seed in range(5):
        truth = trials.zoo.labels.loc[fold_of(trials.labelled, seed)["test"], "validation_loss"].to_numpy()
        noise = rng.normal(size=len(truth)) * truth.std()
        for name, values in (("svd", truth + 0.1 * noise), ("constant", noise), ("norms only", truth + 0.1 * noise)):
            setting = trials.budget.settings(Variant.of("svd"))[0].to_dict() if name == "svd" else None
            line = {"model": name, "seed": seed, "setting": setting, "validation_loss": 0.0, "scores": {}}
            trials.kept.add(**line, predicted=values.tolist())
    assert paired(trials, "svd", "constant", draws=100).low > 0.3
    same = paired(trials, "svd", "norms only", draws=100)
    assert same.value == same.low == same.high == 0


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


@pytest.mark.parametrize("p", [0.5, 0.8, 0.95, 1.0])
def test_equation_38_is_how_often_the_sum_is_right(p: float) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.dirichlet(np.ones(6))
    size = rng.choice(6, 200_000, p=sizes)
    present = np.arange(5)[None] < size[:, None]
    right = rng.random(present.shape) < p
    summed = np.where(right, present, ~present).sum(1)
    assert size_accuracy(p, sizes) == pytest.approx((summed == size).mean(), abs=0.005)


def test_product_kernels_are_inner_products_of_updates_and_do_not_see_the_gauge() -> None:
    batch, others = random_batch(count=5), random_batch(count=3, seed=50)
    found = kernels(batch, others)
    products = torch.stack(
        [
            torch.cat([(U[i] @ V[i].mT).flatten() for U, V in zip(b.U, b.V, strict=True)])
            for b in (batch, others)
            for i in range(len(b))
        ]
    )
    gram = (products @ products[:5].T).numpy()
    np.testing.assert_allclose(found["updates"], gram / np.diag(gram[:5]).mean(), rtol=1e-9)
    for name, matrix in kernels(act(sample_for(batch, GL, condition=50.0), batch)).items():
        np.testing.assert_allclose(matrix, found[name][:5], rtol=1e-6, atol=1e-9)


def test_kernel_ridge_finds_a_linear_function_of_the_update() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 6))
    y = X @ rng.normal(size=(6, 2))
    known, validation, asked = np.split(np.arange(80), [50, 65])
    values, picked = kernel_ridge({"updates": X @ X.T, "nothing": np.eye(80)}, known, validation, asked, y)
    assert picked["kernel"] == "updates" and min(np.corrcoef(values[:, k], y[asked, k])[0, 1] for k in range(2)) > 0.99
    p = Multiclass(("style",), ("a", "b", "c")).from_numbers(np.array([[1.4, -0.2, 0.3]]))
    assert p.sum() == pytest.approx(1) and p.argmax() == 0 and (p > 0).all()


def test_verdicts_are_those_of_whole_intervals() -> None:
    above, across, below, alone = (Difference(*gap) for gap in ((2, 1, 3), (1, -1, 3), (-2, -3, -1), (1, nan, nan)))
    assert [*map(verdict, (above, across, below, alone))] == [Holds.YES, Holds.NOT_CLEAR, Holds.NO, Holds.NOT_CLEAR]
    assert [alike(gap, 1.5) for gap in (Difference(0, -1, 1), across, above, alone)] == [
        *(Holds.YES, Holds.NOT_CLEAR, Holds.NOT_CLEAR, Holds.NOT_CLEAR)
    ]
    assert alike(below, 0.5) == alike(above, 0.5) == Holds.NO
    assert weakest([Holds.YES, Holds.NOT_CLEAR]) == Holds.NOT_CLEAR and weakest([Holds.NO, Holds.YES]) == Holds.NO
    assert with_interval(across) == "+1.000 (-1.000 to +3.000)" and "no interval" in with_interval(alone)


def test_intervals_over_overlapping_splits_are_those_of_nadeau_and_bengio() -> None:
    values, share = [0.1, 0.2, 0.3, 0.4, 0.5], 15 / 70
    plain = t_interval(values)
    wide = over_seeds(values, share)
    assert (wide.high - wide.value) / plain == pytest.approx(np.sqrt(1 + 5 * share)) == pytest.approx(1.44, abs=0.01)
    five = over_seeds(values, 0.0, among=5)
    assert (five.high - five.value) / plain == pytest.approx(4.6041 / 2.7764, abs=1e-3)  # t of .995 and .975, df 4


def t_interval(values: list[float]) -> float:
    """Half the width of the plain 95 % interval of a mean."""
    return 2.776445 * float(np.std(values, ddof=1)) / len(values) ** 0.5


def test_numbers_are_said_plainly() -> None:
    assert (
        with_spread(0.1234, 0.004) == "0.123 ± 0.004"
        and with_spread(2e-7, float("nan")) == "2e-07"
        and with_spread(float("nan"), 0.1) == "–"
    )
    cells = pd.DataFrame(
        [
            ("a", "x: one", 0.5, 0.1, 0.4, 0.1),
            ("b", "x: one", 0.6, 0.1, np.nan, np.nan),
            ("a", "y: one", 1.0, np.nan, np.nan, np.nan),
        ],
        columns=CELLS,
    )
    heads = blocks(cells)
    assert [head for head, _ in heads] == ["x", "y"] and heads[0][1].loc["b", "one (paper)"] == "–"
    assert wide(cells).loc["b", "y: one"] == ""


def test_memory_is_known_before_anything_is_allocated() -> None:
    shape = Shape(2, 64, 32, 4)
    for name in FIVE:
        assert needs(name, shape).weights == 4 * make_model(name, shape.spec, 1).n_parameters
    huge = needs("dense", Shape(96, 12288, 12288, 4))
    assert (
        huge.weights > 1e12
        and huge.batch(64, 1e11) == 0
        and needs("gl_net", Shape(96, 12288, 12288, 4)).batch(64, 1e11) == 64
    )


def test_the_command_writes_what_the_page_reads(tmp_path: Path, kept: Path) -> None:
    out = tmp_path / "docs"
    if (kept / "fits").is_dir():
        shutil.copytree(kept / "fits", out / "fits")
    result = CliRunner().invoke(
        app, ["experiment", "table2", "--zoo", str(SAMPLES), "--out", str(out), "--small", "--json"]
    )
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout[result.stdout.index("{") :])
    assert written["name"] == "table2" and len(written["cells"]) == len(Result.read(out / "results" / "table2").cells)
    assert (out / "results.md").is_file()
    assert CliRunner().invoke(app, ["experiment", "table9", "--out", str(out)]).exit_code == 1


def written_as_celeba(folder: Path, number: int) -> str:
    name = f"model_{number % 4}_0_0_0_{number}"
    (folder / name).mkdir(parents=True)
    torch.save(27.0 + number, folder / name / "score")
    return f"{name}/unet"


def written_as_imagenette(folder: Path, number: int) -> str:
    return f"model_{number % 1024:010b}_{number}/unet"


def written_as_arc(folder: Path, number: int) -> str:
    (folder / str(number)).mkdir(parents=True)
    for name in ("ARC-Challenge-Acc.txt", "eval_loss.txt"):
        (folder / str(number) / name).write_text(str(1 / (number + 1)))
    return str(number)


@pytest.mark.parametrize(
    ("table", "written", "column"),
    [
        ("table2", written_as_celeba, "Kendall τ"),
        ("table3", written_as_imagenette, "classes: accuracy"),
        ("table5", written_as_arc, "validation loss: R²"),
    ],
)
def test_tables_are_asked_about_the_authors_zoos_as_far_as_the_labels_go(
    table: str, written: Callable[[Path, int], str], column: str, tmp_path: Path
) -> None:
    for number in range(16):
        lora = random_lora((("mid_block.attentions.0.attn1.to_q", 12, 12, 2),), number)
        write_peft(tmp_path / "zoo" / written(tmp_path / "zoo", 37 * number), lora, alpha=2)
    context = Context(SAMPLES, tmp_path / "fits", replace(SMALL, loras=16, epochs=1), zoo=str(tmp_path / "zoo"))
    result = run(table, context)
    columns = set(result.cells["column"])
    assert column in columns and not {"attributes: accuracy", "sources seen: accuracy"} & columns
    assert set(result.cells["row"]) >= {"MLP", "GL-net", "control: norms only"} and result.findings
    assert str(tmp_path / "zoo") in result.title
    assert not any(zoo in note for note in result.notes for zoo in ("Faces", "Emojinette", "glosses", "prompts"))
    other = {"table2": "table5", "table3": "table2", "table5": "table3"}[table]
    with pytest.raises(ZooError, match="no labels to ask about; it has"):
        run(other, context)
    with pytest.raises(LoLError, match="run table2, table3, table5"):
        run("table4", context)


def test_what_is_not_there_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(LoLError, match="experiment table2"):
        Result.read(tmp_path / "table2")
    with pytest.raises(LoLError, match="There are table1"):
        run("table9", Context(SAMPLES, tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_results_are_full_runs_on_the_committed_zoos(name: str) -> None:
    result = Result.read(ROOT / "docs" / "results" / name)
    assert "small run" not in result.title and f"## {result.title}" in (ROOT / "docs" / "results.md").read_text()
    for question in result.settings.get("questions", {}).values():
        zoo = Zoo.open(SAMPLES / question["zoo"])
        assert question["fingerprint"] == zoo.fingerprint and question["LoRAs"] == len(zoo)


def test_a_question_of_our_own_says_so() -> None:
    asked = Finding("GL-net is best.", Holds.YES, "it is.")
    ours = Finding("Does it rank better than norms?", Holds.YES, "it does.", in_paper=False)
    assert asked.statement == "GL-net is best."
    assert ours.statement == "Not asked in the paper: Does it rank better than norms?"
    for name in OF_PAPER:
        findings = Result.read(ROOT / "docs" / "results" / name).findings
        assert any(finding.in_paper for finding in findings)


@pytest.mark.parametrize("name", ["table5", "table3"])
def test_the_committed_table_is_made_of_the_committed_fits(name: str, tmp_path: Path) -> None:
    """To the last digit, and without fitting anything anew."""
    shutil.copytree(ROOT / "benchmarks" / "fits", tmp_path / "fits")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "fits").iterdir()}
    result = run(name, Context(SAMPLES, tmp_path / "fits"))
    assert result.markdown() == (ROOT / "docs" / "results" / name / "table.md").read_text()
    assert {path.name: path.stat().st_size for path in (tmp_path / "fits").iterdir()} == sizes


def test_the_committed_report_is_made_of_the_committed_tables(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    assert write_report(tmp_path).read_text() == (ROOT / "docs" / "results.md").read_text()


def test_an_experiment_that_needs_more_packages_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("lol_core.experiments.figure4.fine_tunes", lambda context: import_module("diffusers"))
    context = Context(SAMPLES, tmp_path, replace(SMALL, loras=30))
    monkeypatch.setattr(Context, "trials", lambda *args: None)
    with pytest.raises(LoLError, match=r"lol-explorer-core\[images\]"):
        run("figure4", context)
