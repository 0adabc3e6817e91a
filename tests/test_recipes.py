"""Recipes of image zoos: what a run draws, what settings replace, and what is missing is named."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.recipes import CELEBA, IMAGENETTE, ImageRecipe, Run, draw_run, plan_runs
from lol_core.finetuning.start import Start
from tests.tiny_diffusion import RECIPE, celeba

__all__ = ["celeba"]  # a fixture


def test_celeba_gives_a_run_for_each_person_with_enough_pictures(celeba: Path) -> None:
    runs = plan_runs(RECIPE, celeba)
    assert [run.labels["identity"] for run in runs] == [4, 8, 17, 30]
    assert all(len(run.images) == 3 for run in runs)
    assert (runs[3].labels["Smiling"], runs[3].labels["Eyeglasses"]) == (1, 0), "labels are majorities"


def test_hyperparameters_follow_table_6() -> None:
    runs: list[Counter[object]] = [Counter() for _ in range(4)]
    for number in range(400):
        drawn = plan_run(CELEBA, number)
        for counter, value in zip(
            runs, (drawn.learning_rate, drawn.steps, drawn.batch_size, drawn.prompt), strict=True
        ):
            counter[value] += 1
    assert [set(c) for c in runs] == [
        set(CELEBA.learning_rates),
        set(CELEBA.steps),
        set(CELEBA.batch_sizes),
        set(CELEBA.prompts),
    ]
    assert all(min(c.values()) > 400 / len(c) * 0.7 for c in runs), "each with equal chance"


def plan_run(recipe: ImageRecipe, number: int) -> Run:
    return draw_run(recipe, number, [], {})


def test_imagenette_gives_every_subset_once_a_round(tmp_path: Path) -> None:
    for name in "abc":
        for i in range(2):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "train" / name / f"{i}.png").touch()
    runs = plan_runs(replace(IMAGENETTE, subsets_repeated=2), tmp_path)
    subsets = [tuple(run.labels[f"has {c}"] for c in "abc") for run in runs]
    assert len(runs) == 14 and len(set(subsets[:7])) == 7 and Counter(subsets) == Counter(dict.fromkeys(subsets, 2))
    for run in runs:
        assert sorted(Path(p).parent.name for p in run.images) == [c for c in "abc" if run.labels[f"has {c}"]]
        assert run.labels["n_images"] == len(run.images) and run.prompt == "sks_photo" and run.steps == 150


@pytest.mark.parametrize(("recipe", "words"), [(CELEBA, "identity_CelebA.txt"), (IMAGENETTE, "train/")])
def test_missing_data_is_named(recipe: ImageRecipe, words: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataMissingError, match=words):
            plan_runs(recipe, folder)


def test_settings_of_another_base_are_told(tmp_path: Path) -> None:
    replace(CELEBA, base="small").write(tmp_path / "recipe.json")
    command = ["finetune", "zoo", "--recipe", "celeba", "--settings", str(tmp_path / "recipe.json")]
    command += ["--base", "someone/larger", "--data", str(tmp_path), "--out", str(tmp_path / "zoo")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "is of the base small, and --base is someone/larger" in flat(result.output)
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("option", [("--scorer", "a/clip"), ("--stack", "16")])
def test_options_for_images_are_refused_for_questions(option: tuple[str, str], tmp_path: Path) -> None:
    here = str(tmp_path)
    command = ["finetune", "zoo", "--recipe", "arc", "--base", "a/base", "--data", here, "--out", here]
    result = CliRunner().invoke(app, [*command, *option])
    assert result.exit_code == 1 and "are for recipes of images" in flat(result.output)


def flat(output: str) -> str:
    return " ".join(output.split())


def test_settings_replace_the_papers_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"rank": 8, "steps": [5, 6]}))
    assert CELEBA.with_settings(tmp_path / "a.json") == replace(CELEBA, rank=8, steps=(5, 6))
    CELEBA.write(tmp_path / "b.json")
    assert IMAGENETTE.with_settings(tmp_path / "b.json") == CELEBA
    (tmp_path / "c.json").write_text('{"ranks": 8}')
    with pytest.raises(TaskError, match="ranks"):
        CELEBA.with_settings(tmp_path / "c.json")


def test_a_recipe_says_where_a_starts(tmp_path: Path) -> None:
    replace(CELEBA, start=Start.COMMON).write(tmp_path / "recipe.json")
    assert CELEBA.with_settings(tmp_path / "recipe.json").start is Start.COMMON
    (tmp_path / "older.json").write_text('{"rank": 2}')
    assert replace(CELEBA, start=Start.COMMON).with_settings(tmp_path / "older.json").start is Start.OWN
    (tmp_path / "wrong.json").write_text('{"start": "anywhere"}')
    with pytest.raises(TaskError, match="own, common, frozen"):
        CELEBA.with_settings(tmp_path / "wrong.json")
