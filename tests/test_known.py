"""What a model keeps of its training LoRAs, and what it tells by that of others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.core.progress import Reporter
from lol_core.errors import CheckpointError, TaskError
from lol_core.formats.writing import write
from lol_core.learning import known as known_of
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import Keep, TrainingConfig
from lol_core.learning.known import Known, Seen
from lol_core.learning.models import MODELS, ModelConfig, make_model
from lol_core.learning.publishing import packed
from lol_core.learning.training import plan, remember, train
from tests.builders import random_batch, write_zoo

run = CliRunner().invoke


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> tuple[Zoo, Checkpoint]:
    zoo = Zoo.open(synthetic_folder)
    config = TrainingConfig(model="gl_net", model_config=ModelConfig(width=16), epochs=4, batch_size=16)
    return zoo, train(zoo, plan(zoo, ["size"], config), config, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def kept(fitted: tuple[Zoo, Checkpoint], tmp_path: Path) -> Path:
    """A folder of the test's own with the fitted model."""
    dataclasses.replace(fitted[1]).save(tmp_path / "kept")
    return tmp_path / "kept"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("known-*.safetensors"))


def enlarged(lora: LoRA, by: float) -> LoRA:
    return dataclasses.replace(lora, layers=tuple(layer.with_pair(layer.U * by, layer.V) for layer in lora.layers))


def test_new_loras_like_those_of_the_training_are_seldom_called_unlike_them(tmp_path: Path) -> None:
    """Also by a model that has learnt its training LoRAs by heart, in whose latent every other lies far from them."""
    write_zoo(tmp_path / "zoo", 200)
    write_zoo(tmp_path / "new", 100, seed=1)
    zoo, new = Zoo.open(tmp_path / "zoo"), Zoo.open(tmp_path / "new")
    by_heart = ModelConfig(width=16, dropout=0.0)
    config = TrainingConfig(model="mlp", model_config=by_heart, epochs=100, patience=100, keep=Keep.LAST)
    model = train(zoo, plan(zoo, ["positive"], config), config, tmp_path / "run")
    assert Answers.of(model, new).marks["outside"].mean() < 0.15


def test_a_lora_far_from_the_training_set_is_outside(fitted: tuple[Zoo, Checkpoint]) -> None:
    zoo, model = fitted
    marks = Answers.of(model, zoo, model.split["train"]).marks
    assert marks["outside"].mean() < 0.05 and marks["latent"].between(0, 1).all()
    assert marks["remark"].str.contains("of those held out").all()
    far = Answers.of_lora(model, enlarged(zoo.load(zoo.ids[0]), 1000.0), "far").marks.loc["far"]
    assert far["outside"] and far["remark"].startswith("unlike the LoRAs it was trained on")


def test_a_folder_keeps_it_and_another_process_reads_it(fitted: tuple[Zoo, Checkpoint], kept: Path) -> None:
    zoo, model = fitted
    back = Checkpoint.load(kept)
    here = Answers.of(model, zoo).marks
    pd.testing.assert_frame_equal(Answers.of(back, zoo).marks, here)
    pd.testing.assert_frame_equal(Answers.of(back, zoo, batch_size=7, workers=2).marks, here, rtol=1e-3)
    back.save(kept)
    assert len(files(kept)) == 1, "the older one has gone"
    assert f"known-{files(kept)[0].name[6:14]}".encode() in packed(kept)


def test_an_older_checkpoint_knows_nothing_until_it_reads_its_training_loras(
    fitted: tuple[Zoo, Checkpoint], kept: Path
) -> None:
    zoo, model = fitted
    old = Checkpoint.load(kept)
    old.known = None
    old.save(kept)
    assert not files(kept) and Checkpoint.load(kept).known is None
    answers = Answers.of(old, zoo)
    assert answers.marks.empty and not answers.marks["outside"].any() and len(answers.values) == len(zoo)
    remember(old, zoo)
    pd.testing.assert_frame_equal(Answers.of(old, zoo).marks, Answers.of(model, zoo).marks, rtol=1e-3)
    old.split = {part: ids[:4] for part, ids in old.split.items()}
    with pytest.raises(TaskError, match="4 are in .*; at least 10"):
        remember(old, zoo)


def test_a_store_keeps_what_was_said_and_a_stop_loses_nothing(
    fitted: tuple[Zoo, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, model = fitted
    store, asked, read = Store(tmp_path / "store"), list[str](), Zoo.reader

    def reader(source: Zoo, id: str) -> Callable[[], LoRA]:
        asked.append(id)
        return read(source, id)

    monkeypatch.setattr(Zoo, "reader", reader)
    whole = Answers.of(model, zoo)
    stopped = Answers.of(model, zoo, batch_size=16, reporter=Reporter(stop=lambda: True), store=store)
    assert len(stopped.values) == 16
    asked.clear()
    for left in (zoo.ids[16:], []):
        answers = Answers.of(model, zoo, store=store)
        pd.testing.assert_frame_equal(answers.values, whole.values)
        pd.testing.assert_frame_equal(answers.marks, whole.marks)
        assert asked == left
        asked.clear()
    other = dataclasses.replace(model, known=None)
    assert Answers.of(other, zoo, store=store).marks.empty and asked == zoo.ids, "its answers are others"


def test_a_model_is_another_once_its_code_is(fitted: tuple[Zoo, Checkpoint]) -> None:
    """Also one that was typed into a notebook, whose code is in no file."""
    model, kinds = fitted[1], []
    before = type(model.model)
    for factor in (1, 2, 2):
        space: dict[str, Any] = {"Base": before, "__name__": "a notebook"}
        exec(f"class Own(Base):\n    def embed(self, batch):\n        return {factor} * super().embed(batch)", space)
        kinds.append(space["Own"])
    try:
        found = []
        for kind in kinds:
            model.model.__class__ = kind
            found.append(model.identity())
        assert found[0] != found[1] == found[2]
    finally:
        model.model.__class__ = before


def test_predict_marks_what_is_unlike_the_training_wherever_it_lies(
    fitted: tuple[Zoo, Checkpoint], kept: Path, tmp_path: Path
) -> None:
    zoo = fitted[0]
    for name, by in (("usual", 1.0), ("huge", 1000.0)):
        write(enlarged(zoo.load(zoo.ids[0]), by), tmp_path / "new" / name, "PEFT", torch.float32)
    command = ["predict", "--checkpoint", str(kept)]
    told = json.loads(run(app, [*command, str(tmp_path / "new"), "--json"]).stdout)["outside"]
    assert {Path(id).parts[0]: far for id, far in told.items()} == {"huge": True, "usual": False}
    alone = run(app, [*command, str(tmp_path / "new" / "huge")])
    assert "yes" in alone.stdout and "1 of 1, marked as outside, are unlike" in alone.stderr


@pytest.mark.parametrize("damage", ["gone", "cut", "nameless"])
def test_a_damaged_file_is_a_sentence(kept: Path, damage: str) -> None:
    description = json.loads((kept / "checkpoint.json").read_text())
    if damage == "gone":
        files(kept)[0].unlink()
    elif damage == "cut":
        files(kept)[0].write_bytes(files(kept)[0].read_bytes()[:100])
    else:
        (kept / "checkpoint.json").write_text(json.dumps(description | {"known": {"held_out": True}}))
    with pytest.raises(CheckpointError, match="keeps of its training LoRAs cannot be read"):
        Checkpoint.load(kept)


def test_few_held_out_leave_the_distances_of_the_training_from_each_other() -> None:
    points = Seen(torch.randn(40, 3), torch.randn(40, 2))
    few = Known.of(points, Seen(points.latent[:9], points.norms[:9]))
    assert few is not None and not few.held_out and few.others == "these from each other"
    assert few.latent.distances[0] > 0, "none is its own neighbour"
    assert Known.of(Seen(points.latent[:9], points.norms[:9]), points) is None


def test_of_many_some_are_kept_and_judge_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trained, held_out, new = (Seen(torch.randn(n, 3), torch.randn(n, 2)) for n in (3000, 1000, 500))
    new.latent[0] = 100.0
    marks = []
    for most in (200, 3000):
        monkeypatch.setattr(known_of, "MOST", most)
        known = Known.of(trained, held_out)
        assert known is not None and len(known.latent.points) == most
        marks.append(known.marks(known.shares(new), list(map(str, range(500)))))
    for table in marks:
        assert table["outside"].iloc[0] and 0 < table["outside"].iloc[1:].mean() < 0.06


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_latents_are_read_together(name: str) -> None:
    batch = random_batch().to(dtype=torch.float32)
    model = make_model(name, batch.spec, 2).eval()
    if model.memorizes:
        model.memorize(batch, torch.randn(len(batch), 2))
    with torch.no_grad():
        outputs, latents = model.read(batch)
        torch.testing.assert_close(outputs, model(batch), rtol=0, atol=0)
        torch.testing.assert_close(latents, model.embed(batch), rtol=0, atol=0)
