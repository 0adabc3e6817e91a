"""One selection on every page: made in one place, seen in the others, kept by the URL, saved, isolated and exported.
And the pages that make it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from lol_core.collections.zoo import Zoo
from tests.builders import write_zoo
from tests.test_pages import PAGES, opened, settled, text_of, trained
from tests.waiting import PATIENCE


def press(test: AppTest, key: str) -> AppTest:
    return test.button(key=key).click().run()


def test_a_selection_follows_to_every_page_and_comes_back_by_the_url(synthetic_folder: Path) -> None:
    test = settled(opened("Zoo", synthetic_folder, q="/lora00[0-4]/"))
    press(test, "zoo.select_shown")
    assert "5 of 60 selected" in text_of(test)
    token = test.query_params["selected"]
    token = token[0] if isinstance(token, list) else token
    for page in PAGES:
        again = opened(page, synthetic_folder, selected=token)
        assert not again.exception and "5 of 60 selected" in text_of(again), page
    other = opened("Zoo", synthetic_folder, selected="0123456789ab")
    assert not other.exception and "selected" not in text_of(other), "a name that nobody saved selects nothing"
    assert "asks for a selection" in other.toast[0].value and not other.run().toast


def test_invert_isolate_save_and_clear(synthetic_folder: Path) -> None:
    test = settled(opened("Zoo", synthetic_folder, q="lora003"))
    press(test, "zoo.select_shown")
    press(test, "frame.invert")
    assert "59 of 60 selected" in text_of(test)
    press(test, "frame.invert")
    test.text_input(key="zoo.q").set_value("").run()
    assert "60 of 60 LoRAs" in text_of(test)
    test.toggle(key="frame.isolated").set_value(True).run()
    assert "1 of 60 LoRAs" in text_of(test)
    test.text_input(key="frame.slice_name").set_value("the fourth").run()
    press(test, "frame.slice_save")
    press(test, "frame.clear")
    assert "0 of 60 selected" in text_of(test), "the saved slice is still offered"
    test.selectbox(key="frame.slice").set_value("the fourth").run()
    assert "1 of 60 selected" in text_of(test)


def test_duplicates_and_the_unwell_are_found_on_the_zoo_page(synthetic_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(synthetic_folder, folder)
    shutil.copytree(folder / "lora000", folder / "copy")
    test = settled(opened("Zoo", folder))
    assert not test.exception
    assert "Same function (1)" in [tab.label for tab in test.tabs]
    press(test, "zoo.select_same")
    assert "2 of 61 selected" in text_of(test)


def test_a_regular_expression_that_is_none_is_an_error_with_advice(synthetic_folder: Path) -> None:
    test = settled(opened("Zoo", synthetic_folder, q="/lora(/"))
    assert not test.exception and "no regular expression" in text_of(test)


SPACES = ["Updates ⟨ΔW₁, ΔW₂⟩", "Directions of updates", "Singular values", "Sketches of updates", "latent"]


@pytest.mark.parametrize("space", SPACES)
def test_the_map_is_drawn_in_every_space(space: str, synthetic_folder: Path) -> None:
    if space == "latent":
        trained(synthetic_folder, "gl_net")
        space = "Latent of GL-net → size (seed 0)"
    test = settled(opened("Map", synthetic_folder, space=space))
    assert not test.exception and not test.error
    assert "distance in" in text_of(test) and len(test.get("plotly_chart")) == 1
    press(test, "map.select_neighbours")
    assert "9 of 60 selected" in text_of(test)
    assert any("says" in frame.value.columns for frame in test.dataframe), "what tells them apart"


@pytest.mark.xdist_group("umap")  # as in test_embedding.py: it is compiled once
def test_a_map_by_umap_is_the_same_again(synthetic_folder: Path) -> None:
    pictures = []
    for _ in range(2):
        test = settled(opened("Map", synthetic_folder, method="UMAP"))
        assert not test.exception
        pictures.append(next(iter(test.session_state["session"].maps.values())).picture)
    pd.testing.assert_frame_equal(*pictures)


def test_what_is_exported_has_labels_predictions_and_places(synthetic_folder: Path) -> None:
    trained(synthetic_folder, "gl_net")
    test = opened("Predictions", synthetic_folder)
    press(test, "predictions.select_highest")
    test.switch_page("pages/Map.py").run()
    test = settled(test)
    caption = next(c.value for c in test.caption if str(c.value).startswith("Export"))
    assert "predicted size" in caption
    assert len(test.get("download_button")) >= 2
    session = test.session_state["session"]
    columns = {name for table in next(iter(session.computed.values())).values() for name in table.columns}
    assert columns == {"predicted size", "error", "map PCA 1", "map PCA 2"}
    assert 1 <= len(next(iter(session.selections.values()))) <= 20


def test_a_lora_is_resized_and_saved_in_other_forms(synthetic_folder: Path) -> None:
    before = Zoo.open(synthetic_folder).fingerprint
    test = opened("LoRA", synthetic_folder, lora="lora000")
    assert "‖ΔW − ΔW′‖ / ‖ΔW‖ = **0**" in text_of(test) and test.selectbox(key="lora.form PEFT").options == ["PEFT"]
    test.slider(key="lora.resize_rank").set_value(1).run()
    assert not test.exception and "at most" in text_of(test)
    assert Zoo.open(synthetic_folder).fingerprint == before, "nothing was written into the collection"


def test_the_table_is_filtered_by_labels_numbers_and_predictions(synthetic_folder: Path) -> None:
    trained(synthetic_folder, "gl_net")
    test = opened("Predictions", synthetic_folder)
    test.switch_page("pages/Zoo.py").run()
    test = settled(test)

    def shown() -> int:
        return next(int(c.value.split()[0]) for c in test.caption if "of 60 LoRAs" in str(c.value))

    by = next(widget for widget in test.multiselect if widget.key == "zoo.by")
    assert {"kind", "size (kB)", "size", "‖ΔW‖", "predicted size"} <= set(by.options)
    by.set_value(["kind", "predicted size"]).run()
    labels = Zoo.open(synthetic_folder).labels
    next(widget for widget in test.multiselect if widget.key == "zoo.values kind").set_value(["big"]).run()
    big = int((labels["kind"] == "big").sum())
    assert shown() == big
    slider = next(widget for widget in test.slider if widget.key == "zoo.range predicted size")
    middle = (slider.min + slider.max) / 2
    slider.set_range(middle, slider.max).run()
    assert not test.exception and 0 < shown() < big


def test_collections_opened_before_are_offered_and_open_ones_switched(synthetic_folder: Path, tmp_path: Path) -> None:
    write_zoo(tmp_path / "other", 3)
    test = opened("Home", synthetic_folder)
    test.query_params["collection"] = str(tmp_path / "other")
    test.run()
    while (job := test.session_state["session"].opening) is not None:
        job.wait(PATIENCE)
        test.run()
    assert any(str(synthetic_folder) == button.label for button in test.button), (
        "the earlier one stands under Opened before"
    )
    switch = next(box for box in test.sidebar.selectbox if box.label == "Open collections")
    assert switch.options == ["synthetic (60)", "other (3)"]
    switch.set_value(0).run()
    assert (
        not test.exception
        and "collection" in test.query_params
        and "60 LoRAs open" in "".join(str(c.value) for c in test.caption)
    )
