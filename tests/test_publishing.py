"""Folders ready to upload: whole or not there, and sound by their own checksums."""

from __future__ import annotations

import hashlib
import zipfile
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.publishing import CHECKSUMS, publish
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import CheckpointError, ZooError
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig
from lol_core.learning.publishing import packed
from lol_core.learning.training import plan, train
from tests.builders import write_zoo


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
    assert "24 LoRAs" in card.text and "| synthetic/base | 24 |" in card.text and "| kind | 24 | " in card.text
    assert str(tmp_path) not in card.text


def test_what_is_there_is_not_written_over_and_a_stop_leaves_nothing(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        publish(zoo, tmp_path / "out", licence="mit", reporter=Reporter(stop=lambda: True))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.part"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ZooError, match="there already"):
        publish(zoo, tmp_path / "out", licence="mit")
    with pytest.raises(ZooError, match="no column 'nobody'"):
        publish(zoo, tmp_path / "other", licence="mit", group="nobody")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="no LoRA to publish"):
        publish(Zoo.open(tmp_path / "empty"), tmp_path / "other", licence="mit")


def test_the_commands_publish_a_zoo_and_a_model(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ["zoo", "publish", str(zoo.folder), "--out", str(out), "--licence", "mit", "--group", "author"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(Zoo.open(out)) == 24
    assert CliRunner().invoke(app, command).exit_code == 1
    config = TrainingConfig("dense", epochs=1)
    trained = train(zoo, plan(zoo, ["size"], config), config, tmp_path / "model")
    out = tmp_path / "published"
    command = ["model", "publish", str(tmp_path / "model"), "--out", str(out), "--licence", "mit"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert_sound(out)
    assert ModelCard.load(out / "README.md").data["license"] == "mit"
    pd.testing.assert_frame_equal(Checkpoint.load(out).predict_zoo(zoo)[0], trained.predict_zoo(zoo)[0])
    assert not any(str(tmp_path) in path.read_text() for path in (out / "README.md", out / "checkpoint.json"))
    with zipfile.ZipFile(BytesIO(packed(out))) as archive:
        assert {Path(name).name for name in archive.namelist()} >= {"README.md", "checkpoint.json"}
    (tmp_path / "secret").write_text("s3cret")
    (out / "README.md").unlink()
    (out / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"README\.md is a link"):
        packed(out)
