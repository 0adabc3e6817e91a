"""Fine-tuning of image models: DreamBooth one by one and stacked, from one start, zoos that stop and go on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from PIL import Image
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.base_model import (
    diffusion_loss,
    make_scheduler,
)
from lol_core.finetuning.dreambooth import Base, adapted, finetune_one, finetune_stack, write_lora
from lol_core.finetuning.image_zoos import ImageZoo, stacks
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.recipes import CELEBA, draw_run, plan_runs
from lol_core.finetuning.rows import append_row, write_table
from lol_core.finetuning.scoring import score_again
from lol_core.finetuning.start import Start
from lol_core.formats import read
from tests.conftest import ROOT
from tests.tiny_diffusion import RECIPE, base, base_folder, celeba

__all__ = ["base", "base_folder", "celeba"]  # fixtures


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_stack_and_single_runs_of_peft_agree(base: Base, celeba: Path, alpha: float | None) -> None:
    recipe = replace(RECIPE, alpha=alpha)
    runs = [
        replace(run, steps=3, batch_size=2, learning_rate=rate)
        for run, rate in zip(plan_runs(recipe, celeba), (1e-3, 3e-3, 1e-2, 3e-2), strict=True)
    ]
    together = finetune_stack(base, recipe, runs)
    for run, stacked in zip(runs, together, strict=True):
        alone = finetune_one(base, recipe, run)
        assert alone.final_loss == pytest.approx(stacked.final_loss, rel=1e-4)
        for name, (A, B) in alone.factors.items():
            start, _ = base.fresh_factors(recipe, run.number)[name]
            moved = (A - start).norm()
            assert moved > 0 and B.norm() > 0
            assert (A - stacked.factors[name][0]).norm() < 1e-2 * moved
            assert (B - stacked.factors[name][1]).norm() < 1e-2 * B.norm()


def test_the_base_is_left_as_it_was(base: Base, celeba: Path) -> None:
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    runs = [replace(run, steps=2, batch_size=1) for run in plan_runs(RECIPE, celeba)[:2]]
    finetune_stack(base, RECIPE, runs)
    finetune_one(base, RECIPE, runs[0])
    after = base.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_a_stack_needs_one_batch_size_and_length(base: Base, celeba: Path) -> None:
    first, second = plan_runs(RECIPE, celeba)[:2]
    with pytest.raises(TaskError, match="same batch size"):
        finetune_stack(base, RECIPE, [replace(first, steps=2), replace(second, steps=3)])


def test_stacks_hold_every_run_once() -> None:
    runs = [draw_run(CELEBA, number, [], {}) for number in range(1, 200)]
    gathered = stacks(runs, 8)
    assert sorted(run.number for stack in gathered for run in stack) == list(range(1, 200))
    assert all(len(s) <= 8 and len({(r.batch_size, r.steps) for r in s}) == 1 for s in gathered)


def test_the_loss_of_a_clean_sample_is_that_of_the_velocity() -> None:
    """(x̂ − x)² / σ² = (v̂ − v)² for the same prediction written as velocity, where σ is above its floor."""
    torch.manual_seed(0)
    x, noise, t = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4), torch.tensor([300, 500, 700, 900, 998])
    scheduler = make_scheduler()
    guess = torch.randn_like(x)

    class Says:
        def __init__(self, value: torch.Tensor):
            self.sample = value

    def unet(value: torch.Tensor) -> Any:
        """Stands for a U-Net with this answer."""
        return lambda *args, **kwargs: Says(value)

    clean = diffusion_loss(unet(guess), scheduler, x, torch.zeros(1), noise=noise, timesteps=t)
    alpha, sigma = (
        a.view(-1, 1, 1, 1) for a in (scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt())
    )
    noisy = alpha * x + sigma * noise
    implied_noise = (noisy - alpha * guess) / sigma
    scheduler.register_to_config(prediction_type="v_prediction")
    velocity = diffusion_loss(
        unet(alpha * implied_noise - sigma * guess), scheduler, x, torch.zeros(1), noise=noise, timesteps=t
    )
    torch.testing.assert_close(clean, velocity, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_written_lora_is_read_back_and_worn_by_diffusers(
    base: Base, base_folder: Path, celeba: Path, tmp_path: Path, alpha: float | None
) -> None:
    run = replace(plan_runs(RECIPE, celeba)[0], steps=4, learning_rate=1e-2)
    outcome = finetune_one(base, RECIPE, run)
    path = tmp_path / "one.safetensors"
    write_lora(path, outcome.factors, "tiny", alpha)
    scale = 1.0 if alpha is None else alpha / RECIPE.rank
    lora = read(path)
    assert (
        lora.base_model == "tiny"
        and len(lora.layers) == len(adapted(base.unet, RECIPE.targets))
        and lora.dialect == "diffusers"
    )
    layer = lora.layers[0]
    A, B = outcome.factors[layer.name.removeprefix("unet.")]
    torch.testing.assert_close(layer.delta().float(), scale * (B @ A), rtol=1e-2, atol=1e-4)

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None)
    x, t, text = torch.randn(1, 16, 4, 4), torch.tensor([500]), torch.randn(1, 5, 128)
    with torch.no_grad():
        before = pipeline.unet(x, t, text).sample
        pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
        after = pipeline.unet(x, t, text).sample
    assert (after - before).abs().max() > 1e-4
    pipeline.fuse_lora()
    own = base.unet.get_submodule(layer.name.removeprefix("unet.")).weight
    fused = pipeline.unet.get_submodule(layer.name.removeprefix("unet."))
    torch.testing.assert_close(fused.base_layer.weight - own, layer.delta().float(), rtol=1e-2, atol=1e-4)


def test_what_diverged_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="not finite"):
        write_lora(tmp_path / "a.safetensors", {"m.to_v": (torch.full((2, 3), torch.nan), torch.zeros(3, 2))}, "tiny")
    assert not list(tmp_path.iterdir())


def test_a_zoo_stops_and_goes_on(
    base_folder: Path, celeba: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out, machine = tmp_path / "zoo", Machine(workers=2, stack=2)
    zoo = ImageZoo(out, RECIPE, str(base_folder))
    with pytest.raises(Stopped, match="goes on"):
        list(zoo.build(celeba, None, machine, Reporter(stop=lambda: True)))
    request.getfixturevalue("in_threads")
    machine = Machine(stack=2)
    first = pd.read_csv(out / "labels.csv")
    assert 1 <= len(first) < 4
    stamps = {
        p.name: p.stat().st_mtime_ns for p in (out / "loras").iterdir() if f"loras/{p.name}" in set(first["lora"])
    }
    list(zoo.build(celeba, None, machine))
    labels = pd.read_csv(out / "labels.csv")
    assert sorted(labels["lora"]) == [f"loras/{i:04d}.safetensors" for i in (1, 2, 3, 4)]
    assert all((out / "loras" / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items()), (
        "finished ones are left alone"
    )
    rows = list(zoo.measure(None, machine))
    assert len(rows) == 4
    with Image.open(zoo.preview("loras/0001.safetensors")) as preview:
        assert preview.size == (2 * 32, 32)
    assert not list(zoo.measure(None, machine)), "nothing is left to measure"
    with pytest.raises(TaskError, match="recipe"):
        list(ImageZoo(out, replace(RECIPE, rank=3), str(base_folder)).build(celeba, None, machine))
    assert json.loads((out / "recipe.json").read_text())["base"] == base_folder.name
    with pytest.raises(TaskError, match="the base asked for"):
        list(ImageZoo(out, RECIPE, "another/base").build(celeba, None, machine))


def test_a_zoo_that_came_to_no_lora_takes_another_base(
    base_folder: Path, celeba: Path, tmp_path: Path, in_threads: None
) -> None:
    with pytest.raises(DataMissingError):
        list(ImageZoo(tmp_path / "zoo", RECIPE, str(celeba)).build(celeba, 1, Machine()))
    assert list(ImageZoo(tmp_path / "zoo", RECIPE, str(base_folder)).build(celeba, 1, Machine()))
    assert json.loads((tmp_path / "zoo" / "recipe.json").read_text())["base"] == base_folder.name


def test_a_scorer_that_is_not_there_is_named_before_anything_is_trained(
    base_folder: Path, celeba: Path, tmp_path: Path
) -> None:
    command = ["finetune", "zoo", "--recipe", "celeba", "--base", str(base_folder), "--data", str(celeba)]
    for scorer in (celeba, base_folder / "unet"):
        result = CliRunner().invoke(app, [*command, "--scorer", str(scorer), "--out", str(tmp_path / "zoo")])
        assert result.exit_code == 1 and "no CLIP model there" in result.output.replace("\n", " ")
    assert not (tmp_path / "zoo").exists()


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="no Stable Diffusion pipeline"):
        Base(tmp_path)


def test_a_score_needs_a_scorer(base_folder: Path, celeba: Path, tmp_path: Path, in_threads: None) -> None:
    zoo = ImageZoo(tmp_path, replace(RECIPE, score_prompts=("a dog",)), str(base_folder))
    list(zoo.build(celeba, 1, Machine()))
    with pytest.raises(DataMissingError, match="--scorer"):
        list(zoo.measure(None, Machine()))


def test_a_zoo_is_scored_by_other_prompts_and_goes_on(
    base_folder: Path, celeba: Path, tmp_path: Path, in_threads: None
) -> None:
    zoo = ImageZoo(tmp_path, RECIPE, str(base_folder))
    list(zoo.build(celeba, 2, Machine()))
    clip = str(ROOT / "sample_loras" / "small-clip")
    prompts = ("a dog", "a person on the beach")
    with pytest.raises(Stopped):
        list(
            score_again(
                zoo, "again", prompts, seed=7, scorer=clip, machine=Machine(), reporter=Reporter(stop=lambda: True)
            )
        )
    first = (tmp_path / "again.csv").read_text()
    assert len(first.splitlines()) == 2 and "again" not in pd.read_csv(zoo.labels)
    assert not list(score_again(zoo, "again", prompts, seed=7, scorer=clip, machine=Machine(), count=1))
    assert pd.read_csv(zoo.labels)["again"].notna().tolist() == [True, False]
    assert len(list(score_again(zoo, "again", prompts, seed=7, scorer=clip, machine=Machine()))) == 1
    rows, labels = pd.read_csv(tmp_path / "again.csv").set_index("lora"), pd.read_csv(zoo.labels).set_index("lora")
    assert (tmp_path / "again.csv").read_text().startswith(first) and not list(
        score_again(zoo, "again", prompts, seed=7, scorer=clip, machine=Machine())
    )
    np.testing.assert_allclose(labels["again"], rows.loc[labels.index, ["01", "02"]].mean(axis=1), atol=1e-5)
    with pytest.raises(TaskError, match="of its own"):
        list(score_again(zoo, "steps", prompts, seed=7, scorer=clip, machine=Machine()))


def test_rows_keep_to_the_columns_of_their_table(tmp_path: Path) -> None:
    """Measuring adds a column to labels.csv; fine-tuning more LoRAs afterwards leaves it empty and moves nothing."""
    path = tmp_path / "labels.csv"
    path.write_text("lora,clip_score,seed\na,2.0,1\n")
    append_row(path, {"lora": "b", "seed": 2})
    table = pd.read_csv(path)
    assert table["seed"].tolist() == [1, 2] and table["clip_score"].isna().tolist() == [False, True]
    with pytest.raises(ValueError, match="size"):
        append_row(path, {"lora": "c", "size": 3})


def test_a_full_disk_leaves_a_table_as_it_was(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a file's size are POSIX's")
    path, unlimited = tmp_path / "labels.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    append_row(path, {"lora": "a", "clip_score": 2.0})
    before = path.read_bytes()
    changes = (
        partial(append_row, path, {"lora": "b" * 100, "clip_score": 1.0}),
        partial(append_row, tmp_path / "new.csv", {"lora": "b" * 100, "clip_score": 1.0}),
        partial(write_table, path, pd.DataFrame({"lora": ["b" * 100]})),
    )
    for change in changes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, unlimited[1]))
        try:
            with pytest.raises(OSError):
                change()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert path.read_bytes() == before
    append_row(tmp_path / "new.csv", {"lora": "b"})
    assert (tmp_path / "new.csv").read_text().split() == ["lora", "b"]


@pytest.mark.parametrize("alone", [True, False])
def test_loras_from_one_start_begin_at_the_same_a_and_leave_it_unless_it_is_frozen(
    base: Base, celeba: Path, alone: bool
) -> None:
    for start in Start:
        recipe = replace(RECIPE, start=start)
        runs = [replace(run, steps=2, batch_size=1, learning_rate=1e-2) for run in plan_runs(recipe, celeba)[:2]]
        if alone:
            outcomes = [finetune_one(base, recipe, run) for run in runs]
        else:
            outcomes = finetune_stack(base, recipe, runs)
        for name, (first, _) in base.fresh_factors(recipe, runs[0].number).items():
            second, _ = base.fresh_factors(recipe, runs[1].number)[name]
            assert torch.equal(first, second) == (start is not Start.OWN)
            ends = [outcome.factors[name] for outcome in outcomes]
            assert all(B.norm() > 0 for _, B in ends)
            assert [torch.equal(A, begun) for (A, _), begun in zip(ends, (first, second), strict=True)] == [
                start is Start.FROZEN
            ] * 2


def test_a_peft_model_gets_the_start_of_its_zoo_and_chance_goes_on_as_without_it() -> None:
    def made(seed: int, start: Start) -> tuple[dict[str, torch.Tensor], list[bool], float]:
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["0"])
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 5)), config)
        start.settle(model)
        factors = {name.split(".")[-3]: p for name, p in model.named_parameters() if "lora_" in name}
        return factors, [factors["lora_A"].requires_grad, factors["lora_B"].requires_grad], torch.rand(1).item()

    own, others = made(1, Start.OWN), made(2, Start.OWN)
    assert not torch.equal(own[0]["lora_A"], others[0]["lora_A"])
    for start, trained in ((Start.COMMON, [True, True]), (Start.FROZEN, [False, True])):
        one, other = made(1, start), made(2, start)
        assert torch.equal(one[0]["lora_A"], other[0]["lora_A"]) and not one[0]["lora_B"].any()
        assert one[1] == trained and (one[2], other[2]) == (own[2], others[2])
