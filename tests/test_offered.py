"""Columns that files offer as labels, which nobody gets without taking them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.offered import offered, take
from lol_core.collections.opening import open_source
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError
from tests.builders import random_lora, write_peft
from tests.hub import Hub, hub

__all__ = ["hub"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three adapters of a benchmark of backdoors: with card, training state and settings, one with none of them."""
    for i, name in enumerate(("qv_label0_1", "qv_label1_2", "qv_label1_3")):
        place = tmp_path / "bench" / "llama" / name
        write_peft(place, random_lora(seed=i), lora_dropout=0.1 * i, target_modules=["q", "v"])
        if i == 2:
            continue
        card = f"---\nlicense: {['mit', 'apache-2.0'][i]}\nbase_model: some/base\ntags: [a{i}, b]\n---\n# Card\n"
        (place / "README.md").write_text(card)
        log = [{"loss": 3.0, "step": 1}, {"loss": 2.0 - i, "step": 2}, {"eval_loss": 1.5 + i, "step": 2}]
        state = {"log_history": log, "global_step": 2 + i, "best_metric": None}
        (place / "trainer_state.json").write_text(json.dumps(state))
    return tmp_path / "bench"


def test_what_files_say_is_offered_and_not_joined(folder: Path) -> None:
    source = open_source(folder)
    assert not source.labels.shape[1]
    table = offered(source)
    assert list(table.index) == source.ids
    assert table["name 2"].tolist() == ["label0", "label1", "label1"]
    assert table["name 3"].tolist() == [1, 2, 3], "texts that are numbers are numbers"
    assert table["folder 2"].nunique() == 3 and "folder 1" not in table, "what tells none apart is no label"
    assert table["card license"].tolist()[:2] == ["mit", "apache-2.0"] and pd.isna(table["card license"].iloc[2])
    assert table["card tags"].tolist()[:2] == ["a0, b", "a1, b"] and "card base_model" not in table
    assert table["training loss"].tolist()[:2] == [2.0, 1.0], "the last that was logged"
    assert table["training eval_loss"].tolist()[:2] == [1.5, 2.5]
    assert table["training global_step"].tolist()[:2] == [2, 3]
    assert table["header lora_dropout"].tolist() == [0.0, 0.1, 0.2] and "header r" not in table


def test_broken_cards_and_states_offer_nothing(folder: Path) -> None:
    for place in folder.glob("llama/*1"):
        (place / "README.md").write_bytes(b"---\nlicense: [unclosed\n---\n\xff")
        (place / "trainer_state.json").write_text("{")
    table = offered(open_source(folder))
    assert table["name 2"].notna().all() and "card license" not in table


def test_columns_are_taken_by_name(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    table = offered(source)
    assert list(take(source, ["name 2"], table).columns) == ["name 2"]
    with pytest.raises(ZooError, match="no column 'name 9' is offered"):
        take(source, ["name 9"], table)
    with pytest.raises(Stopped):
        offered(source, Reporter(stop=lambda: True))


def test_the_command_lists_and_writes(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["labels", str(folder), *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    columns = {row["column"]: row for row in json.loads(run("--json"))["columns"]}
    assert columns["card license"]["known of"] == 2 and columns["name 2"]["different"] == 2
    out = tmp_path / "labels.csv"
    run("--take", "name 2", "--take", "training loss", "--out", str(out))
    assert list(open_source(folder, out).labels.columns) == ["name 2", "training loss"]
    again = CliRunner().invoke(app, ["labels", str(folder), "--take", "name 2", "--out", str(out)])
    assert again.exit_code == 1 and "there already" in again.output
    (tmp_path / "empty").mkdir()
    empty = CliRunner().invoke(app, ["labels", str(tmp_path / "empty")])
    assert empty.exit_code == 1 and "There is no LoRA" in empty.output
    nothing = CliRunner().invoke(app, ["labels", str(folder), "--out", str(tmp_path / "none.csv")])
    assert nothing.exit_code == 1 and "--take" in nothing.output and not (tmp_path / "none.csv").exists()


def test_cards_on_the_hub_are_offered(folder: Path, hub: Hub) -> None:
    for place in sorted(folder.glob("llama/*")):
        hub.add(f"models/someone/{place.name}", place)
    assert offered(open_source("hf://someone"))["card license"].tolist()[:2] == ["mit", "apache-2.0"]
