"""Pages that train, judge and turn models."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import ModelConfig
from lol_core.learning.models.apart import Apart
from lol_core.learning.models.gl_net import GLNetConfig, Order
from lol_core.learning.parts import parts_here
from lol_core.learning.training import plan, train
from tests.builders import MODULES, write_peft, write_zoo
from tests.test_pages import PAGES, opened, settled, text_of, trained
from tests.waiting import until
from ui import predicting
from ui.state import runs_folder


def run_to_the_end(test: AppTest) -> AppTest:
    job = test.session_state["session"].training
    until(lambda: not job.running, "the end of the training")
    return test.run()


def test_a_number_out_of_its_limits_is_told_and_nothing_is_trained(synthetic_folder: Path) -> None:
    test = opened("Train", synthetic_folder)
    test.number_input(key="train.epochs").set_value(5000)
    test.number_input(key="train.learning_rate").set_value(0.0).run()
    (error,) = test.error
    assert "Epochs, at most: 5,000 is not between 1 and 2,000." in error.value
    assert "Learning rate: 0 is not between 1e-06 and 1." in error.value
    assert all(next(b for b in test.button if b.label == name).disabled for name in ("Train", "Cross-validate"))
    test.number_input(key="train.epochs").set_value(50)
    test.number_input(key="train.learning_rate").set_value(0.01).run()
    assert not test.error and not next(b for b in test.button if b.label == "Train").disabled


def test_models_of_ours_are_trained_from_the_page(synthetic_folder: Path) -> None:
    test = opened("Train", synthetic_folder)
    test.multiselect(key="train.targets").set_value(["size"])
    test.selectbox(key="train.order").set_value(Order.COLUMNS)
    test.toggle(key="train.apart").set_value(True)
    test.number_input(key="train.epochs").set_value(1).run()
    next(button for button in test.button if button.label == "Train").click().run()
    run_to_the_end(test)
    (run,) = test.session_state["session"].training.subject
    assert run.error is None and not test.exception
    shape = Checkpoint.load(run.out).config.shape
    assert isinstance(shape, GLNetConfig) and (shape.order, shape.apart) == (Order.COLUMNS, frozenset(Apart))


def test_train_then_stop_then_resume(synthetic_folder: Path) -> None:
    test = opened("Train", synthetic_folder)
    test.multiselect(key="train.targets").set_value(["size"]).run()
    assert test.number_input(key="train.width").value is None, "each model has its own"
    test.number_input(key="train.epochs").set_value(2000).run()
    test.number_input(key="train.patience").set_value(0).run()
    next(button for button in test.button if button.label == "Train").click().run()
    assert not test.exception
    job = test.session_state["session"].training
    until(lambda: job.subject[0].progress.history, "the first epoch")
    told = [bar.proto.text for bar in test.run().get("progress")]
    assert told and all(text.count("left") == 1 for text in told), "one time left, not two that differ"
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


def test_a_setting_of_which_there_is_nothing_to_tell_is_not_called_unknown(tmp_path: Path) -> None:
    write_zoo(tmp_path, 40)
    zoo = trained(tmp_path, "gl_net", "svd")
    longer = TrainingConfig("svd", ModelConfig(width=16), epochs=4, batch_size=16)
    train(zoo, plan(zoo, ["size"], longer), longer, runs_folder(zoo) / "longer")
    test = opened("Predictions", tmp_path)
    board = next(frame.value for frame in test.dataframe if "setting" in frame.value.columns)
    assert dict(zip(board["model"], board["setting"], strict=True))["GL-net"] == ""
    assert set(board["setting"]) == {"", "epochs 3", "epochs 4"} and not test.exception
    whole = next(frame.value for frame in test.dataframe if "part" in frame.value.columns)
    assert {"size (true)", "size (predicted)"} <= set(whole.columns)


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
    test.session_state["invariance.group"] = "own"
    test.run()
    assert not test.exception and verdicts()["GL-net"] == "holds" and verdicts()["MLP"] == "moves, as it may"
    assert any("numbers say nothing of ΔW" in caption.value for caption in test.caption)


VARIANTS = {  # name: the shapes of what it stores, and what acts on it
    "loha": (
        {"q.hada_w1_a": (8, 2), "q.hada_w1_b": (2, 6), "q.hada_w2_a": (8, 2), "q.hada_w2_b": (2, 6)},
        "GL(2) × GL(2) × scalings × scalings (1 module: 21 of 56 numbers",
    ),
    "lokr": (
        {"q.lokr_w1": (2, 3), "q.lokr_w2_a": (4, 1), "q.lokr_w2_b": (1, 2)},
        "GL(1) × GL(1) (1 module: 2 of 12 numbers",
    ),
    "merged": ({"qkv.lora_A": (4, 6), "qkv.lora_B": (16, 2)}, "GL(2) × GL(2) (1 module: 8 of 56 numbers"),
}


def test_invariance_names_what_acts_on_a_variants_own_numbers(tmp_path: Path) -> None:
    """LoHa, LoKr and MergedLinear: the group of the file, and models that hold still under it."""
    for name, (shapes, _) in VARIANTS.items():
        (tmp_path / name).mkdir()
        tensors = {key: torch.randn(shape) for key, shape in shapes.items()}
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 2, "enable_lora": [True, False, True]}
    (tmp_path / "merged" / "adapter_config.json").write_text(json.dumps(config))
    test = opened("Invariance", tmp_path, group="its own", dtype="float64")
    for name, (_, acts) in VARIANTS.items():
        test.selectbox(key="invariance.lora").set_value(f"{name}/adapter_model.safetensors").run()
        assert not test.exception and not test.error
        assert any(f"On each module acts {acts}" in caption.value for caption in test.caption), name
        table = next(frame.value for frame in test.dataframe if "verdict" in frame.value.columns)
        assert dict(zip(table["model"], table["verdict"], strict=True))["GL-net (untrained)"] == "holds"


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
    told = Answers.of(Checkpoint.load(next(runs_folder(zoo).iterdir())), zoo).values
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
    other = write_zoo(tmp_path / "second", 8)
    other.assign(size="text under the same name").to_csv(tmp_path / "second" / "labels.csv", index=False)
    test = opened("Home", tmp_path / "second")
    picker = next(box for box in test.selectbox if box.label == "A model trained on another collection")
    assert picker.options == ["MLP + SVD → size (seed 0), trained on first"]
    picker.select_index(0).run()
    assert any("can be chosen on the pages" in message.value for message in test.success)
    test.switch_page("pages/Predictions.py").run()
    assert not test.exception and "MLP + SVD → size (seed 0)" in str(test.selectbox)


def test_a_model_that_takes_long_is_asked_beside_the_page(
    synthetic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(synthetic_folder, "svd")
    test, go_on, real = opened("Home", synthetic_folder), threading.Event(), Answers.of

    def slow(*arguments: Any, reporter: Reporter, **options: Any) -> Answers:
        reporter.count("Predicting: LoRA", 6, 60)
        until(lambda: go_on.is_set() or reporter.stopping, "the test")
        return real(*arguments, reporter=reporter, **options)

    monkeypatch.setattr(Answers, "of", slow)
    monkeypatch.setattr(predicting, "SOON", 0.0)
    test.switch_page(PAGES["Predictions"]).run()
    assert not test.exception and "Every LoRA" not in text_of(test)
    next(button for button in test.button if button.label == "Stop").click().run()
    (job,) = test.session_state["session"].answers.values()
    until(lambda: not job.running, "the stop")
    test.run()
    assert "Stopped." in text_of(test)
    go_on.set()
    next(button for button in test.button if button.label == "Predict").click().run()
    (job,) = test.session_state["session"].answers.values()
    until(lambda: not job.running, "the answers")
    assert "Every LoRA" in text_of(test.run()) and not test.exception


def test_loras_unlike_those_of_a_training_elsewhere_are_marked(tmp_path: Path) -> None:
    write_zoo(tmp_path / "first", 60)
    folder = runs_folder(trained(tmp_path / "first", "svd")) / "svd-size"
    write_zoo(tmp_path / "second", 8, seed=1)
    strange = Zoo.open(tmp_path / "second").load("lora003")
    layers = tuple(layer.with_pair(100 * layer.U, layer.V) for layer in strange.layers)
    write_peft(tmp_path / "second" / "lora003", replace(strange, layers=layers))
    test = opened("Home", tmp_path / "second")
    test.session_state["session"].extra_checkpoints.append(str(folder))
    test.switch_page(PAGES["Predictions"]).run()
    assert not test.exception and "of 8 are **outside**" in text_of(test)
    (table,) = [frame.value for frame in test.dataframe if "outside" in frame.value]
    assert table.loc[table["name"] == "lora003", "outside"].all() and not table["outside"].all()
    next(button for button in test.button if button.label == "Select those outside").click().run()
    assert f"**{table['outside'].sum()} of 8" in text_of(test)
    checkpoint = Checkpoint.load(folder)
    checkpoint.known = None
    checkpoint.save(folder)
    test.run()
    assert not test.exception and "keeps nothing of its training LoRAs" in text_of(test)


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


def test_of_a_mixed_collection_some_are_chosen(tmp_path: Path) -> None:
    """Where all are of one kind nothing is asked."""
    tables = []
    for rank in (2, 4):
        table = write_zoo(tmp_path / f"r{rank}", 12, [(*module[:3], rank) for module in MODULES], seed=rank)
        tables.append(table.assign(name=f"r{rank}/" + table["name"]))
        (tmp_path / f"r{rank}" / "labels.csv").unlink()
    pd.concat(tables).to_csv(tmp_path / "labels.csv", index=False)
    test = opened("Train", tmp_path, targets="size", models="GL-net")
    assert not test.exception and "takes LoRAs of one rank" not in text_of(test)
    test.multiselect(key="train.models").set_value(["GL-net", "MLP + O-Align"]).run()
    assert not test.exception and "takes LoRAs of one rank" in text_of(test), "of every model, not of the first alone"
    test = opened("Train", tmp_path, targets="size", models="MLP")
    assert not test.exception and "takes LoRAs of one rank" in text_of(test)
    choice = test.multiselect(key="train.only")
    assert choice.options == ["rank 2 (12)", "rank 4 (12)"]
    choice.set_value(["rank=4"]).run()
    assert not test.exception and "takes LoRAs of one rank" not in text_of(test)
    assert next(button for button in test.button if button.label == "Train").disabled is False
