"""What first-time visitors bring: few LoRAs that are read at once, labels and names of every sort."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from lol_core.collections.zoo import Zoo
from lol_core.errors import ZooError
from lol_core.formats.writing import write
from lol_core.insight import plots
from lol_core.insight.predictions import Predictions
from lol_core.learning.tasks import make_task
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.test_pages import PAGES, opened, settled, text_of
from tests.waiting import PATIENCE, until
from ui import listing, survey
from ui.figures import as_csv, numbers_of
from ui.jobs import sentence
from ui.plain import plain


def button(test: AppTest, label: str) -> Button:
    return next(button for button in test.button if button.label == label)


def test_weights_read_while_the_page_waits_are_shown_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path, 3)
    lora = random_lora(MODULES, 0)
    still = replace(lora, layers=tuple(y.with_pair(torch.zeros_like(y.U), y.V) for y in lora.layers))
    write_peft(tmp_path / "never", still)
    monkeypatch.setattr(survey, "PATIENCE", PATIENCE)
    test = opened("Zoo", tmp_path)
    assert not test.exception and "Unwell (1)" in [tab.label for tab in test.tabs]
    assert "‖ΔW‖" in test.dataframe[0].value.columns


def test_numbers_of_every_size_are_filtered_by_their_range(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path, 12)
    count = range(len(labels))
    rates = [1e-5 * (i + 1) for i in count]
    awkward = {"rate": rates, "infinite": [float("inf"), *count[1:]], "huge": [10**18 + i for i in count]}
    awkward["partly"] = [None, *count[1:]]
    labels.assign(**awkward).to_csv(tmp_path / "labels.csv", index=False)
    for name in ("infinite", "partly"):
        test = opened("Zoo", tmp_path, by=name)
        low, high = test.slider[0].value
        assert not test.exception and (low, high) == (1, 11) and "12 of 12 LoRAs" in text_of(test)
    test.slider[0].set_range(1, 5).run()
    assert "5 of 12 LoRAs" in text_of(test)
    test = opened("Zoo", tmp_path, by="rate")
    test.slider[0].set_range(3e-5, test.slider[0].value[1]).run()
    assert "10 of 12 LoRAs" in text_of(test)
    test = opened("Zoo", tmp_path, by="huge")
    assert not test.exception and not test.slider and len(test.multiselect(key="zoo.values huge").options) == 12


def test_a_slice_is_taken_up_again_after_the_selection_has_changed(tmp_path: Path) -> None:
    write_zoo(tmp_path, 4)
    test = opened("Zoo", tmp_path, q="lora001")
    test.button(key="zoo.select_shown").click().run()
    test.text_input(key="frame.slice_name").set_value("one").run()
    test.button(key="frame.slice_save").click().run()
    for _ in range(2):
        test.button(key="frame.clear").click().run()
        assert "**0 of 4 selected**" in text_of(test)
        test.selectbox(key="frame.slice").set_value("one").run()
        assert "**1 of 4 selected**" in text_of(test) and not test.exception


def test_names_and_claims_are_no_markdown(tmp_path: Path) -> None:
    write_peft(tmp_path / "$a$ **b**", random_lora(MODULES, 0), base_model_name_or_path="![x](http://elsewhere/x.png)")
    write_peft(tmp_path / "c", random_lora(MODULES, 1))
    (tmp_path / "![x](http:).safetensors").write_bytes(b"none")
    test = opened("LoRA", tmp_path)
    assert r"claims: !\[x\](http\://elsewhere/x.png)" in text_of(test) and not test.exception
    test = opened("Zoo", tmp_path)
    refused = next(table.value for table in test.table if "reason" in table.value.columns)
    assert list(refused.index) == [r"!\[x\](http:).safetensors"]
    assert plain("adapter_model.bin: 1.5 of b-c") == "adapter_model.bin: 1.5 of b-c"
    assert plain("1. _a_") == r"1\. \_a\_" and plain("#1 :red[x]") == r"\#1 \:red\[x\]"


def test_a_picture_in_a_table_of_labels_is_told_and_not_shown(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", random_lora(MODULES, 0))
    pd.DataFrame({"![x](https://elsewhere/p.png)": ["b"], "name": ["c"]}).to_csv(tmp_path / "labels.csv", index=False)
    test = opened("Zoo", tmp_path)
    told = " ".join(element.value for element in (*test.warning, *test.error, *test.caption))
    assert "elsewhere" in told and "![" not in told and "](" not in told
    assert sentence(ZooError("Run `x`: ![a](b)")) == r"Run `x`: \!\[a\]\(b)"


def test_a_collection_of_refused_files_names_the_tab_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"none")
    test = opened("Zoo", tmp_path)
    assert "The tab **Refused (1)** says why" in test.info[0].value
    assert [tab.label for tab in test.tabs] == ["LoRAs (0)", "Unwell (0)", "Same function (0)", "Refused (1)"]


def test_a_page_loaded_again_finds_the_training_that_runs(tmp_path: Path) -> None:
    write_zoo(tmp_path, 20)
    test = opened("Train", tmp_path, targets="size")
    test.number_input(key="train.epochs").set_value(2000)
    test.number_input(key="train.patience").set_value(0).run()
    button(test, "Train").click().run()
    again = opened("Train", tmp_path)
    job = again.session_state["session"].training
    assert job is test.session_state["session"].training and job.running
    assert button(again, "Train").disabled and not again.exception
    button(again, "Stop").click().run()
    job.wait(PATIENCE)
    assert job.stopping and not job.running
    assert opened("Train", tmp_path).session_state["session"].training is None


def test_a_map_is_coloured_by_how_good_loras_are_and_says_that_there_are_no_clusters(tmp_path: Path) -> None:
    table = write_zoo(tmp_path, 12)
    table.assign(clip_score=table["size"]).to_csv(tmp_path / "labels.csv", index=False)
    test = settled(opened("Map", tmp_path))
    assert test.selectbox(key="map.colour").value == "clip_score"
    named = test.toggle(key="map.named")
    assert named.disabled and named.help == "No clusters were found."


def test_a_map_says_how_many_it_leaves_out(tmp_path: Path) -> None:
    write_zoo(tmp_path, 4)
    lora = random_lora(MODULES, 0)
    write_peft(tmp_path / "odd", replace(lora, layers=tuple(y.with_pair(y.U / 0, y.V) for y in lora.layers)))
    test = settled(opened("Map", tmp_path))
    assert "Left out: 1 LoRA that cannot be read" in text_of(test) and not test.exception


def test_a_map_says_how_many_previews_it_shows_and_names_its_picture_in_its_files(tmp_path: Path) -> None:
    write_zoo(tmp_path, 14)
    (tmp_path / "previews").mkdir()
    for i in range(14):
        Image.new("RGB", (8, 8)).save(tmp_path / "previews" / f"lora{i:03d}.webp")
    test = settled(opened("Zoo", tmp_path))
    button(test, "Select all 14 shown").click().run()
    test.switch_page("pages/Map.py").run()
    test = settled(test)
    assert "The first 12 of 14 selected." in text_of(test) and not test.exception
    (figure,) = test.get("plotly_chart")
    assert json.loads(figure.proto.config)["toImageButtonOptions"]["filename"] == "map-PCA-updates"


def test_invariance_shows_as_much_of_a_module_as_there_is(tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    write_peft(tmp_path / "a", random_lora([(name, 16, 72, 2)]))
    test = opened("Invariance", tmp_path)
    assert "The first 16 of 16 rows of U and 48 of 72 of V" in text_of(test) and not test.exception
    titles = [json.loads(chart.proto.spec)["layout"].get("title", {}) for chart in test.get("plotly_chart")]
    assert [title["text"] for title in titles if title] == ["R"]


def test_filters_and_training_settings_stay_while_one_looks_elsewhere(tmp_path: Path) -> None:
    write_zoo(tmp_path / "one", 20)
    write_zoo(tmp_path / "two", 20, seed=1).assign(kind="other").to_csv(tmp_path / "two" / "labels.csv", index=False)
    test = opened("Zoo", tmp_path / "one")
    test.multiselect(key="zoo.by").set_value(["size", "kind"]).run()
    slider = test.slider[0]
    middle = (slider.min + slider.max) / 2
    slider.set_range(middle, slider.max)
    test.multiselect(key="zoo.values kind").set_value(["big"]).run()
    few = next(caption.value for caption in test.caption if "of 20 LoRAs" in caption.value)
    test.text_input(key="zoo.q").set_value("lora01").run()
    assert test.slider[0].value[0] == middle, "a search leaves a filter as it is"
    test.text_input(key="zoo.q").set_value("").run()
    test.switch_page(PAGES["Train"]).run()
    test.number_input(key="train.epochs").set_value(7)
    test.selectbox(key="train.group").set_value("author").run()
    test.switch_page(PAGES["Zoo"]).run()
    assert test.slider[0].value[0] == middle and few in text_of(test) and not few.startswith("20 ")
    test.switch_page(PAGES["Train"]).run()
    assert test.number_input(key="train.epochs").value == 7 and test.selectbox(key="train.group").value == "author"
    test.switch_page(PAGES["Zoo"]).run()
    next(box for box in test.text_input if box.label == "Collection").set_value(str(tmp_path / "two")).run()
    while (job := test.session_state["session"].opening) is not None:
        job.wait(PATIENCE)
        test.run()
    assert not test.exception and test.multiselect(key="zoo.values kind").value == []


def test_pictures_have_a_text_and_unread_weights_are_not_called_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, 3)
    for i in range(3):
        Image.new("RGB", (40, 40), "red").save(tmp_path / f"lora00{i}" / "adapter_model.preview.png")
    with monkeypatch.context() as patched:
        patched.setattr(survey, "READ_UNASKED", 0)
        test = opened("Zoo", tmp_path)
    assert not any("Nothing is wrong" in box.value for box in test.success)
    assert any("show nothing wrong" in box.value for box in test.info) and not test.exception
    settled(opened("Zoo", tmp_path))
    pictures = [picture for shown in opened("LoRA", tmp_path).get("image") for picture in shown.proto.imgs]
    assert len(pictures) == 1 + 4 and all(picture.alt for picture in pictures)


@pytest.mark.parametrize("form", ["PEFT", "diffusers"])
def test_a_lora_is_saved_in_the_form_it_came_in_unless_another_is_chosen(tmp_path: Path, form: str) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = random_lora([(name, 16, 72, 2)])
    write(lora, tmp_path / ("a" if form == "PEFT" else "a.safetensors"), form)
    box = next(box for box in opened("LoRA", tmp_path).selectbox if box.label == "Form")
    assert box.value == form and {"PEFT", "diffusers", "kohya"} <= set(box.options)


def test_what_a_saved_file_lacks_and_what_does_not_belong_together_is_said(tmp_path: Path) -> None:
    for name, module, base in (("a", "h.0.q", "gpt2"), ("b", "layer.0.q", "org/bert")):
        write_peft(tmp_path / name, random_lora([(module, 8, 6, 2)]), base_model_name_or_path=base)
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.score.weight": torch.ones(2, 8)}, path)
    lacks = plain("left out: score.weight (1), such as base_model.model.score.weight.")

    def captions(test: AppTest) -> str:
        return " ".join(caption.value for caption in test.caption)

    assert lacks in captions(opened("LoRA", tmp_path))
    test = opened("Edit", tmp_path, mode="Merge several")
    button(test, "Merge").click().run()
    merged = settled(test)
    assert lacks in captions(merged)
    assert "different base models: gpt2, org/bert." in merged.warning[0].value
    assert "Furthest from the sum" not in captions(merged), "it is the sum"


def test_a_lora_is_saved_in_the_numbers_and_the_form_it_came_in_also_after_another(tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = random_lora([(name, 16, 72, 2)])
    write(lora, tmp_path / "a.safetensors", "diffusers", torch.float16)
    write(lora, tmp_path / "b", "PEFT", torch.float32)
    test = opened("LoRA", tmp_path)

    def shown() -> list[str | None]:
        return [box.value for box in test.selectbox if box.label in ("Form", "Numbers")]

    assert shown() == ["diffusers", "float16"]
    test.selectbox(key="lora.lora").set_value("b/adapter_model.safetensors").run()
    assert shown() == ["PEFT", "float32"]
    merged = opened("Edit", tmp_path, mode="Merge several")
    button(merged, "Merge").click().run()
    assert [box.value for box in settled(merged).selectbox if box.label == "Numbers"] == ["float32"]


@pytest.mark.parametrize(
    ("page", "name", "told"),
    [
        ("Map", "map_neighbours", "Neighbours (UMAP): 500 is not between 2 and 200."),
        ("Invariance", "draw", "Draw: 2,000,000 is not between 1 and 1,000,000."),
        ("Images", "steps", "Sampling steps: 500 is not between 1 and 200."),
    ],
)
def test_a_number_out_of_its_limits_is_told(page: str, name: str, told: str, synthetic_folder: Path) -> None:
    test = settled(opened(page, synthetic_folder))
    field = test.number_input(key=f"{page.lower()}.{name}")
    test = field.set_value(2_000_000 if name == "draw" else 500).run()
    assert [error.value for error in test.error] == [told] and not test.exception
    assert not test.number_input(key=f"{page.lower()}.{name}").set_value(7).run().error


def test_a_page_of_a_table_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    write_zoo(tmp_path, 3)
    test = opened("Zoo", tmp_path)
    (field,) = [field for field in test.number_input if field.label.startswith("Page, of 2")]
    test = field.set_value(9).run()
    assert "There is no page 9: this is page 2." in text_of(test) and not test.exception


def test_labels_may_be_called_as_what_pages_tell_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = write_zoo(tmp_path, 12).rename(columns={"name": "file", "size": "part"})
    for taken in ("name", "dialect", "dialect (label)", "‖ΔW‖", "distance", "training run"):
        labels[taken] = labels["part"]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    monkeypatch.setattr(survey, "PATIENCE", PATIENCE)
    test = opened("Zoo", tmp_path)
    assert not test.exception
    table = test.dataframe[0].value
    assert list(table["name (label)"]) == list(table["dialect (label) (label)"]) == list(labels["part"])
    assert list(table["name"]) == list(labels["file"]) and set(table["dialect"]) == {"PEFT"}
    button(test, "Select all 12 shown").click().run()
    assert not test.exception, "the table to export"
    test.switch_page(PAGES["LoRA"]).run()
    near = next(frame.value for frame in test.dataframe if "cosine" in frame.value)
    assert not test.exception and near["distance"].is_monotonic_increasing and "distance (label)" in near


def test_predictions_of_a_label_that_is_called_part(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path, 12).rename(columns={"size": "part"})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    zoo = Zoo.open(tmp_path)
    task, ids = make_task(zoo.labels, ["part"])
    values = task.frame(zoo.labels[["part"]].to_numpy() + 1, ids)
    table = values.assign(name="a", part="test", true=0.0, predicted=1.0)
    table = Predictions(task, "part", values, table, zoo.labels[["part"]], pd.DataFrame()).whole
    assert list(table) == ["name", "part", "part (true)", "part (predicted)", "error"]
    assert set(table["part"]) == {"test"}


def test_a_training_is_seen_when_nothing_is_chosen_and_from_another_collection(tmp_path: Path) -> None:
    write_zoo(tmp_path / "one", 12)
    write_zoo(tmp_path / "two", 12).drop(columns="size").to_csv(tmp_path / "two" / "labels.csv", index=False)
    test = opened("Train", tmp_path / "one", targets="size", models="MLP")
    test.number_input(key="train.epochs").set_value(2000).run()
    test.number_input(key="train.patience").set_value(0).run()
    button(test, "Train").click().run()
    test.multiselect(key="train.targets").set_value([]).run()
    assert not test.exception and "at least one target" in text_of(test)
    assert not button(test, "Stop").disabled and button(test, "Train").disabled
    test.multiselect(key="train.targets").set_value(["size"]).run()
    assert "of another collection" not in text_of(test)
    test.text_input[0].set_value(str(tmp_path / "two")).run()
    targets = test.multiselect(key="train.targets")
    assert targets.value == ["positive"], "what stands there first"
    assert targets.proto.set_value, "or the browser shows the other collection's"
    assert "of another collection" in text_of(test)
    button(test, "Stop").click().run()
    until(lambda: not test.session_state["session"].training.running, "the end of the training")


def test_labels_are_no_markdown_and_numbers_that_are_classes_are_told(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path, 12)
    labels["$a$ **b**"], labels["percent"] = labels["size"], [f"{i}%" for i in range(12)]
    labels["comma"], labels["day"] = [f"0,{i % 6}" for i in range(12)], [f"2024-01-0{1 + i % 6}" for i in range(12)]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    test = opened("Train", tmp_path, targets="$a$ **b**")
    assert r"\$a\$ \*\*b\*\*: regression, 12 labelled" in text_of(test)
    test.multiselect(key="train.targets").set_value(["percent"]).run()
    assert "12 classes; most are numbers, but not '0%', so each is a class" in text_of(test)
    test.multiselect(key="train.targets").set_value(["comma"]).run()
    assert "6 classes; most are numbers, but not '0,0', so each is a class" in text_of(test)
    test.multiselect(key="train.targets").set_value(["day"]).run()
    assert "6 classes; dates, of which each is a class" in text_of(test)


def test_a_labels_file_that_cannot_be_read_is_what_to_correct(tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    test = opened("Zoo", tmp_path)
    next(field for field in test.text_input if field.label == "Labels file").set_value(str(tmp_path / "gone.csv")).run()
    assert "gone.csv: the labels cannot be read" in test.error[0].value
    assert "**Labels file**" in test.info[0].value and not test.exception


def test_numbers_of_figures_say_of_what_they_are() -> None:
    pair = {"U": np.eye(2), "ΔW": np.ones((2, 2))}
    table = numbers_of(plots.factor_heatmaps(pair, pair))
    assert list(table["matrix"].unique()) == ["U before", "U after", "ΔW before", "ΔW after"]
    assert set(numbers_of(plots.matrix(np.eye(2), "R of a"))["matrix"]) == {"R of a"}
    assert set(numbers_of(plots.matrices(pair))["matrix"]) == {"U", "ΔW"}
    assert as_csv(pd.DataFrame({"norm": [1.5]}, index=["a"])) == "row,norm\na,1.5\n"
    assert as_csv(pd.DataFrame({"norm": [1.5]})) == "norm\n1.5\n"


def training_tabs(folder: Path) -> list[AppTest]:
    """Two tabs, of which the first trains for long and the second waits for it."""
    write_zoo(folder, 12)
    tabs = [opened("Train", folder, targets="size", models="MLP") for _ in range(2)]
    for tab in tabs:
        tab.number_input(key="train.epochs").set_value(2000).run()
        tab.number_input(key="train.patience").set_value(0).run()
        button(tab, "Train").click().run()
    return tabs


def test_the_training_that_runs_is_found_again_after_one_that_waited_was_stopped(tmp_path: Path) -> None:
    tabs = training_tabs(tmp_path)
    button(tabs[1], "Stop").click().run()
    jobs = [tab.session_state["session"].training for tab in tabs]
    until(lambda: not jobs[1].running, "the end of the training that waits")
    assert "stopped before it began" in text_of(tabs[1].run()) and jobs[0].running
    again = opened("Train", tmp_path)
    assert again.session_state["session"].training is jobs[0]
    button(again, "Stop").click().run()
    until(lambda: not jobs[0].running, "the end of the training")


def test_the_training_of_another_tab_is_told_and_can_be_stopped_from_this_one(tmp_path: Path) -> None:
    tabs = training_tabs(tmp_path)
    first, second = (tab.session_state["session"].training for tab in tabs)
    tabs = [opened("Train", tmp_path) for _ in tabs]  # both are loaded again
    assert all(tab.session_state["session"].training is first for tab in tabs)
    assert "Another training runs or waits: MLP, seed 0." in text_of(tabs[1])
    button(tabs[1], "Show it here").click().run()
    assert tabs[1].session_state["session"].training is second
    for tab in tabs:
        button(tab, "Stop").click().run()
    until(lambda: not (first.running or second.running), "the end of both trainings")
    assert "Another training" not in text_of(tabs[0].run())
