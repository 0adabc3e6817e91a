"""The page Images: what it needs, what it ranks, that it draws, keeps, walks and stops."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from lol_core.checkpoint import TrainingConfig
from lol_core.models import ModelConfig
from lol_core.training import plan, train
from lol_core.zoo import Zoo
from tests.conftest import ROOT
from tests.test_pages import opened, text_of
from ui.state import runs_folder

FACES, BASE = ROOT / "sample_loras" / "faces", ROOT / "sample_loras" / "small-diffusion"


@pytest.fixture(scope="module")
def few_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty LoRAs of Faces with their labels, recipe and previews."""
    if not (FACES / "labels.csv").is_file():
        pytest.skip("faces has not been built yet: make faces")
    folder = tmp_path_factory.mktemp("zoo") / "few"
    labels = pd.read_csv(FACES / "labels.csv").iloc[:30]
    for lora in labels["lora"]:
        for source in (FACES / lora, FACES / "previews" / f"{Path(lora).stem}.webp"):
            target = folder / source.relative_to(FACES)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    labels.to_csv(folder / "labels.csv", index=False)
    shutil.copy(FACES / "recipe.json", folder)
    return folder


def images_of(test: AppTest) -> int:
    return len(test.get("image"))


def drawn(test: AppTest, seconds: float = 90) -> AppTest:
    """Run until nothing is being drawn."""
    end = time.monotonic() + seconds
    while (job := test.session_state["session"].drawing) is not None and job.running:
        assert time.monotonic() < end
        time.sleep(0.2)
    return test.run()


def test_without_a_base_model_it_says_what_it_needs(synthetic_folder: Path) -> None:
    test = opened("Images", synthetic_folder)
    assert not test.exception and "name the base model" in text_of(test)


def test_a_base_that_is_not_there_is_an_error_with_advice(few_faces: Path, tmp_path: Path) -> None:
    test = opened("Images", few_faces, base=str(tmp_path))
    next(b for b in test.button if b.label == "Draw").click().run()
    test = drawn(test)
    assert not test.exception and "no diffusers pipeline there" in text_of(test)


def test_it_draws_the_best_the_worst_and_the_base_by_itself(few_faces: Path) -> None:
    test = drawn(opened("Images", few_faces))
    assert not test.exception and not test.error
    text = text_of(test)
    assert all(f"**{name}**" in text for name in ("Highest", "Lowest", "Base model", "Rank 16")) and "Not drawn yet" not in text
    labels = pd.read_csv(few_faces / "labels.csv").set_index("lora")["clip_score"]
    assert f"measured {labels.max():.4g}" in text and f"measured {labels.min():.4g}" in text
    assert images_of(test) == 9 + 4 * 3, "nine previews along the ranking and three prompts for each of four"
    test.slider(key="place").set_value(30).run()
    assert "**Rank 30**" in text_of(test)
    assert test.session_state["session"].drawing.running is False, "the lowest is drawn already"


def test_a_model_ranks_the_loras_it_was_not_trained_on(few_faces: Path) -> None:
    zoo = Zoo.open(few_faces)
    config = TrainingConfig(model="gl_net", model_config=ModelConfig(width=8, equivariant_width=4), epochs=2)
    checkpoint = train(zoo, plan(zoo, ["clip_score"], config), config, runs_folder(zoo) / "one")
    test = drawn(opened("Images", few_faces))
    text = text_of(test)
    assert not test.exception and "predicted" in text and "measured" in text
    assert test.slider(key="place").max == len(checkpoint.split["test"])


def test_stop_leaves_what_is_drawn_and_draw_goes_on(few_faces: Path) -> None:
    test = opened("Images", few_faces, prompts="a cat\na car\na tree\na heart\na house")
    next(b for b in test.button if b.label == "Stop").click().run()
    test = drawn(test)
    assert "Stopped" in text_of(test) and "Not drawn yet" in text_of(test)
    next(b for b in test.button if b.label == "Draw").click().run()
    assert "Not drawn yet" not in text_of(drawn(test))
