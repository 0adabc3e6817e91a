"""Every page on LoRAs that were made in Python and lie in no folder, as on a folder of files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from lol_core.collections.files import OpenOptions
from lol_core.collections.http import NetworkError
from lol_core.collections.memory import MemorySource
from lol_core.collections.opening import OPENERS
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import read, writing
from lol_core.insight import generation
from lol_core.insight.generation import (
    Painter,
    Sampling,
    drawable_form,
    known_weights_file,
    weights_file,
    write_drawable,
)
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.conftest import ROOT
from tests.test_pages import PAGES, opened, settled, text_of
from tests.waiting import PATIENCE, until
from ui.previews import preview
from ui.state import recent
from ui.work import draw_sheets

ADDRESS = "memory://made"
COUNT = 40
BASE = ROOT / "sample_loras" / "small-diffusion"
FACES = ROOT / "sample_loras" / "faces" / "loras"


def made() -> MemorySource:
    """Random factors, with labels that are functions of ΔW."""
    loras = {f"lora{i:02d}": random_lora(MODULES, i, torch.float32, scale=1 + i % 7) for i in range(COUNT)}
    sizes = {id: float(lora.layers[0].delta().norm().log()) for id, lora in loras.items()}
    labels = pd.DataFrame({"size": sizes, "kind": {id: "big" if size > 2.5 else "small" for id, size in sizes.items()}})
    return MemorySource(loras, labels, name="made")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemorySource]:
    """A collection in memory that the field of the sidebar opens."""
    known = made()

    def opener(address: str, options: OpenOptions) -> Source:
        assert address == ADDRESS
        return known

    monkeypatch.setitem(OPENERS, "memory://", opener)
    yield known


MAIN = {
    "Home": "made\n",
    "Zoo": f"{COUNT} of {COUNT} LoRAs",
    "LoRA": "The layers of the base model",
    "Map": "What tells the selection apart",
    "Train": "Trained models of this collection",
    "Predictions": "No model has been trained on this collection yet",
    "Invariance": "took (UR, VR⁻ᵀ) for another LoRA",
    "Images": "name the base model these LoRAs were trained on",
    "Edit": "An edit follows a model that reads LoRAs",
    "Experiments": "measured on the sample zoos",
}
"""Words that stand on a page when it shows what it is for."""


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_what_it_is_for(page: str, source: MemorySource) -> None:
    test = settled(opened(page, ADDRESS))
    text = text_of(test)
    assert not test.exception and not test.error
    assert f"{COUNT} LoRAs open, 0 files refused, 2 label columns" in text
    assert MAIN[page] in text


def test_an_address_that_is_no_folder_is_among_those_opened_before(source: MemorySource, tmp_path: Path) -> None:
    opened("Zoo", ADDRESS)
    assert recent() == [(ADDRESS, "")]
    test = opened("Home", None)
    assert ADDRESS in [button.label for button in test.button] and not test.exception
    next(button for button in test.button if button.label == ADDRESS).click().run()
    assert f"{COUNT} LoRAs open" in text_of(test)
    assert any(f": {COUNT} LoRAs" in str(getattr(link, "proto", "")) for link in test.get("page_link")), (
        "what to do next"
    )


def button(test: AppTest, label: str) -> AppTest:
    next(button for button in test.button if button.label == label).click().run()
    return test


def test_train_predict_map_and_turn_on_loras_that_lie_in_no_folder(source: MemorySource) -> None:
    test = opened("Train", ADDRESS, targets="size")
    test.number_input(key="train.epochs").set_value(3)
    test = button(test, "Train")
    job = test.session_state["session"].training
    until(lambda: not job.running, "the end of the training")
    assert [run.error for run in job.subject] == [None]
    test.run()
    assert "GL-net → size" in " ".join(test.selectbox[-1].options) and not test.exception

    test.switch_page(PAGES["Predictions"]).run()
    table = next(table.value for table in test.dataframe if "size (true)" in table.value.columns)
    assert len(table) == COUNT and np.isfinite(table[["size (predicted)", "size (true)"]]).all(axis=None)
    assert not test.exception and not test.error

    test.switch_page(PAGES["Map"]).run()
    assert not settled(test).exception and test.get("plotly_chart")
    space = test.selectbox(key="map.space")
    space.select(space.options[-1]).run()
    assert not settled(test).exception and "Latent" in str(test.selectbox(key="map.space").value)

    test.switch_page(PAGES["Invariance"]).run()
    moves = next(table.value for table in test.dataframe if "relative change" in table.value.columns)
    assert (moves["relative change"] < 1e-3).all() and not test.exception

    test.switch_page(PAGES["LoRA"]).run()
    assert "What models say" in text_of(test) and not test.exception


def test_a_lora_without_a_file_is_drawn_as_its_file_is(tmp_path: Path) -> None:
    file = sorted(FACES.iterdir())[0]
    source = MemorySource({"face": read(file)}, name="faces")
    written = weights_file(source, "face", tmp_path)
    stamp = written.stat().st_mtime_ns
    assert weights_file(source, "face", tmp_path) == written and written.stat().st_mtime_ns == stamp, "written once"
    painter, sampling = Painter(BASE, cache=tmp_path / "images"), Sampling(steps=2)
    pictures = [np.asarray(painter.draw(lora, ["a person"], sampling)[0], np.float32) for lora in (file, written, None)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 2 < np.abs(pictures[0] - pictures[2]).max()


def test_a_lora_of_a_language_model_draws_nothing(tmp_path: Path) -> None:
    lora = random_lora([("model.layers.0.self_attn.q_proj", 8, 6, 2)])
    assert writing.forms_of(lora) == ["PEFT", "MLX"] and drawable_form(lora) is None
    with pytest.raises(LoRAFormatError, match="draws nothing"):
        write_drawable(lora, tmp_path / "drawn.safetensors", "it")
    assert not list(tmp_path.iterdir()), "a folder of MLX was written"
    assert drawable_form(read(sorted(FACES.iterdir())[0])) == "diffusers"


def test_two_who_draw_the_same_lora_at_once_both_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource({"face": read(sorted(FACES.iterdir())[0])}, name="faces")

    def write(lora: LoRA, path: Path, *form: Any) -> None:
        writing.write(lora, path, *form)
        monkeypatch.setattr(generation, "write", writing.write)
        weights_file(source, "face", tmp_path)  # the other comes in between, and ends first

    monkeypatch.setattr(generation, "write", write)
    assert known_weights_file(source, "face", tmp_path) is None
    drawn = weights_file(source, "face", tmp_path)
    assert known_weights_file(source, "face", tmp_path) == drawn and list(drawn.parent.iterdir()) == [drawn]


class Silent(MemorySource):
    """A collection whose server answers no longer."""

    def load(self, id: str) -> LoRA:
        raise NetworkError("hub.example does not answer.")


def test_weights_are_read_beside_the_page_and_what_fails_is_said(tmp_path: Path) -> None:
    job = draw_sheets(
        Painter(BASE, cache=tmp_path),
        Silent({"a": read(sorted(FACES.iterdir())[0])}),
        ["a"],
        ["b"],
        sampling=Sampling(),
    )
    job.wait(PATIENCE)
    assert "does not answer" in str(job.error)


def test_labels_that_files_offer_are_taken_on_the_page(tmp_path: Path) -> None:
    for i, licence in enumerate(("mit", "apache-2.0")):
        write_peft(tmp_path / "zoo" / f"{i}", random_lora(MODULES, i))
        (tmp_path / "zoo" / f"{i}" / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    before = sorted((tmp_path / "zoo").rglob("*"))
    test = button(opened("Zoo", tmp_path / "zoo"), "Look for labels")
    failed = test.session_state["session"].offering
    failed.wait(PATIENCE)
    failed.result, failed.error = None, "It broke off."
    test.run()
    assert "It broke off." in [error.value for error in test.error], "and one can look again"
    button(test, "Look for labels")
    test.session_state["session"].offering.wait(PATIENCE)
    test.run().multiselect(key="zoo.taken").select("card license").run()
    button(test, "Use them")
    while (job := test.session_state["session"].opening) is not None:
        job.wait(PATIENCE)
        test.run()
    assert not test.exception and "1 label column" in text_of(test) and "labels/zoo-" in text_of(test)
    assert sorted((tmp_path / "zoo").rglob("*")) == before, "nothing is written there"


def test_weights_elsewhere_are_not_downloaded_unasked(source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.survey.HERE", ())
    test = opened("Zoo", ADDRESS)
    assert test.session_state["session"].survey is None and "All 40 together have 0.0 MB" in text_of(test)
    assert "Read the weights" in [button.label for button in test.button]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "EPS", "cut", "garbage"])
def test_a_picture_that_browsers_do_not_show_is_none(kind: str, tmp_path: Path) -> None:
    write_zoo(tmp_path, 1)
    file = io.BytesIO()
    picture = Image.new("RGB", (64, 64), "red")
    picture.save(file, "PNG" if kind == "cut" else kind) if kind != "garbage" else file.write(b"no picture")
    content = file.getvalue()
    (tmp_path / "lora000" / "adapter_model.preview.png").write_bytes(content[:-40] if kind == "cut" else content)
    zoo = Zoo.open(tmp_path)
    assert zoo.preview(zoo.ids[0]) is not None
    assert (preview(zoo, zoo.ids[0]) is not None) is (kind in ("PNG", "WEBP"))


def test_a_lora_that_diffusers_has_no_form_for_says_so(tmp_path: Path) -> None:
    source = MemorySource({"a": LoRA(random_lora(MODULES, 0, torch.float32).layers, "PEFT")})
    with pytest.raises(LoRAFormatError, match="a: no LoRA of a diffusion model"):
        weights_file(source, "a", tmp_path)
