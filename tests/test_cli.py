"""The command line as a machine and as a person use it."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.cli.console import INTERRUPTED, print_table
from lol_core.cli.generate import sheet_titles
from lol_core.cli.invariance import GROUP_NAMES
from lol_core.cli.learning import MODEL_NAMES
from lol_core.core.groups import GROUPS
from lol_core.errors import ModelError
from lol_core.experiments.search import Budget
from lol_core.insight.generation import Sampling
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import MODELS
from lol_core.learning.models.gl_net import GLNetConfig
from tests.builders import MODULES, random_lora, write_peft, write_zoo
from tests.conftest import ROOT
from tests.waiting import PATIENCE

run = CliRunner().invoke


MODEL = ROOT / "sample_loras/checkpoints/glosses-validation-loss-gl-net"


def output(*arguments: object) -> Any:
    result = run(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "zoo"
    write_zoo(folder, 40)
    (folder / "broken.safetensors").write_bytes(b"xx")
    return folder


def train(zoo: Path, out: Path, *more: object, model: str = "gl_net") -> Any:
    return output(
        "train", "--zoo", zoo, "--target", "size", "--model", model, "--seed", 1, "--out", out, "--epochs", 5, *more
    )


def test_scan(zoo: Path) -> None:
    found = output("scan", zoo)
    assert len(found["loaded"]) == 40 and [row["path"] for row in found["refused"]] == ["broken.safetensors"]
    first = found["loaded"][0]
    assert first == {
        "path": "lora000/adapter_model.safetensors",
        "dialect": "PEFT",
        "base_model": "synthetic/base",
        "modules": 3,
        "ranks": [2],
        "parameters": 84,
    }
    assert "reason" in found["refused"][0]


def test_probe(zoo: Path) -> None:
    found = output("probe", zoo / "lora000")
    assert found["dialect"] == "PEFT" and len(found["modules"]) == 3
    module = found["modules"][0]
    assert {key: module[key] for key in ("name", "kind", "n", "m", "rank", "alpha", "scale")} == {
        "name": MODULES[0][0],
        "kind": "linear",
        "n": 8,
        "m": 6,
        "rank": 2,
        "alpha": 2.0,
        "scale": 1.0,
    }


@pytest.mark.parametrize("model", ["mlp", "o_align", "svd", "dense", "gl_net"])
def test_train_predict_and_invariance(model: str, zoo: Path, tmp_path: Path) -> None:
    report = train(zoo, tmp_path / "run", model=model)
    assert {"mse", "normalized_mse", "r2", "kendall_tau", "spearman"} <= set(report["test"])
    assert set(report["controls"]) == {"constant", "structure only", "norms only"}
    assert report["controls"]["constant"]["kendall_tau"] is None, "NaN is no JSON"
    predictions = output("predict", "--checkpoint", tmp_path / "run", zoo)
    assert len(predictions["predictions"]) == 40
    alone = output("predict", "--checkpoint", tmp_path / "run", zoo / "lora000")
    assert next(iter(alone["predictions"].values()))["size"] == pytest.approx(
        predictions["predictions"]["lora000/adapter_model.safetensors"]["size"], rel=1e-4
    )
    for group, dtype in (("gl", "float32"), ("gl", "float64"), ("o", "float64"), ("own", "float64")):
        told = output(
            "invariance",
            "--checkpoint",
            tmp_path / "run",
            "--lora",
            zoo / "lora000",
            "--group",
            group,
            "--condition",
            100,
            "--dtype",
            dtype,
        )
        assert (
            told["holds"]
            == told["promised"]
            == (model in ("svd", "dense", "gl_net") or (model == "o_align" and group == "o"))
        )
        assert told["relative_change"] <= {"float32": 1e-3, "float64": 1e-9}[dtype] or not told["promised"]


def test_what_rounding_may_have_moved_is_said_to_be_that() -> None:
    words = [
        "invariance",
        "--checkpoint",
        str(MODEL),
        "--lora",
        str(ROOT / "sample_loras/glosses/loras/0001"),
        "--condition",
    ]
    assert "--dtype float64 tells" in " ".join(run(app, [*words, "1e12"]).output.split())
    assert "--dtype float64 tells" not in run(app, [*words, "10"]).output


def test_tables_for_people(zoo: Path, tmp_path: Path) -> None:
    for arguments in (
        ["scan", zoo],
        ["probe", zoo / "lora000"],
        ["train", "--zoo", zoo, "--target", "size", "--out", tmp_path / "r", "--epochs", 2],
    ):
        result = run(app, [*map(str, arguments)])
        assert result.exit_code == 0 and "Traceback" not in result.output
    assert "norms only" in result.output and "40 LoRAs: 28 train, 6 validation, 6 test." in result.output
    assert "interval of the test R²" in result.output, "beside few LoRAs it says the most"
    assert "not known" in result.output and "nan" not in result.output, "a constant ranks nothing"
    result = run(app, ["predict", "--checkpoint", str(tmp_path / "r"), str(zoo)])
    assert result.exit_code == 0 and "lora039" in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["scan", "/no/such"], "not a folder"),
        (["probe", "/no/such.safetensors"], "No such file"),
        (["train", "--zoo", "ZOO", "--target", "nothing", "--out", "OUT"], "No label column 'nothing'"),
        (
            ["train", "--zoo", "ZOO", "--target", "size", "--model", "nobody", "--out", "OUT"],
            "There is no model 'nobody'",
        ),
        (["train", "--zoo", "ZOO", "--target", "size", "--out", "OUT", "--resume"], "nothing to resume"),
        (["predict", "--checkpoint", "/no/such", "ZOO"], "no checkpoint there"),
        (["predict", "--checkpoint", str(MODEL), "/no/such.pt"], "/no/such.pt: The file cannot be read"),
        (["invariance", "--checkpoint", str(MODEL), "--lora", "/no/such.pt"], "/no/such.pt: The file cannot"),
        (["predict", "--checkpoint", "~nobody of that name/model", "ZOO"], "no checkpoint there"),
        (["scan", "ZOO", "--labels", "~nobody of that name/labels.csv"], "No such file"),
        (["convert", "~nobody of that name/a.safetensors", "--to", "kohya", "--out", "OUT"], "No such file"),
    ],
)
def test_errors_are_sentences(arguments: list[str], reason: str, zoo: Path, tmp_path: Path) -> None:
    arguments = [{"ZOO": str(zoo), "OUT": str(tmp_path)}.get(word, word) for word in arguments]
    result = run(app, arguments)
    assert result.exit_code == 1 and reason in result.output and "Traceback" not in result.output


def test_a_misfit_is_explained(zoo: Path, tmp_path: Path) -> None:
    train(zoo, tmp_path / "run")
    write_peft(tmp_path / "alien", random_lora([("x", 3, 4, 1)]))
    result = run(
        app, ["predict", "--checkpoint", str(tmp_path / "run"), str(tmp_path / "alien" / "adapter_model.safetensors")]
    )
    assert result.exit_code == 1 and "does not fit this model: 3 of 3 modules are missing" in result.output
    assert "it adapts others, such as x, so it is most likely of another base model" in " ".join(result.output.split())


def test_bad_options(tmp_path: Path) -> None:
    for options in (["--group", "su"], ["--condition", "0.1"], ["--dtype", "int8"]):
        assert run(app, ["invariance", "--checkpoint", str(tmp_path), "--lora", str(tmp_path), *options]).exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        *("train --batch-size 0", "train --epochs -1", "train --learning-rate nan", "train --learning-rate -1"),
        *("train --dropout 2", "train --width 0", "train --equivariant-width 0", "train --seed -1"),
        *("train --weight-decay inf", "train --patience -1", "crossvalidate --folds 1", "crossvalidate --width 0"),
        *("invariance --seed -1", "generate --steps 0", "sample --spread nan", "sample --seed -1", "merge --seed -1"),
        *("experiment --seeds 0", "experiment --threads 0"),
    ],
)
def test_numbers_that_are_none_for_an_option_are_told_before_anything_starts(wrong: str) -> None:
    command, option, value = wrong.split()
    result = run(app, [command, option, value])
    assert result.exit_code == 2 and option in result.output and "Traceback" not in result.output


def test_images_of_loras_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "v1.5").mkdir()
    assert sheet_titles([None, tmp_path / "v1.5", Path("x/b.safetensors")]) == ["base model", "v1.5", "b"]
    assert sheet_titles([None, Path("x/b.pt"), Path("y/b.pt")]) == ["base model", "1 b", "2 b"]


def test_training_on_a_collection_without_loras_says_what_was_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    result = run(app, ["train", "--zoo", str(tmp_path), "--target", "size", "--out", str(tmp_path / "run")])
    assert result.exit_code == 1 and "There is no LoRA in" in result.output and "cut.safetensors was" in result.output


def test_the_published_files_can_be_scanned(real_loras: Path) -> None:
    found = output("scan", real_loras)
    assert (len(found["loaded"]), len(found["refused"])) == (63, 12)


def test_ctrl_c_stops_with_everything_saved(zoo: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lol_core",
        "train",
        "--zoo",
        str(zoo),
        "--target",
        "size",
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "100000",
        "--patience",
        "0",
    ]
    process = subprocess.Popen(
        [*command, "--json"],
        cwd=ROOT,
        env=os.environ | {"TTY_COMPATIBLE": "1"},  # the bar is drawn although nobody looks
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shown = ""
    while "Epoch 2" not in shown:
        character = process.stderr.read(1) if process.stderr else ""
        assert character, f"the training ended by itself: {shown[-1000:]}"
        shown += character
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    report = json.loads(stdout)
    assert (
        process.returncode == INTERRUPTED and not report["finished"] and report["epochs"] > 0 and "--resume" in stderr
    )


@pytest.mark.parametrize("command", [["train", "--out", "OUT"], ["crossvalidate"]])
def test_a_model_has_its_own_width_unless_another_is_given(
    command: list[str], zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def widths(*arguments: object, **_: object) -> None:
        raise ModelError(f"width {next(a for a in arguments if isinstance(a, TrainingConfig)).shape.width}.")

    monkeypatch.setattr("lol_core.learning.training.train", widths)
    monkeypatch.setattr("lol_core.learning.crossvalidation.crossvalidate", widths)
    options = [part.replace("OUT", str(tmp_path)) for part in command]
    options += ["--zoo", str(zoo), "--target", "size", "--model", "mvprobe"]
    assert "width 512." in run(app, options).output
    assert "width 32." in run(app, [*options, "--width", "32"]).output
    assert "width 48." in run(app, [*options, "--option", "width=48"]).output
    failed = run(app, [*options, "--option", "heads=8"])
    assert failed.exit_code == 1 and "no choice 'heads'. It has width" in " ".join(failed.output.split())


def test_cross_validation_takes_the_settings_of_training() -> None:
    """What was trained can be judged by folds."""
    named = {c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
    options = {name: set(inspect.signature(named[name]).parameters) for name in ("train", "crossvalidate")}
    assert options["train"] - options["crossvalidate"] == {"out_folder", "resume", "shuffled_control", "split"}


def test_what_took_no_part_is_said(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path / "zoo", 20)
    write_peft(tmp_path / "zoo" / "lora003", random_lora(MODULES[:2]))
    labels.loc[5, "size"] = None
    labels.drop(index=7).to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    said = run(app, ["scan", str(tmp_path / "zoo")]).output
    assert "joined by the column 'name'; 1 LoRA without a label, such as lora007/" in said
    command = ["crossvalidate", "--zoo", str(tmp_path / "zoo"), "--target", "size", "--model", "svd"]
    said = run(app, [*command, "--epochs", "1", "--folds", "2"]).output
    assert "18 LoRAs in 2 folds." in said and "2 left out, such as lora005/" in said
    assert "that were not read: 1, such as" in said


def test_what_help_says_of_defaults_and_names_is_so() -> None:
    """They are written out, so that help needs no torch."""
    shapes: dict[str, list[Any]] = {
        "train": [TrainingConfig(), GLNetConfig()],
        "crossvalidate": [TrainingConfig(), GLNetConfig()],
        "experiment": [Budget()],
        "generate": [Sampling()],
    }
    for name, configs in shapes.items():
        command = next(c.callback for c in app.registered_commands if c.callback and c.callback.__name__ == name)
        for option, parameter in inspect.signature(command).parameters.items():
            known = [getattr(config, option) for config in configs if hasattr(config, option)]
            own = option in ("width", "only") and parameter.default is None  # each model's; none
            assert not known or own or parameter.default == known[0], f"{name} --{option}"
    ours = [name for name, kind in MODELS.items() if kind.__module__.startswith("lol_core.")]
    assert sorted(MODEL_NAMES.split(", ")) == sorted(ours)
    assert GROUP_NAMES.split(", ") == [group.key for group in GROUPS]


def test_brackets_in_a_files_name_are_shown(tmp_path: Path) -> None:
    write_peft(tmp_path / "[bold] style", random_lora())
    (tmp_path / "[red]broken.safetensors").write_bytes(b"no header")
    shown = run(app, ["scan", str(tmp_path)]).output
    assert "[bold]" in shown and "[red]" in shown
    assert "[/bold]" in run(app, ["probe", str(tmp_path / "[/bold]")]).output


def test_a_table_shows_a_name_and_sends_no_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files, and what files say, come from strangers."""
    print_table([{"path": ":x:\x1b[31m\n\u202e.pt"}])
    assert r":x:\x1b[31m\n\u202e.pt" in capsys.readouterr().out


def test_predictions_of_an_empty_folder_say_that_it_is_empty(tmp_path: Path) -> None:
    result = run(app, ["predict", "--checkpoint", str(MODEL), str(tmp_path)])
    assert result.exit_code == 1 and "There is no LoRA in" in result.stderr


def test_a_file_of_models_that_cannot_be_used_ends_a_command_with_a_sentence(zoo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lol_core", "crossvalidate", "--zoo", str(zoo), "--target", "size"]
    environment = os.environ | {"LOL_MODELS": str(tmp_path / "gone.py"), "LOL_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"Error: {tmp_path / 'gone.py'}: no such file.")


def test_a_port_that_there_is_not_is_refused() -> None:
    for port in ("0", "65536"):
        result = CliRunner().invoke(app, ["app", "--port", port])
        assert result.exit_code == 2 and "--port" in result.output
