"""Folders ready to upload: whole or not there, and sound by their own checksums."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.opening import open_source
from lol_core.collections.publishing import CHECKSUMS, card, publish
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import Batch
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import CheckpointError, TaskError, ZooError
from lol_core.learning.answers import Answers
from lol_core.learning.card import model_card
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import MODELS, LoLModel
from lol_core.learning.publishing import packed
from lol_core.learning.publishing import publish as publish_model
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.hub import Hub, hub

__all__ = ["hub"]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    write_zoo(tmp_path / "zoo", 24)
    Image.new("RGB", (2, 2)).save(tmp_path / "zoo" / "lora003" / "adapter_model.png")
    (tmp_path / "zoo" / "private notes.txt").write_text("not for others")
    (tmp_path / "zoo" / "broken.safetensors").write_bytes(b"x" * 100)
    return Zoo.open(tmp_path / "zoo")


def assert_sound(folder: Path) -> None:
    lines = [line.split("  ", 1) for line in (folder / CHECKSUMS).read_text().splitlines()]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    assert {name for _, name in lines} == files
    for digest, name in lines:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_published_zoo_opens_as_the_zoo(zoo: Zoo, tmp_path: Path) -> None:
    out = publish(zoo, tmp_path / "out", licence="cc-by-4.0", title="My zoo", seed=3, group="author")
    again = Zoo.open(out)
    assert again.ids == zoo.ids and again.fingerprint == zoo.fingerprint and not again.refused
    pd.testing.assert_frame_equal(again.labels, zoo.labels)
    assert not (out / "private notes.txt").exists() and not list(tmp_path.glob("*.part"))
    assert again.preview(zoo.ids[3]) is not None
    assert_sound(out)
    splits = pd.read_csv(out / "splits.csv").set_index("path")["split"]
    assert set(splits) == {"train", "validation", "test"} and set(splits.index) == set(zoo.ids)
    sides = pd.DataFrame({"side": splits, "author": zoo.labels["author"]}).groupby("author")["side"].nunique()
    assert (sides == 1).all(), "an author is on one side"
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.pretty_name == "My zoo"
    tables = {config["data_files"] for config in card.data.configs}
    assert tables == {path.name for path in out.glob("*.csv")}, "the hub takes tables that are not told apart for one"
    assert "24 LoRAs" in card.text and "| synthetic/base | 24 |" in card.text and "| kind | 24 | " in card.text
    assert str(tmp_path) not in card.text


@pytest.mark.parametrize(
    ("base", "told"), [("/home/me/llama", True), (r"C:\models\sd.safetensors", True), ("me/llama", False)]
)
def test_a_base_model_that_is_a_path_is_to_be_named(base: str, told: bool, tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 4)
    for path in (tmp_path / "zoo").glob("*/adapter_config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    out = publish(Zoo.open(tmp_path / "zoo"), tmp_path / "out", licence="mit")
    assert set(pd.read_csv(out / "splits.csv")["split"]) == {"train"}, "four are too few for three parts"
    card = (out / "README.md").read_text()
    assert "all for training" in card and "drawn" not in card
    assert ("A path is where the base model lay" in card) == told


def test_parts_of_a_label_are_published_as_they_are(zoo: Zoo, tmp_path: Path) -> None:
    parts: list[str | None] = [*["train"] * 10, *["val"] * 6, *["test"] * 6, None, None]
    marked = replace(zoo, labels=zoo.labels.assign(part=pd.Series(parts, zoo.ids)))
    out = publish(marked, tmp_path / "out", licence="mit", split="part")
    splits = pd.read_csv(out / "splits.csv")
    assert splits["path"].tolist() == zoo.ids[:22]
    assert splits["split"].tolist() == [*["train"] * 10, *["validation"] * 6, *["test"] * 6]
    assert "as the label part has them" in (out / "README.md").read_text()
    copied: list[str] = []
    reporter = Reporter(lambda progress: copied.append(progress.message))
    with pytest.raises(TaskError, match="a part is called"):
        publish(marked, tmp_path / "other", licence="mit", split="author", reporter=reporter)
    with pytest.raises(TaskError, match="name one of the two"):
        publish(marked, tmp_path / "other", licence="mit", split="part", group="author")
    with pytest.raises(TaskError, match="No label column 'none' to take the parts from"):
        publish(marked, tmp_path / "other", licence="mit", split="none")
    assert not copied and not (tmp_path / "other").exists()


def test_parts_are_drawn_as_training_draws_them_where_a_group_has_gaps(zoo: Zoo, tmp_path: Path) -> None:
    groups = pd.Series([*range(6), None, None] * 3, zoo.ids, dtype=float)
    marked = replace(zoo, labels=zoo.labels.assign(run=groups))
    splits = pd.read_csv(publish(marked, tmp_path / "out", licence="mit", group="run") / "splits.csv")
    drawn = plan(marked, ["size"], TrainingConfig("dense", group_column="run")).split
    assert {part: list(rows) for part, rows in splits.groupby("split")["path"]} == drawn


def test_a_card_counts_the_values_of_a_label_with_gaps(zoo: Zoo, tmp_path: Path) -> None:
    labels = zoo.labels.assign(path=zoo.ids, smiles=[np.nan, 0.0, 1.0] * 8, part=[np.nan, 0.5, 1.0] * 8)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    out = publish(Zoo.open(tmp_path / "zoo", tmp_path / "labels.csv"), tmp_path / "out", licence="mit")
    card = (out / "README.md").read_text()
    assert "| smiles | 16 | 0 (8), 1 (8) |" in card and "| part | 16 | 0.5 to 1 |" in card


def test_a_card_is_a_table_whatever_the_labels_are_called(zoo: Zoo) -> None:
    labels = pd.DataFrame({"a|b\nc": ["x|y\nz"] * len(zoo)}, index=zoo.ids)
    text = card(replace(zoo, labels=labels), "mit", "My zoo", "drawn")
    assert r"| a\|b c | 24 | x\|y z (24) |" in text.splitlines()


def test_names_of_every_sort_come_back_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    names = ["a b#1", "100%", "ünï—☃", "sub dir/x?y", 'a,b"c', "-dash"]
    for number, name in enumerate(names):
        write_peft(tmp_path / "mine" / name, random_lora(MODULES, number))
    zoo = Zoo.open(tmp_path / "mine")
    zoo = replace(zoo, labels=pd.DataFrame({"a,b": range(len(zoo))}, index=zoo.ids))
    hub.add("datasets/me/odd", publish(zoo, tmp_path / "out", licence="mit"))
    again = open_source("hf://datasets/me/odd", cache=tmp_path / "cache")
    assert set(again.ids) == set(zoo.ids) == {f"{name}/adapter_model.safetensors" for name in names}
    pd.testing.assert_frame_equal(again.labels.loc[zoo.ids], zoo.labels)
    for id in zoo.ids:
        assert torch.equal(again.load(id).layers[0].U, zoo.load(id).layers[0].U)


def test_a_zoo_without_labels_is_published_without_a_table_of_them(zoo: Zoo, tmp_path: Path) -> None:
    bare = replace(zoo, labels=pd.DataFrame(index=zoo.ids))
    again = Zoo.open(publish(bare, tmp_path / "out", licence="mit"))
    assert again.ids == zoo.ids and not again.labels_problem and not again.remarks
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.configs == [{"config_name": "splits", "data_files": "splits.csv", "default": True}]
    assert "label" not in card.text and not (tmp_path / "out" / "labels.csv").exists()


def test_a_card_counts_numbers_that_are_finite(zoo: Zoo) -> None:
    labels = pd.DataFrame({"all": np.inf, "some": [-np.inf, *np.linspace(0, 1, 23)]}, index=zoo.ids)
    text = card(replace(zoo, labels=labels), "mit", "My zoo", "drawn")
    assert "| all | 0 |  |" in text and "| some | 23 | 0 to 1 |" in text


def test_a_label_may_be_called_path(zoo: Zoo, tmp_path: Path) -> None:
    labels = zoo.labels.assign(path=[f"/data/{number}" for number in range(len(zoo))])
    again = Zoo.open(publish(replace(zoo, labels=labels), tmp_path / "out", licence="mit"))
    pd.testing.assert_frame_equal(again.labels, labels)
    assert again.join_column == "lora_path"


@pytest.mark.parametrize("licence", ["CC BY 4.0", "", "MIT"])
def test_a_licence_is_one_by_the_hubs_names(licence: str, zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="no licence by the hub's names"):
        publish(zoo, tmp_path / "out", licence=licence)
    with pytest.raises(ZooError, match="no licence by the hub's names"):
        publish_model(tmp_path, tmp_path / "out", licence=licence)


def test_a_model_of_ones_own_says_that_its_code_is_needed(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NormOfU(LoLModel):
        title, symmetry, any_rank = "Norm of U", None, True

        def n_features(self) -> int:
            return len(self.spec.modules)

        def features(self, batch: Batch) -> torch.Tensor:
            return torch.cat([U.square().sum((-1, -2)) for U in batch.U], 1)

    monkeypatch.setitem(MODELS, "norm_of_u", NormOfU)
    for name in ("norm_of_u", "dense"):
        config = TrainingConfig(name, epochs=1)
        trained = train(zoo, plan(zoo, ["size"], config), config, tmp_path / name)
        assert ("is no model of lol_core" in model_card(trained)) == (name == "norm_of_u")


def test_what_is_there_is_not_written_over_and_a_stop_leaves_nothing(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        publish(zoo, tmp_path / "out", licence="mit", reporter=Reporter(stop=lambda: True))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ZooError, match="there already"):
        publish(zoo, tmp_path / "out", licence="mit")
    with pytest.raises(TaskError, match="No label column 'nobody'"):
        publish(zoo, tmp_path / "other", licence="mit", group="nobody")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="no LoRA to publish"):
        publish(Zoo.open(tmp_path / "empty"), tmp_path / "other", licence="mit")


def test_the_commands_publish_a_zoo_and_a_model(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "data"
    (zoo.folder / "README.md").write_text("# Mine")
    command = ["zoo", "publish", str(zoo.folder), "--out", str(out), "--licence", "mit", "--group", "author"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "Left behind, as they are no LoRAs: broken.safetensors, private" in result.output
    assert "README.md there is a new one: what yours says of the LoRAs has to be taken over" in result.output
    assert len(Zoo.open(out)) == 24
    assert CliRunner().invoke(app, command).exit_code == 1
    assert CliRunner().invoke(app, [*command, "--seed", "-1"]).exit_code == 2
    config = TrainingConfig("dense", epochs=1)
    trained = train(zoo, plan(zoo, ["size"], config), config, tmp_path / "model")
    out = tmp_path / "published"
    command = ["model", "publish", str(tmp_path / "model"), "--out", str(out), "--licence", "mit"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert_sound(out)
    assert ModelCard.load(out / "README.md").data["license"] == "mit"
    there, here = Answers.of(Checkpoint.load(out), zoo), Answers.of(trained, zoo)
    pd.testing.assert_frame_equal(there.values, here.values)
    pd.testing.assert_frame_equal(there.marks, here.marks)
    assert len(here.marks) == len(zoo)
    assert not any(str(tmp_path) in path.read_text() for path in (out / "README.md", out / "checkpoint.json"))
    with zipfile.ZipFile(BytesIO(packed(out))) as archive:
        assert {Path(name).name for name in archive.namelist()} >= {"README.md", "checkpoint.json"}
    (tmp_path / "secret").write_text("s3cret")
    (out / "README.md").unlink()
    (out / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"README\.md is a link"):
        packed(out)
