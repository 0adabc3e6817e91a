"""Every page with a full, a small, an unlabelled, a refused-only and an absent collection: no exception, and what it
must show.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import pandas as pd
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from lol_core.collections import index
from lol_core.collections.describe import describe
from lol_core.collections.entry import Entry
from lol_core.collections.walk import Candidate
from lol_core.collections.zoo import Zoo
from lol_core.experiments.paper import PUBLISHED
from lol_core.insight.survey import Survey
from lol_core.insight.surveys import Surveys
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.conftest import ROOT, SAMPLE_ZOO
from tests.waiting import PATIENCE
from ui import home as home_page
from ui import predicting
from ui.frame import PAGES as LINKS
from ui.state import runs_folder

PAGES = {label: path for path, label, _ in LINKS}


def opened(page: str, folder: Path | str | None, **params: str) -> AppTest:
    """A page as a deep link opens it. params: values of its widgets by their names there, or the selection."""
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE)
    if page != "Home":
        test.switch_page(PAGES[page])
    if folder:
        test.query_params["collection"] = str(folder)
    for name, value in params.items():
        test.query_params[name if name == "selected" else f"{page.lower()}.{name}"] = value
    predicting.SOON = PATIENCE  # for what a model says a page waits to the end, on machines of any speed
    test.run()
    while (job := test.session_state["session"].opening) is not None:
        job.wait(PATIENCE)
        test.run()
    return test


def settled(test: AppTest) -> AppTest:
    """Rerun until the background work of the page has ended and shown itself."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        session = test.session_state["session"]
        if not any(
            job is not None and job.running
            for job in (
                session.survey,
                session.examining,
                session.mapping,
                session.drawing,
                session.validation,
                session.experiment,
                session.editing,
                session.merging,
            )
        ):
            return test.run()
        time.sleep(0.2)
        test.run()
    raise AssertionError("the work did not end")


def text_of(test: AppTest) -> str:
    kinds = (test.title, test.subheader, test.markdown, test.caption, test.info, test.error, test.warning, test.success)
    return "\n".join(str(element.value) for kind in kinds for element in kind) + "\n".join(
        f"{m.label}={m.value}" for m in test.metric
    )


def trained(folder: Path, *models: str, targets: tuple[str, ...] = ("size",)) -> Zoo:
    """Models in the place where the app keeps those of a collection."""
    zoo = Zoo.open(folder)
    for model in models:
        config = TrainingConfig(model=model, model_config=ModelConfig(width=16), epochs=3, batch_size=16)
        train(zoo, plan(zoo, targets, config), config, runs_folder(zoo) / f"{model}-{'-'.join(targets)}")
    return zoo


def test_the_sample_zoo_opens_by_itself() -> None:
    count = len(list((SAMPLE_ZOO / "loras").iterdir()))
    for page in PAGES:
        test = opened(page, None)
        assert not test.exception and not test.error, page
        assert f"{count} LoRAs open, 0 files refused" in text_of(test)


@pytest.mark.parametrize("page", PAGES)
def test_a_small_collection(page: str, synthetic_folder: Path) -> None:
    test = opened(page, synthetic_folder)
    assert not test.exception and not test.error
    assert test.title[0].value == ("LoL Explorer" if page == "Home" else page)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "synthetic"
    write_zoo(folder, 1500)
    return folder


written_once = pytest.mark.xdist_group("large")


@written_once
def test_a_large_collection(large: Path) -> None:
    for page in PAGES:
        test = opened(page, large)
        assert not test.exception and not test.error, page
        assert "1,500 LoRAs open" in text_of(test)
        if (job := test.session_state["session"].mapping or test.session_state["session"].survey) is not None:
            job.stop()


@pytest.mark.parametrize("page", PAGES)
def test_a_folder_that_is_not_there_says_what_to_do(page: str, tmp_path: Path) -> None:
    test = opened(page, tmp_path / "nowhere")
    assert not test.exception
    assert "not a folder" in test.error[0].value
    if page in ("Home", "Experiments"):  # which show what they can without a collection
        assert {"Open", "Run it small"} & {button.label for button in test.button}
    else:
        assert "sidebar" in test.info[0].value


def needs_loras(page: str) -> bool:
    """Experiments are measured on the sample zoos, whatever collection is open."""
    return page != "Experiments"


@pytest.mark.parametrize("page", PAGES)
def test_refused_files_only(page: str, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"xx")
    test = opened(page, tmp_path)
    assert not test.exception and not test.error
    assert ("No LoRA could be read" in text_of(test)) == needs_loras(page)


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_folder(page: str, tmp_path: Path) -> None:
    test = opened(page, tmp_path)
    assert not test.exception and ("No LoRA could be read" in text_of(test)) == needs_loras(page)


@pytest.mark.parametrize("page", PAGES)
def test_a_collection_without_labels(page: str, tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    (tmp_path / "labels.csv").unlink()
    test = opened(page, tmp_path)
    assert not test.exception and not test.error
    if page == "Train":
        assert "labels.csv" in text_of(test)


def test_the_published_files(real_loras: Path) -> None:
    for page in PAGES:
        test = opened(page, real_loras)
        assert not test.exception and not test.error, page
        assert "63 LoRAs open, 12 files refused" in text_of(test)
        if page == "Zoo":
            reasons = next(frame.value for frame in test.table if "bytes" in frame.value.columns)
            assert len(reasons) == 12 and reasons["reason"].str.len().min() > 20


@pytest.mark.parametrize("page", PAGES)
def test_a_folder_that_vanishes_while_it_is_open(page: str, tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 12)
    test = opened(page, tmp_path / "zoo")
    shutil.rmtree(tmp_path / "zoo")
    test.run()
    assert not test.exception and "has gone" in test.error[0].value


def test_the_zoo_page_filters(synthetic_folder: Path) -> None:
    test = settled(opened("Zoo", synthetic_folder, q="lora01"))
    assert "10 of 60 LoRAs" in text_of(test)
    test.text_input(key="zoo.q").set_value("nothing like it").run()
    assert "No LoRA matches" in text_of(test) and not test.exception
    test.text_input(key="zoo.q").set_value("").run()
    assert "60 of 60 LoRAs" in text_of(test) and not test.exception


def test_train_without_labels_leads_to_those_that_the_files_offer(tmp_path: Path) -> None:
    for i in range(2):
        write_peft(tmp_path / f"lora{i}", random_lora(MODULES, i))
    test = opened("Train", tmp_path)
    (link,) = [link for link in test.main.get("page_link") if "labels" in link.proto.label]
    assert "no labels" in text_of(test) and link.proto.page == "Zoo" and not test.exception


def test_the_zoo_page_offers_the_filters_that_tell_loras_apart(tmp_path: Path) -> None:
    write_zoo(tmp_path, 4)
    write_peft(tmp_path / "odd", random_lora([(name, n, m, 1) for name, n, m, _ in MODULES]))
    test = settled(opened("Zoo", tmp_path, dialect="PEFT"))
    assert {"zoo.rank"} == {box.key for box in test.multiselect} & {"zoo.rank", "zoo.dialect", "zoo.base"}
    test.multiselect(key="zoo.rank").set_value([1]).run()
    assert "1 of 5 LoRAs" in text_of(test) and not test.exception


def test_layers_are_listed_in_the_order_of_their_blocks(tmp_path: Path) -> None:
    shapes = [(f"model.layers.{i}.self_attn.q_proj", 6, 5, 2) for i in range(12)]
    write_peft(tmp_path / "a", random_lora(shapes, 0))
    names = [name for name, *_ in shapes]
    assert [header.name for header in Zoo.open(tmp_path).entries[0].headers] != names, "a file sorts them as text"
    test = opened("LoRA", tmp_path)
    assert list(next(table.value for table in test.dataframe if "scale" in table.value.columns)["module"]) == names
    test = opened("Invariance", tmp_path)
    options = test.selectbox(key="invariance.module").options
    assert [option.split(" ")[0] for option in options] == names and not test.exception


def test_a_score_that_is_not_known_says_so(tmp_path: Path) -> None:
    write_zoo(tmp_path, 40)
    trained(tmp_path, "svd")
    test = opened("Predictions", tmp_path)
    scores = next(table for table in test.dataframe if "Kendall τ" in table.value.columns)
    assert scores.value["Kendall τ"].isna()["test, control: constant"], "a constant ranks nothing"
    assert scores.proto.placeholder == "not known" and not test.exception


@written_once
def test_more_loras_than_a_table_holds_are_sorted_searched_and_turned_over(large: Path) -> None:
    test = opened("Zoo", large)

    def shown() -> pd.DataFrame:
        return next(table.value for table in test.dataframe if "name" in table.value)

    assert len(shown()) == 500 and "1,500 of 1,500 LoRAs" in text_of(test) and not test.exception
    test.number_input(key="zoo.page_3").set_value(2).run()
    assert list(shown()["path"]) == Zoo.open(large).ids[500:1000]
    test.number_input(key="zoo.page_3").set_value(1).run()
    test.selectbox(key="zoo.sort").set_value("size").run()
    labels = Zoo.open(large).labels["size"]
    assert list(shown()["size"]) == sorted(labels)[:500]
    test.toggle(key="zoo.falling").set_value(True).run()
    assert list(shown()["size"]) == sorted(labels, reverse=True)[:500]
    test.text_input(key="zoo.q").set_value("lora12").run()
    assert "110 of 1,500 LoRAs" in text_of(test) and len(shown()) == 110
    assert not test.exception and not [box for box in test.selectbox if box.key == "zoo.sort"]
    test.session_state["session"].survey.stop()


@written_once
def test_a_box_offers_some_of_very_many_and_all_by_a_search(large: Path) -> None:
    last = Zoo.open(large).ids[-1]
    test = opened("LoRA", large, lora=last)
    box = test.selectbox(key="lora.lora")
    assert box.value == last and len(box.options) == 1001 and not test.exception
    test.text_input(key="lora.lora_search").set_value("lora149").run()
    test.selectbox(key="lora.lora").set_value("lora1495/adapter_model.safetensors").run()
    assert test.query_params["lora.lora"] in (
        ["lora1495/adapter_model.safetensors"],
        "lora1495/adapter_model.safetensors",
    )
    assert not test.exception and not test.error
    test.text_input(key="lora.lora_search").set_value("/[/").run()
    assert not test.exception and "no regular expression" in test.error[0].value


def test_loras_without_a_module_in_common_leave_the_rest_of_the_page(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", random_lora(MODULES, 0))
    write_peft(tmp_path / "b", random_lora([("elsewhere", 5, 7, 2)], 0))
    test = opened("LoRA", tmp_path, lora="a/adapter_model.safetensors", beside="b/adapter_model.safetensors")
    assert not test.exception and any("share no module" in info.value for info in test.info)
    assert "Everything, as the file has it" in [box.label for box in test.expander]


def test_a_lora_that_was_never_trained_says_so_and_is_not_what_invariance_opens_with(tmp_path: Path) -> None:
    write_zoo(tmp_path, 4)
    lora = random_lora(MODULES, 0)
    write_peft(
        tmp_path / "a", replace(lora, layers=tuple(y.with_pair(torch.zeros_like(y.U), y.V) for y in lora.layers))
    )
    (tmp_path / "labels.csv").unlink()
    test = opened("LoRA", tmp_path)
    assert test.selectbox(key="lora.lora").value == "a/adapter_model.safetensors"
    assert "never trained" in test.warning[0].value and not test.get("plotly_chart") and not test.exception
    test = opened("Invariance", tmp_path)
    assert test.selectbox(key="invariance.lora").value == "lora000/adapter_model.safetensors" and not test.exception
    test = settled(opened("Zoo", tmp_path))
    assert "Unwell (1)" in [tab.label for tab in test.tabs]
    whole = next(table.value for table in test.table if "reason" in table.value.columns)
    assert whole["reason"].to_dict() == {
        "a/adapter_model.safetensors": "ΔW is zero in every module: it was never trained."
    }


def test_a_broken_file_on_the_lora_page(tmp_path: Path) -> None:
    write_zoo(tmp_path, 2)
    test = opened("LoRA", tmp_path)
    path = tmp_path / "lora000" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    test.run()
    assert not test.exception
    test = opened("LoRA", tmp_path, lora="lora000")
    assert not test.exception and "1 LoRA open, 1 file refused" in text_of(test)


def test_the_newer_models_are_shown_like_the_five(tmp_path: Path) -> None:
    write_zoo(tmp_path, 40)
    trained(tmp_path, *PUBLISHED)
    for page in ("Train", "Predictions", "Invariance", "Images"):
        test = settled(opened(page, tmp_path))
        assert not test.exception and not test.error, page
    for page, key, word in (("LoRA", "lora.coloured_by", "contribution"), ("Map", "map.space", "Latent")):
        test = settled(opened(page, tmp_path))
        options = [option for option in test.selectbox(key=key).options if word in option]
        assert len(options) == len(PUBLISHED)
        for option in options:
            test = settled(test.selectbox(key=key).select(option).run())
            assert not test.exception and not test.error, option


def test_what_a_sidecar_claims_is_shown_as_claimed_and_searched(tmp_path: Path) -> None:
    write_zoo(tmp_path, 6)
    (tmp_path / "labels.csv").unlink()
    claims = {"trainedWords": ["zibble"], "baseModel": "SD 1.5", "model": {"name": "A zibble", "tags": ["animal"]}}
    (tmp_path / "lora003" / "adapter_model.civitai.info").write_text(json.dumps(claims))
    Image.new("RGB", (40, 60), "red").save(tmp_path / "lora003" / "adapter_model.preview.png")
    test = opened("LoRA", tmp_path, lora="lora003/adapter_model.safetensors")
    text = text_of(test)
    assert not test.exception and "Claimed by adapter_model.civitai.info" in text
    assert "`zibble`" in text and "animal" in text and "SD 1.5" in text and len(test.get("image"))
    assert "Claimed by" not in text_of(opened("LoRA", tmp_path, lora="lora002/adapter_model.safetensors"))
    test = settled(opened("Zoo", tmp_path, q="zibble"))
    assert "1 of 6 LoRAs" in text_of(test) and not test.exception
    table = next(frame.value for frame in test.dataframe if "trigger words (claimed)" in frame.value.columns)
    assert list(table["trigger words (claimed)"]) == ["zibble"]
    assert {"tags (claimed)", "base model (claimed)"} <= set(table.columns)
    by = next(widget for widget in test.multiselect if widget.key == "zoo.by")
    assert "tags (claimed)" in by.options


def test_home_goes_on_where_an_address_is_wrong(tmp_path: Path, synthetic_folder: Path) -> None:
    home = opened("Home", tmp_path / "nowhere")
    assert not home.exception and "not a folder" in home.error[0].value
    field = next(each for each in home.text_input if each.label.startswith("A folder"))
    field.set_value(str(synthetic_folder)).run()
    next(each for each in home.button if each.label == "Open").click().run()
    assert not home.exception and home.query_params["collection"] == str(synthetic_folder)


def test_home_opens_what_is_typed_there(synthetic_folder: Path) -> None:
    home = opened("Home", SAMPLE_ZOO)
    field = next(each for each in home.text_input if each.label.startswith("A folder"))
    field.input(str(synthetic_folder)).run()
    next(each for each in home.button if each.label == "Open").click().run()
    assert not home.exception
    assert home.query_params["collection"] == str(synthetic_folder)


def test_the_folder_picker_opens_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(home_page, "open_collection", chosen.append)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, "/my/loras\n"))
    home_page.choose()
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, "\n"))
    home_page.choose()
    assert chosen == ["/my/loras"], "a window that was closed opens nothing"


def test_who_opens_a_collection_again_meets_the_reading_that_runs_and_then_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, 4)
    go_on, searches = Event(), list[int]()

    def slow(*found: object, **_: object) -> pd.DataFrame:
        searches.append(len(found))
        go_on.wait(PATIENCE)
        return pd.DataFrame(columns=["group", "lora", "identical"])

    monkeypatch.setattr("ui.work.duplicates", slow)
    first, second = (opened("Zoo", tmp_path).session_state["session"].survey for _ in range(2))
    assert first is second and first.running
    go_on.set()
    first.wait(PATIENCE)
    third = opened("Zoo", tmp_path)
    assert third.session_state["session"].survey is first and len(searches) == 1 and not third.exception


def test_what_is_being_read_of_the_weights_is_not_taken_up_at_every_rerun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, 100)
    go_on, taken, counts = Event(), list[int](), iter(range(1000))
    known = Surveys.known

    def counted(surveys: Surveys) -> dict[str, Survey]:
        taken.append(1)
        return known(surveys)

    monkeypatch.setattr(Surveys, "complete", lambda *_: go_on.wait(PATIENCE) and {})
    monkeypatch.setattr(Surveys, "count", lambda _: next(counts))
    test = opened("Zoo", tmp_path)
    monkeypatch.setattr(Surveys, "known", counted)
    for _ in range(8):
        test.run()
    go_on.set()
    assert next(counts) >= 8 and 1 <= len(taken) <= 3 and not test.exception


def test_a_collection_that_is_still_being_read_shows_what_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, 7)
    reached, goes_on = Event(), Event()

    def slow(folder: Path, candidate: Candidate) -> Entry:
        if candidate.id.startswith("lora005"):
            reached.set()
            assert goes_on.wait(PATIENCE)
        return describe(folder, candidate)

    monkeypatch.setattr(index, "describe", slow)
    monkeypatch.setattr(index, "BLOCK", 2)
    monkeypatch.setattr("ui.frame.PATIENCE", 0.0)
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE).switch_page(PAGES["Zoo"])
    test.query_params["collection"] = str(tmp_path)
    try:
        test.run()
        assert reached.wait(PATIENCE)
        test.run()
        assert list(test.dataframe[0].value["name"]) == [f"lora{i:03d}/adapter_model.safetensors" for i in range(4)]
        assert any("4 LoRAs known so far" in caption.value for caption in test.caption) and not test.exception
    finally:
        goes_on.set()
    test.session_state["session"].opening.wait(PATIENCE)
    test.run()
    assert len(test.dataframe[0].value) == 7 and not any("so far" in caption.value for caption in test.caption)
