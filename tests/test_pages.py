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

import pandas as pd
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from lol_core.collections.zoo import Zoo
from lol_core.experiments import OF_PAPER
from lol_core.experiments.paper import SINCE
from lol_core.experiments.result import Result
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig
from lol_core.learning.models import ModelConfig
from lol_core.learning.parts import parts_here
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.conftest import ROOT, SAMPLE_ZOO
from tests.waiting import PATIENCE, until
from ui import home as home_page
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


@pytest.mark.parametrize("page", PAGES)
def test_the_sample_zoo_opens_by_itself(page: str) -> None:
    test = opened(page, None)
    assert not test.exception and not test.error
    count = len(list((SAMPLE_ZOO / "loras").iterdir()))
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


@pytest.mark.parametrize("page", PAGES)
def test_a_large_collection(page: str, large: Path) -> None:
    test = opened(page, large)
    assert not test.exception and not test.error
    assert "1,500 LoRAs open" in text_of(test)
    if (job := test.session_state["session"].mapping or test.session_state["session"].survey) is not None:
        job.stop()


@pytest.mark.parametrize("page", PAGES)
def test_a_folder_that_is_not_there_says_what_to_do(page: str, tmp_path: Path) -> None:
    test = opened(page, tmp_path / "nowhere")
    assert not test.exception
    assert "not a folder" in test.error[0].value and "sidebar" in test.info[0].value


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


@pytest.mark.parametrize("page", PAGES)
def test_the_published_files(page: str, real_loras: Path) -> None:
    test = opened(page, real_loras)
    assert not test.exception and not test.error
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
    for key, value in (("rank", 2), ("dialect", "PEFT")):
        test.multiselect(key=f"zoo.{key}").set_value([value]).run()
        assert "60 of 60 LoRAs" in text_of(test) and not test.exception


def test_links_from_before_keys_had_a_place_still_set_their_widgets(synthetic_folder: Path) -> None:
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE).switch_page(PAGES["Zoo"])
    for name, value in (("collection", str(synthetic_folder)), ("q", "lora01"), ("dialect", "PEFT"), ("rank", "2")):
        test.query_params[name] = value
    test.run()
    assert test.text_input(key="zoo.q").value == "lora01" and "10 of 60 LoRAs" in text_of(test)
    assert test.multiselect(key="zoo.dialect").value == ["PEFT"] and test.multiselect(key="zoo.rank").value == [2]
    assert "q" not in test.query_params and not test.exception


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


def test_more_loras_than_a_table_holds_are_sorted_searched_and_turned_over(large: Path) -> None:
    test = opened("Zoo", large)

    def shown() -> pd.DataFrame:
        return next(table.value for table in test.dataframe if "name" in table.value)

    assert len(shown()) == 500 and "1,500 of 1,500 LoRAs" in text_of(test) and not test.exception
    test.number_input(key="zoo.page").set_value(2).run()
    assert list(shown()["path"]) == Zoo.open(large).ids[500:1000]
    test.number_input(key="zoo.page").set_value(1).run()
    test.selectbox(key="zoo.sort").set_value("size").run()
    labels = Zoo.open(large).labels["size"]
    assert list(shown()["size"]) == sorted(labels)[:500]
    test.toggle(key="zoo.falling").set_value(True).run()
    assert list(shown()["size"]) == sorted(labels, reverse=True)[:500]
    test.text_input(key="zoo.q").set_value("lora12").run()
    assert "110 of 1,500 LoRAs" in text_of(test) and len(shown()) == 110
    assert not test.exception and not [box for box in test.selectbox if box.key == "zoo.sort"]
    test.session_state["session"].survey.stop()


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


def test_a_deep_link_to_a_lora(synthetic_folder: Path) -> None:
    test = opened("LoRA", synthetic_folder, lora="lora007/adapter_model.safetensors")
    assert test.selectbox(key="lora.lora").value == "lora007/adapter_model.safetensors" and not test.exception
    layers = next(frame.value for frame in test.dataframe if "effective rank" in frame.value.columns)
    assert len(layers) == 3 and (layers["effective rank"] <= 2).all()


def test_links_carry_ids_and_not_names(tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    write_peft(tmp_path / "lora001.bin", random_lora(MODULES, 9))
    (tmp_path / "lora001.bin" / "adapter_model.safetensors").rename(tmp_path / "lora001.safetensors")
    shutil.rmtree(tmp_path / "lora001.bin")
    (tmp_path / "labels.csv").unlink()
    names = Zoo.open(tmp_path).names
    assert "lora001" not in names.values(), "two files share it, and one was there before the other"
    test = opened("LoRA", tmp_path, lora="lora001/adapter_model.safetensors", beside="lora001.safetensors")
    assert test.selectbox(key="lora.lora").value == "lora001/adapter_model.safetensors"
    assert test.selectbox(key="lora.beside").value == "lora001.safetensors" and not test.exception
    test.selectbox(key="lora.lora").set_value("lora002/adapter_model.safetensors").run()
    assert test.query_params["lora.lora"] in (
        "lora002/adapter_model.safetensors",
        ["lora002/adapter_model.safetensors"],
    )
    test.selectbox(key="lora.lora").set_value(test.selectbox(key="lora.lora").options[0]).run()
    assert "lora.lora" not in test.query_params and not test.exception
    named = opened("LoRA", tmp_path, lora="lora002").selectbox(key="lora.lora").value
    assert named == "lora002/adapter_model.safetensors", "a name typed by hand"


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


@pytest.mark.parametrize("page", ["LoRA", "Map", "Train", "Predictions", "Invariance", "Images"])
def test_the_newer_models_are_shown_like_the_five(page: str, tmp_path: Path) -> None:
    write_zoo(tmp_path, 40)
    trained(tmp_path, *SINCE)
    test = settled(opened(page, tmp_path))
    assert not test.exception and not test.error
    if page == "LoRA":
        options = test.selectbox(key="lora.coloured_by").options
        asked = [option for option in options if "contribution" in option]
        assert len(asked) == len(SINCE)
        for option in asked:
            test.selectbox(key="lora.coloured_by").select(option).run()
            assert not test.exception, option
    if page == "Map":
        latents = [option for option in test.selectbox(key="map.space").options if "Latent" in option]
        assert len(latents) == len(SINCE)
        for option in latents:
            test.selectbox(key="map.space").select(option).run()
            test = settled(test)
            assert not test.exception and not test.error, option


def test_a_deep_link_to_an_experiment_shows_its_verdicts_and_runs_it_small() -> None:
    test = opened("Experiments", None, experiment="Table 1")
    assert not test.exception and "Table 1: invariance and time" in text_of(test) and "holds" in text_of(test)
    findings = [
        finding
        for name in OF_PAPER
        for finding in Result.read(ROOT / "docs" / "results" / name).findings
        if finding.in_paper
    ]
    counts = test.dataframe[0].value
    assert int(counts.sum().sum()) == len(findings) and "TuckerNet" not in " ".join(counts.index)
    test.button(key="experiments.run_small").click().run()
    settled(test)
    job = test.session_state["session"].experiment
    assert not test.exception and job is not None and job.error is None and "small run" in job.result.title
    other = opened("Experiments", None, experiment="Figure 4")
    assert "Figure 4: models of rank 4" in text_of(other) and "Table 1: invariance" not in text_of(other)


def run_to_the_end(test: AppTest) -> AppTest:
    job = test.session_state["session"].training
    until(lambda: not job.running, "the end of the training")
    return test.run()


def test_train_then_stop_then_resume(synthetic_folder: Path) -> None:
    test = opened("Train", synthetic_folder)
    test.multiselect(key="train.targets").set_value(["size"]).run()
    test.number_input(key="train.epochs").set_value(2000).run()
    test.number_input(key="train.patience").set_value(0).run()
    next(button for button in test.button if button.label == "Train").click().run()
    assert not test.exception
    job = test.session_state["session"].training
    until(lambda: job.subject[0].progress.history, "the first epoch")
    next(button for button in test.button if button.label == "Stop").click().run()
    run_to_the_end(test)
    job = test.session_state["session"].training
    assert job.subject[0].error is None and not job.subject[0].checkpoint.finished
    reached = len(job.subject[0].checkpoint.history)
    next(button for button in test.button if button.label == "Resume").click().run()
    job = test.session_state["session"].training
    until(lambda: len(job.subject[0].progress.history) > reached, "an epoch more")
    next(button for button in test.button if button.label == "Stop").click().run()
    run_to_the_end(test)
    assert len(test.session_state["session"].training.subject[0].checkpoint.history) > reached
    assert not test.exception and not test.error


def test_a_target_that_cannot_be_learnt_is_a_sentence(synthetic_folder: Path) -> None:
    test = opened("Train", synthetic_folder)
    test.multiselect(key="train.targets").set_value(["size", "kind"]).run()
    assert "different kinds" in test.error[0].value and not test.exception
    assert next(button for button in test.button if button.label == "Train").disabled
    test.multiselect(key="train.targets").set_value([]).run()
    assert "at least one target" in text_of(test) and not test.exception


@pytest.mark.parametrize("target", ["size", "positive", "kind"])
def test_predictions_of_every_kind(target: str, synthetic_folder: Path) -> None:
    trained(synthetic_folder, "gl_net", targets=(target,))
    test = opened("Predictions", synthetic_folder)
    assert not test.exception and not test.error
    table = next(frame.value for frame in test.dataframe if "part" in frame.value.columns)
    assert len(table) == 60 and set(table["part"]) == {"train", "validation", "test"}
    scores = next(frame.value for frame in test.dataframe if "test, control: norms only" in frame.value.index)
    assert "test, control: structure only" in scores.index


def test_predictions_on_another_collection_are_marked(synthetic_folder: Path, tmp_path: Path) -> None:
    zoo = trained(synthetic_folder, "gl_net")
    write_zoo(tmp_path / "other", 12, seed=3)
    write_peft(tmp_path / "other" / "alien", Zoo.open(synthetic_folder).load(zoo.ids[0]))
    home = opened("Home", tmp_path / "other")
    checkpoint = runs_folder(zoo) / "gl_net-size"
    home.main.text_input(key="home.checkpoint").set_value(str(checkpoint)).run()
    assert "Opened" in home.success[0].value and "not the collection it was trained on" in home.warning[0].value
    home.main.text_input(key="home.checkpoint").set_value(str(tmp_path)).run()
    assert "no checkpoint there" in home.error[0].value and not home.exception


def test_invariance_holds_for_gl_net_and_moves_the_mlp(synthetic_folder: Path) -> None:
    trained(synthetic_folder, "mlp", "o_align", "gl_net")
    test = opened("Invariance", synthetic_folder)
    assert not test.exception and not test.error

    def verdicts() -> dict[str, str]:
        table = next(frame.value for frame in test.dataframe if "verdict" in frame.value.columns)
        return {model.split(" →")[0]: verdict for model, verdict in zip(table["model"], table["verdict"], strict=True)}

    assert verdicts() == {"MLP": "moves, as it may", "MLP + O-Align": "moves, as it may", "GL-net": "holds"}
    next(button for button in test.button if button.label == "Draw another R").click().run()
    assert test.session_state["invariance.draw"] == 2
    test.session_state["invariance.group"] = "o"
    test.session_state["invariance.dtype"] = "float64"
    test.run()
    assert not test.exception and verdicts() == {"MLP": "moves, as it may", "MLP + O-Align": "holds", "GL-net": "holds"}


def test_the_best_checkpoint_of_a_training_run_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    table = write_zoo(folder, 40)
    for i, step in enumerate((10, 20, 30)):
        (folder / f"lora{i:03d}").rename(folder / f"style_step{step}")
        table.loc[i, "name"] = f"style_step{step}"
    table.to_csv(folder / "labels.csv", index=False)
    zoo = trained(folder, "gl_net")
    test = opened("Predictions", folder)
    assert not test.exception
    runs = next(frame.value for frame in test.dataframe if "highest predicted" in frame.value.columns)
    told, _ = Checkpoint.load(next(runs_folder(zoo).iterdir())).predict_zoo(zoo)
    of_run = {zoo.names[id]: told.loc[id, "size"] for id in told.index if "style" in id}
    assert list(runs.index) == ["style"] and runs.loc["style", "checkpoints"] == 3
    assert runs.loc["style", "highest predicted"] == max(of_run, key=lambda name: of_run[name])


def test_r_by_hand_starts_as_the_identity(synthetic_folder: Path) -> None:
    test = opened("Invariance", synthetic_folder, group="by hand")
    assert not test.exception and not test.error
    moved = {metric.label: metric.value for metric in test.metric}
    assert moved["U moved by"] == "0.0%" and moved["κ(R)"] == "1"


def test_which_model_keeps_still_under_which_group(synthetic_folder: Path) -> None:
    trained(synthetic_folder, "o_align", "gl_net")
    test = opened("Invariance", synthetic_folder, part="Many draws from every group")
    table = next(frame.value for frame in test.dataframe if "permutations" in frame.value.columns)
    still = table.drop(columns="promises").apply(lambda column: column.str.startswith("keeps"))
    rows = {title.split(" →")[0]: list(row) for title, row in zip(table.index, still.to_numpy(), strict=True)}
    assert rows == {"MLP + O-Align": [False, True, True, False], "GL-net": [True] * 4}
    assert "kept what they promise" in text_of(test)
    test = opened("Invariance", synthetic_folder, part="R on its way through GL-net")
    assert (
        not test.exception
        and "R enters with the factors" in text_of(test)
        and "in the products R is gone" in text_of(test)
    )


def test_a_model_is_cross_validated_on_the_page(synthetic_folder: Path) -> None:
    test = opened("Train", synthetic_folder)
    next(widget for widget in test.multiselect if widget.key == "train.targets").set_value(["size"]).run()
    for key, value in (("epochs", 2), ("folds", 3)):
        next(widget for widget in test.number_input if widget.key == f"train.{key}").set_value(value).run()
    next(button for button in test.button if button.label == "Cross-validate").click().run()
    test = settled(test)
    assert not test.exception
    table = next(frame.value for frame in test.dataframe if "control: norms only" in frame.value.index)
    assert table.index[0] == "GL-net" and "±" in table["Kendall τ"]["GL-net"]
    assert "On 60 held-out LoRAs it is **worse than the norms of the updates" in text_of(test), (
        "the label is a norm, and two epochs are too few"
    )


def test_two_visitors_do_not_see_each_other(synthetic_folder: Path, tmp_path: Path) -> None:
    write_zoo(tmp_path / "other", 3)
    one, two = opened("Home", synthetic_folder), opened("Home", tmp_path / "other")
    assert "60 LoRAs open" in text_of(one.run()) and "3 LoRAs open" in text_of(two.run())


def test_a_model_opened_by_path_is_never_deleted(synthetic_folder: Path, tmp_path: Path) -> None:
    zoo = Zoo.open(synthetic_folder)
    config = TrainingConfig(model="svd", model_config=ModelConfig(width=8), epochs=2)
    train(zoo, plan(zoo, ["size"], config), config, tmp_path / "mine")
    test = opened("Home", synthetic_folder)
    test.main.text_input(key="home.checkpoint").set_value(str(tmp_path / "mine")).run()
    test.switch_page("pages/Train.py").run()
    next(button for button in test.button if button.label == "Take it off the list").click().run()
    assert not test.exception and (tmp_path / "mine" / "checkpoint.json").is_file()
    assert "None yet" in text_of(test)


def test_a_model_trained_here_can_be_deleted(synthetic_folder: Path) -> None:
    zoo = trained(synthetic_folder, "svd")
    test = opened("Train", synthetic_folder)
    next(button for button in test.button if button.label == "Delete it").click().run()
    assert not test.exception and not list(runs_folder(zoo).glob("*")) and "None yet" in text_of(test)


def test_a_model_of_another_collection_is_offered_and_used_here(tmp_path: Path) -> None:
    write_zoo(tmp_path / "first", 30)
    trained(tmp_path / "first", "svd")
    write_zoo(tmp_path / "second", 8)
    test = opened("Home", tmp_path / "second")
    picker = next(box for box in test.selectbox if box.label == "A model trained on another collection")
    assert picker.options == ["MLP + SVD → size (seed 0), trained on first"]
    picker.select_index(0).run()
    assert any("now offered" in message.value for message in test.success)
    test.switch_page("pages/Predictions.py").run()
    assert not test.exception and "MLP + SVD → size (seed 0)" in str(test.selectbox)


def test_a_collection_is_known_by_its_content_and_not_by_its_folder(tmp_path: Path) -> None:
    """Two folders of one name, whose LoRAs have the same names, and of which one is trained on."""
    write_zoo(tmp_path / "mine" / "zoo", 40)
    write_zoo(tmp_path / "theirs" / "zoo", 40, seed=1)
    zoo, other = trained(tmp_path / "mine" / "zoo", "gl_net"), Zoo.open(tmp_path / "theirs" / "zoo")
    checkpoint = Checkpoint.load(runs_folder(zoo) / "gl_net-size")
    assert zoo.ids == other.ids and zoo.name == other.name
    assert set(parts_here(checkpoint, zoo).values()) == {"train", "validation", "test"}
    assert parts_here(checkpoint, other) == {}
    (tmp_path / "theirs" / "zoo" / "labels.csv").unlink()
    for page in ("Predictions", "LoRA", "Train", "Images"):
        test = opened("Home", other.folder)
        test.session_state["session"].extra_checkpoints.append(str(runs_folder(zoo) / "gl_net-size"))
        test.switch_page(PAGES[page]).run()
        assert not test.exception and not test.error
        parts = {part for frame in test.dataframe if "part" in frame.value.columns for part in frame.value["part"]}
        assert parts == ({"new"} if page in ("Predictions", "LoRA") else set()), page
        assert "Leaderboard" not in text_of(test) and "test, control" not in str(test.dataframe)

    copied = tmp_path / "copy"
    shutil.copytree(zoo.folder, copied)
    shutil.rmtree(copied / "lora000")
    write_peft(copied / "lora001", other.load(other.ids[0]))
    changed = Zoo.open(copied)
    kept = parts_here(checkpoint, changed)
    assert len(changed) == 39 and set(kept) == set(zoo.ids) - {zoo.ids[0], zoo.ids[1]}, "one gone, one overwritten"
    assert all(kept[id] == part for part, ids in checkpoint.split.items() for id in ids if id in kept)


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
