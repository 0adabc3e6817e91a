"""What the weights of a folder say, on the command line."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lol_core.cli.commands import app
from lol_core.cli.console import INTERRUPTED, KEPT
from lol_core.core.geometry import norm
from lol_core.core.progress import Reporter
from lol_core.insight.surveys import Surveys
from tests.builders import MODULES, random_lora, write_peft
from tests.test_cli import output, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survey") / "zoo"
    for seed in range(3):
        write_peft(folder / f"lora{seed}", random_lora(MODULES, seed))
    shutil.copytree(folder / "lora1", folder / "copy")
    write_peft(folder / "half", random_lora(MODULES, 1), dtype=torch.bfloat16)
    untrained = random_lora(MODULES, 7)
    untrained = replace(untrained, layers=tuple(y.with_pair(0 * y.U, y.V) for y in untrained.layers))
    write_peft(folder / "zero", untrained)
    (folder / "broken.safetensors").write_bytes(b"xx")
    return folder


def test_a_survey(folder: Path) -> None:
    found = output("survey", folder)
    rows = {row["path"].split("/")[0]: row for row in found["loras"]}
    assert found["finished"] and len(rows) == 6 and [row["path"] for row in found["refused"]] == ["broken.safetensors"]
    lora = random_lora(MODULES, 0, torch.float32)
    assert rows["lora0"]["norm"] == pytest.approx(sum(norm(y) ** 2 for y in lora.layers) ** 0.5, rel=1e-5)
    assert 1 <= rows["lora0"]["effective_rank"] <= 2 and rows["lora0"]["health"] == []
    values = torch.cat([factor.flatten() for y in lora.layers for factor in (y.U, y.V)])
    assert rows["lora0"]["range"] == pytest.approx([values.min().item(), values.max().item()])
    assert rows["half"]["dtypes"] == "bfloat16" and rows["lora0"]["dtypes"] == "float32"
    assert rows["lora1"]["digest"] == rows["copy"]["digest"] != rows["half"]["digest"]
    assert "never trained" in rows["zero"]["health"][0]["reason"] and rows["zero"]["norm"] == 0
    shown = run_table("survey", folder)
    assert "6 of 6 LoRAs read, 1 with something odd" in shown


def test_duplicates(folder: Path) -> None:
    found = output("duplicates", folder)
    (group,) = found["groups"]
    assert [each["path"] for each in found["refused"]] == ["broken.safetensors"]
    assert {row["path"].split("/")[0]: row["identical"] for row in group} == {
        "copy": True,
        "lora1": True,
        "half": False,
    }
    assert output("duplicates", folder, "--tolerance", 1e-6)["groups"] != found["groups"]
    assert "1 functions have more than one file, of 6" in run_table("duplicates", folder)


def test_a_stopped_survey_says_so_and_keeps_what_it_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = Surveys.complete

    def stopped(self: Surveys, reporter: Reporter, *, workers: str) -> object:
        return complete(self, Reporter(stop=lambda: True), workers=workers)

    with monkeypatch.context() as patched:
        patched.setattr(Surveys, "complete", stopped)
        result = run(app, ["survey", str(folder), "--json"])
        assert run_result("duplicates", folder)[0] == result.exit_code == INTERRUPTED and KEPT in result.stderr
    found = json.loads(result.stdout)
    assert not found["finished"] and len(found["loras"]) == 1
    assert output("survey", folder)["finished"]


@pytest.mark.parametrize("command", ["health", "audit", "nearest"])
def test_no_verdict_is_given_on_half_a_collection(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Surveys.complete

    def interrupted(self: Surveys, reporter: Reporter, *, workers: str) -> object:
        signal.raise_signal(signal.SIGINT)
        return complete(self, reporter, workers=workers)

    monkeypatch.setattr(Surveys, "complete", interrupted)
    options: dict[str, list[object]] = {
        "health": [],
        "audit": ["--fail-on", "never", "--sarif", tmp_path / "a.sarif"],
        "nearest": ["lora0"],
    }
    code, text = run_result(command, folder, *options[command])
    assert code == INTERRUPTED and "the same command goes on" in text and not (tmp_path / "a.sarif").exists()


def test_workers_are_numbers_or_a_cluster(folder: Path) -> None:
    result = run_result("survey", folder, "--workers", "lots")
    assert result[0] == 1 and "ray://HOST" in result[1]


def run_table(*arguments: object) -> str:
    code, text = run_result(*arguments)
    assert code == 0, text
    return text


def run_result(*arguments: object) -> tuple[int, str]:
    result = run(app, [*map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("command", ["scan", "survey", "health", "duplicates", "audit", "labels"])
def test_a_collection_without_loras_ends_with_what_was_looked_for(command: str, tmp_path: Path) -> None:
    empty = run(app, [command, str(tmp_path)])
    assert empty.exit_code == 1 and "There is no LoRA in" in empty.stderr and ".safetensors" in empty.stderr
    (tmp_path / "page.safetensors").write_text("<html>")
    options = ["--fail-on", "never"] if command == "audit" else []
    refused = run(app, [command, str(tmp_path), "--json", *options])
    assert refused.exit_code == 1 and "refused. page.safetensors: " in refused.stderr and json.loads(refused.stdout)
