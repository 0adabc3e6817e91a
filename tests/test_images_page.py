"""The page Images: what it needs, what it ranks, that it draws, keeps, walks and stops; and the page Edit, which draws
too.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Slider

from lol_core.collections.entry import SAMPLED_BYTES
from lol_core.collections.zoo import Zoo
from lol_core.finetuning.dreambooth import Base, finetune_stack, write_lora
from lol_core.finetuning.image_zoos import write_strip
from lol_core.finetuning.recipes import CELEBA, Run
from lol_core.insight import generation
from lol_core.insight.editing import Method
from lol_core.learning.config import TrainingConfig
from lol_core.learning.editor import EditorConfig, train_editor
from lol_core.learning.known import FEWEST, UNLIKE, Known, Seen
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train
from tests.builders import random_lora, write_peft
from tests.conftest import ROOT
from tests.test_pages import opened, text_of
from tests.waiting import until
from ui import state, work
from ui.editing import METHODS
from ui.jobs import Job, running
from ui.state import MAX_EDITED, Session, runs_folder
from ui.work import Edited, Wish

BASE = ROOT / "sample_loras" / "small-diffusion"


@pytest.fixture(scope="module")
def few_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty LoRAs of the small diffusion model, each tuned for two steps on a picture of one colour. Their "CLIP
    scores" are made up.
    """
    folder = tmp_path_factory.mktemp("zoo") / "few"
    rng = np.random.default_rng(0)
    recipe = replace(
        CELEBA,
        resolution=64,
        targets=("to_v", "to_out.0"),
        score_prompts=(),
        preview_prompts=(),
        sampling_steps=4,
        guidance=1.0,
    )
    runs = []
    for number in range(1, 31):
        picture = folder.parent / "pictures" / f"{number}.png"
        picture.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), tuple(rng.integers(0, 255, 3).tolist())).save(picture)
        runs.append(Run(number, (str(picture),), "skd", 1e-2, 2, 1, {}))
    for outcome in finetune_stack(Base(BASE), recipe, runs):
        write_lora(folder / "loras" / f"{outcome.run.name}.safetensors", outcome.factors, BASE.name)
        write_strip(folder / "previews" / f"{outcome.run.name}.webp", [Image.open(outcome.run.images[0])] * 2)
    names = [f"loras/{run.name}.safetensors" for run in runs]
    pd.DataFrame({"lora": names, "clip_score": rng.uniform(1, 2, len(runs))}).to_csv(folder / "labels.csv", index=False)
    recipe.write(folder / "recipe.json")
    return folder


def images_of(test: AppTest) -> int:
    return len(test.get("image"))


def drawn(test: AppTest) -> AppTest:
    """Run until nothing is being drawn."""
    job = test.session_state["session"].drawing
    until(lambda: job is None or not job.running, "the end of the drawing")
    return test.run()


def test_without_a_base_model_it_says_what_it_needs(tmp_path: Path) -> None:
    for number, base in enumerate(("some/base", None)):
        write_peft(tmp_path / f"{number}", random_lora(seed=number), base_model_name_or_path=base)
    test = opened("Images", tmp_path)
    assert not test.exception and "name the base model" in text_of(test)
    assert "The files say: some/base (1), nothing (1). Only LoRAs" in text_of(test)


def test_of_many_base_models_the_most_frequent_are_named(tmp_path: Path) -> None:
    for number in range(6):
        base = f"some/base{max(0, number - 1)}"
        write_peft(tmp_path / f"{number}", random_lora(seed=number), base_model_name_or_path=base)
    text = text_of(opened("Images", tmp_path))
    assert "The files say: some/base0 (2), some/base1 (1), some/base2 (1) and 2 others. Only LoRAs" in text


def test_a_base_that_is_not_there_is_an_error_with_advice(few_loras: Path, tmp_path: Path) -> None:
    test = opened("Images", few_loras, base=str(tmp_path))
    next(b for b in test.button if b.label == "Draw").click().run()
    test = drawn(test)
    assert not test.exception and "no diffusers pipeline there" in text_of(test)


def test_it_draws_the_best_the_worst_and_the_base_by_itself(few_loras: Path) -> None:
    test = drawn(opened("Images", few_loras))
    assert not test.exception and not test.error
    text = text_of(test)
    assert (
        all(f"**{name}**" in text for name in ("Highest", "Lowest", "Base model", "Rank 16"))
        and "Not drawn yet" not in text
    )
    labels = pd.read_csv(few_loras / "labels.csv").set_index("lora")["clip_score"]
    assert f"measured {labels.max():.4g}" in text and f"measured {labels.min():.4g}" in text
    assert images_of(test) == 8 + 4 * 3, "eight previews along the ranking and three prompts for each of four"
    test.slider(key="images.place").set_value(30).run()
    assert "**Rank 30**" in text_of(test)
    assert test.session_state["session"].drawing.running is False, "the lowest is drawn already"


def test_any_lora_is_drawn_without_a_ranking(few_loras: Path, tmp_path: Path) -> None:
    shutil.copytree(few_loras / "loras", tmp_path / "loras")
    test = drawn(opened("Images", tmp_path, prompts="a cat", also="loras/0003"))
    text = text_of(test)
    assert not test.exception and "To rank LoRAs there must be a label" in text
    assert (
        all(f"**{name}**" in text for name in ("loras/0003", "Base model"))
        and "**Highest**" not in text
        and "Not drawn yet" not in text
    )
    assert images_of(test) == 2, "one prompt, with the LoRA and without"


def test_a_lora_called_as_the_base_is_drawn_too(few_loras: Path, tmp_path: Path) -> None:
    shutil.copy(few_loras / "loras" / "0003.safetensors", tmp_path / "Base model.safetensors")
    test = drawn(opened("Images", tmp_path, prompts="a cat", also="Base model.safetensors"))
    assert not test.exception and "**LoRA Base model**" in text_of(test) and images_of(test) == 2


def test_large_files_that_differ_in_the_middle_are_different_loras(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    content = bytearray(4 * SAMPLED_BYTES)
    identities = set()
    for i in range(2):
        content[len(content) // 2] = i
        file.write_bytes(content)
        os.utime(file, (i, i))
        identities.add(generation._identity(file))
    assert len(identities) == 2


def test_a_model_ranks_the_loras_it_was_not_trained_on(few_loras: Path) -> None:
    zoo = Zoo.open(few_loras)
    config = TrainingConfig(model="gl_net", model_config=ModelConfig(width=8), epochs=2)
    checkpoint = train(zoo, plan(zoo, ["clip_score"], config), config, runs_folder(zoo) / "one")
    test = drawn(opened("Images", few_loras))
    text = text_of(test)
    assert not test.exception and "predicted" in text and "measured" in text
    assert test.slider(key="images.place").max == len(checkpoint.split["test"])
    assert "the place is a guess" not in text


def test_places_of_loras_unlike_the_training_are_called_guesses(few_loras: Path) -> None:
    zoo = Zoo.open(few_loras)
    config = TrainingConfig(model="gl_net", model_config=ModelConfig(width=8), epochs=2)
    checkpoint = train(zoo, plan(zoo, ["clip_score"], config), config, runs_folder(zoo) / "one")
    few = Seen(torch.zeros(FEWEST, 8), torch.zeros(FEWEST, len(checkpoint.spec.modules)))
    checkpoint.known = Known.of(few, few)
    checkpoint.save(runs_folder(zoo) / "one")
    test, count = drawn(opened("Images", few_loras)), len(checkpoint.split["test"])
    assert (
        not test.exception and f"the place is a guess: {count} of {count}" in text_of(test) and "(#1)" in text_of(test)
    )


def test_stop_leaves_what_is_drawn_and_draw_goes_on(few_loras: Path) -> None:
    test = opened("Images", few_loras, prompts="a cat\na car\na tree\na heart\na house")
    next(b for b in test.button if b.label == "Stop").click().run()
    test = drawn(test)
    assert "Stopped" in text_of(test) and "Not drawn yet" in text_of(test)
    next(b for b in test.button if b.label == "Draw").click().run()
    assert "Not drawn yet" not in text_of(drawn(test))


def ended(job: Job[Any, Any] | None) -> bool:
    return not running(job)


def pressed(test: AppTest, label: str, *jobs: str) -> AppTest:
    """A button of the page Edit pressed, and what it began ended."""
    next(button for button in test.button if button.label == label).click().run()
    for name in jobs:
        job = getattr(test.session_state["session"], name)
        until(partial(ended, job), name)
        test.run()
    return test


def edits_now(test: AppTest) -> list[tuple[Wish, Edited]]:
    """The edits of the LoRA that is looked at."""
    *_, edits = test.session_state["session"].edits.values()
    return list(edits)


def walk(test: AppTest) -> Slider[Any]:
    return next(slider for slider in test.slider if slider.label == "Walk along the edit")


def offered(test: AppTest) -> str:
    """The address of the file that the page Edit offers, which follows from its content."""
    (button,) = (button for button in test.get("download_button") if "Download (" in str(button.proto))
    return str(button.proto.url)


def test_an_edit_is_drawn_walked_back_undone_and_saved(few_loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page Edit, with a model that was trained for a moment."""
    zoo = Zoo.open(few_loras)
    config = TrainingConfig(model="gl_net", model_config=ModelConfig(width=8), epochs=2)
    train(zoo, plan(zoo, ["clip_score"], config), config, runs_folder(zoo) / "edited")
    test = opened("Edit", few_loras, lora="loras/0007.safetensors", size="0.3", prompts="a cat")
    assert "Choose a change and press" in text_of(test) and not test.exception
    pressed(test, "Edit", "editing", "drawing_edit")
    edits = edits_now(test)
    way = edits[0][1].edit
    assert way.moved[-1] == pytest.approx(0.3, rel=2e-3) and len(edits) == 1
    assert not way.met and "is not reached at the end of this edit" in text_of(test)
    assert "clip_score" in text_of(test) and "Base model" in text_of(test) and "Before" in text_of(test)
    assert not test.exception and not test.error and "Not drawn yet" not in text_of(test)
    edits[0][1].outside = [False, *[True] * (len(way.loras) - 1)]
    assert UNLIKE in text_of(test.run())
    walk(test).set_value(0).run()
    assert "ΔW has moved by **0%**" in text_of(test) and UNLIKE not in text_of(test)
    short = EditorConfig(epochs=2, batch_size=8, atoms=4)
    monkeypatch.setattr(work, "train_editor", partial(train_editor, config=short))
    test.selectbox(key="edit.method").set_value(METHODS[Method.EQUIVARIANT]).run()
    pressed(test, "Edit further", "editing", "drawing_edit")
    monkeypatch.setattr(work, "train_editor", None)  # it is kept for what follows
    edits = edits_now(test)
    second = edits[1][1].edit
    assert torch.equal(second.loras[0].layers[0].U, way.lora.layers[0].U), "it goes on from what the first gave"
    file = offered(test)
    del test.session_state["session"].edits[edits[0][0].lora][0]
    pressed(test, "Edit further", "editing", "drawing_edit")
    assert offered(test) != file, "as many edits of the same sizes, of another LoRA"
    assert "by this edit, and by" in text_of(test)
    pressed(test, "Undo")
    assert len(edits_now(test)) == 1 and not test.exception
    walk(test).set_value(3).run()
    test.selectbox(key="edit.lora").set_value("loras/0008.safetensors").run()
    assert "Choose a change and press" in text_of(test), "an edit of one LoRA is not shown for another"
    next(button for button in test.button if button.label == "Edit").click().run()
    test.selectbox(key="edit.lora").set_value("loras/0007.safetensors").run()
    until(partial(ended, test.session_state["session"].editing), "the edit of the other LoRA")
    test.run()
    assert len(edits_now(test)) == 1 and "Choose a change" not in text_of(test), "the edits so far are there again"
    assert walk(test).value == 3
    test.selectbox(key="edit.lora").set_value("loras/0008.safetensors").run()
    assert "Choose a change" not in text_of(test) and not test.exception, "made while one looked at another"
    until(partial(ended, test.session_state["session"].drawing_edit), "its pictures")


def test_the_edits_of_few_loras_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Session(folder=None)
    monkeypatch.setattr(state, "session", lambda: visitor)
    made: Any = object()
    for number in range(MAX_EDITED):
        state.edits_of(("zoo", str(number))).append(made)
    assert state.edits_of(("zoo", "0")) == [made]
    for other in ("new", "newer"):
        assert not state.edits_of(("zoo", other))
    assert [id for (_, id), edits in visitor.edits.items() if edits] == ["2", "3", "0"], "those looked at last"


def test_two_loras_are_merged_drawn_and_saved(few_loras: Path) -> None:
    test = opened("Edit", few_loras, prompts="a cat", mode="Merge several")
    assert "Choose LoRAs and press" in text_of(test) and not test.exception
    pressed(test, "Merge", "merging", "drawing_edit")
    asked, made = test.session_state["session"].merged
    assert asked.ids == ("loras/0001.safetensors", "loras/0002.safetensors") and asked.weights == (1, 1)
    assert images_of(test) == 4 and "Not drawn yet" not in text_of(test), "the base, two LoRAs and their merge"
    assert not test.exception and not test.error
    numbers = {metric.label: metric.value for metric in test.metric}
    assert numbers["Away from the sum"] == numbers["Left out by the rank"] == f"{made.report.merged.lost:.1%}" != "0.0%"
    assert numbers["By other factors"] == "the same"
    file = offered(test)
    assert any(words.startswith("learned") for words in test.selectbox(key="edit.merge_method").options)
    test.selectbox(key="edit.merge_method").set_value("sum of factors").run()
    assert "not yet what is chosen above" in text_of(test) and offered(test) == file
    pressed(test, "Merge", "merging", "drawing_edit")
    assert {metric.label: metric.value for metric in test.metric}["By other factors"].startswith("moves by")
    assert "not yet what is chosen" not in text_of(test) and offered(test) != file and not test.exception
    file = offered(test)
    test.text_input(key="edit.base").set_value("").run()
    assert "To draw images, name the base model" in text_of(test) and offered(test) == file, "saved without a base"
