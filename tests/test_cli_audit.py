"""`health` and `audit`: everything that is wrong is said, what is well is not, and pipelines can fail on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRALayer
from lol_core.formats.writing import write
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train
from tests.builders import MODULES, random_lora, write_peft, write_zoo

run = CliRunner().invoke


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One LoRA that is well, its copy under another name, one never trained, one not finite, one no LoRA."""
    folder = tmp_path_factory.mktemp("audit") / "ill"
    well = random_lora(MODULES, 1, torch.float32)
    write(well, folder / "well", "PEFT")
    turned = well.act({layer.name: torch.eye(layer.rank).flip(0) for layer in well.layers})
    write(turned, folder / "well again", "PEFT")
    zero = replace(well, layers=tuple(LoRALayer.pair(y.name, torch.zeros_like(y.U), y.V) for y in well.layers))
    write(zero, folder / "zero one", "PEFT")
    broken = replace(well, layers=tuple(LoRALayer.pair(y.name, y.U * torch.inf, y.V) for y in well.layers))
    write_peft(folder / "infinite", broken)
    (folder / "page.safetensors").write_text("<html>not found</html>")
    return folder


def test_health_names_what_is_ill_and_nothing_else(ill: Path) -> None:
    result = run(app, ["health", str(ill), "--json"])
    remarks = {(Path(row["lora"]).parts[0], row["about"]) for row in json.loads(result.stdout)["remarks"]}
    assert remarks == {
        ("page.safetensors", "not read"),
        ("zero one", "never trained"),
        ("infinite", "unreadable weights"),
    }
    assert result.exit_code == 0


@pytest.mark.parametrize(("level", "code"), [("error", 2), ("never", 0)])
def test_an_audit_fails_at_the_level_that_was_asked_for(ill: Path, level: str, code: int) -> None:
    assert run(app, ["audit", str(ill), "--fail-on", level]).exit_code == code


def test_a_collection_that_is_well_passes(tmp_path: Path) -> None:
    write_zoo(tmp_path / "well", 4)
    assert run(app, ["audit", str(tmp_path / "well"), "--fail-on", "warning"]).exit_code == 0


def test_what_a_training_leaves_beside_loras_fails_no_audit(tmp_path: Path) -> None:
    write_zoo(tmp_path / "well", 4)
    (tmp_path / "well" / "lora000" / "training_args.bin").write_bytes(b"settings")
    result = run(app, ["audit", str(tmp_path / "well"), "--fail-on", "warning", "--json"])
    (remark,) = json.loads(result.stdout)["remarks"]
    assert result.exit_code == 0 and (remark["level"], remark["about"]) == ("note", "no LoRA")


def test_a_sarif_file_holds_every_remark_with_its_rule(ill: Path, tmp_path: Path) -> None:
    shown = json.loads(run(app, ["audit", str(ill), "--sarif", str(tmp_path / "a.sarif"), "--json"]).stdout)["remarks"]
    log = json.loads((tmp_path / "a.sarif").read_text())
    again = ["audit", str(ill), "--sarif", str(tmp_path / "a.sarif")]
    assert "--force" in run(app, again).output and run(app, [*again, "--force", "--fail-on", "never"]).exit_code == 0
    (only,) = log["runs"]
    assert log["version"] == "2.1.0" and len(only["results"]) == len(shown)
    rules = {rule["id"] for rule in only["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in only["results"]} == rules and "same-function" in rules
    assert {result["level"] for result in only["results"]} <= {"note", "warning", "error"}
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in only["results"]]
    assert any(place.startswith("zero%20one") for place in places)


def forget(model: Path, out: Path) -> None:
    """A checkpoint as it was before it kept what it knows of its training LoRAs."""
    checkpoint = Checkpoint.load(model)
    checkpoint.known = None
    checkpoint.save(out)


def test_models_are_asked_and_say_where_they_guess(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 40)
    zoo = Zoo.open(tmp_path / "zoo")
    config = TrainingConfig("gl_net", ModelConfig(width=8), epochs=2)
    train(zoo, plan(zoo, [str(zoo.labels.columns[0])], config), config, tmp_path / "model")
    lora = zoo.load(zoo.ids[0])
    huge = replace(lora, layers=tuple(replace(layer, scale=1e3 * layer.scale) for layer in lora.layers))
    write(huge, tmp_path / "new" / "huge", "PEFT", torch.float32)
    write(lora, tmp_path / "new" / "usual", "PEFT", torch.float32)
    write(random_lora(seed=1, dtype=torch.float32), tmp_path / "new" / "other", "PEFT")
    forget(tmp_path / "model", tmp_path / "forgetful")
    asked = ["audit", str(tmp_path / "new"), "--json", "--checkpoint"]
    report = json.loads(run(app, [*asked, str(tmp_path / "model")]).stdout)
    told = json.loads(run(app, [*asked, str(tmp_path / "forgetful"), "--trained-on", str(tmp_path / "zoo")]).stdout)
    assert told == report
    about = {(Path(row["lora"]).parts[0], row["about"]) for row in report["remarks"]}
    assert {("huge", "predicted"), ("usual", "predicted"), ("huge", "unlike the training")} <= about
    assert ("other", "not for this model") in about and ("usual", "unlike the training") not in about
    silent = json.loads(run(app, [*asked, str(tmp_path / "forgetful")]).stdout)
    assert "unlike the training" not in {row["about"] for row in silent["remarks"]}
