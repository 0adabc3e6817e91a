"""What a training leaves behind: whole or not at all, and read with a sentence about what is wrong."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections.zoo import Zoo
from lol_core.errors import CheckpointError
from lol_core.insight.predictions import opinions
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import FORMAT, Checkpoint
from lol_core.learning.metrics import Scores
from lol_core.learning.models import MODELS
from lol_core.learning.verdict import Difference
from tests.builders import MODULES, random_lora, write_peft
from tests.test_training import QUICK, fit, weights_of


def test_a_checkpoint_comes_back_whole(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    for model in MODELS:
        checkpoint = fit(synthetic_zoo, tmp_path / model, replace(QUICK, model=model))
        back = Checkpoint.load(tmp_path / model)
        loras = [synthetic_zoo.load(id) for id in back.split["test"]]
        assert np.array_equal(back.predict(loras), checkpoint.predict(loras))
        assert back.predict([]).shape == (0, back.task.outputs)
        assert back.config == replace(checkpoint.config, model_config=checkpoint.config.shape)
        for name in ("task", "split", "metrics", "history", "fingerprint", "interval", "spec", "created"):
            assert getattr(back, name) == getattr(checkpoint, name)
        assert sorted(p.name for p in (tmp_path / model).iterdir()) == [
            "README.md",
            "checkpoint.json",
            weights_of(tmp_path / model).name.replace("model-", "known-"),
            weights_of(tmp_path / model).name,
            "state.safetensors",
        ]
        card = ModelCard.load(tmp_path / model / "README.md")
        assert "control: norms only" in card.text and model in card.data.tags


def test_what_is_not_defined_is_written_as_valid_json(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = fit(synthetic_zoo, tmp_path, QUICK)
    checkpoint.metrics["test"] = Scores({"r2": 0.5, "kendall_tau": math.nan})
    checkpoint.interval = 0.25, math.nan
    checkpoint.differences = {"constant": {"r2": Difference(0.5, math.nan, math.nan)}}
    checkpoint.history[-1]["validation_score"] = math.nan
    checkpoint.save(tmp_path)
    assert not re.search("NaN|Infinity", (tmp_path / "checkpoint.json").read_text())
    back = Checkpoint.load(tmp_path)
    assert back.interval is not None
    gap = back.differences["constant"]["r2"]
    undefined = (back.metrics["test"]["kendall_tau"], back.interval[1], gap.low, back.history[-1]["validation_score"])
    assert np.isnan(undefined).all() and (back.metrics["test"]["r2"], back.interval[0], gap.value) == (0.5, 0.25, 0.5)


def test_damaged_checkpoints(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    fit(synthetic_zoo, tmp_path / "good")
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        Checkpoint.load(tmp_path)

    def damaged(name: str, **changes: object) -> Path:
        shutil.copytree(tmp_path / "good", tmp_path / name)
        path = tmp_path / name / "checkpoint.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return tmp_path / name

    with pytest.raises(CheckpointError, match=f"format 99; this version reads format {FORMAT}"):
        Checkpoint.load(damaged("version", format=99))
    with pytest.raises(CheckpointError, match="names the model 'nobody'"):
        Checkpoint.load(damaged("model", config={"model": "nobody"}))
    with pytest.raises(CheckpointError, match=r"names the model \[\]"):
        Checkpoint.load(damaged("models", config={"model": []}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: config is \[\]; expected an object"):
        Checkpoint.load(damaged("config", config=[]))
    with pytest.raises(CheckpointError, match="created is None; expected text"):
        Checkpoint.load(damaged("created", created=None))
    with pytest.raises(CheckpointError, match="missing or malformed"):
        Checkpoint.load(damaged("task", task={"kind": "regression"}))
    (damaged("json") / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="no valid JSON"):
        Checkpoint.load(tmp_path / "json")
    weights_of(damaged("weights")).write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="incomplete"):
        Checkpoint.load(tmp_path / "weights")
    spec = json.loads((tmp_path / "good" / "checkpoint.json").read_text())["spec"]
    spec["modules"][0]["n"] += 1
    with pytest.raises(CheckpointError, match="do not fit the model"):
        Checkpoint.load(damaged("geometry", spec=spec))


def test_a_checkpoint_takes_nothing_away_but_an_older_one(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    others = {name: tmp_path / name for name in ("model.safetensors", "model_0001.safetensors", "README.md", "log.txt")}
    for name, path in others.items():
        path.write_text(name)
    first = fit(synthetic_zoo, tmp_path, QUICK)
    assert all(path.read_text() == name for name, path in others.items())
    (old,) = tmp_path.glob("model-*.safetensors")
    others["model.safetensors"].rename(tmp_path / "kept")
    first.save(tmp_path)
    (new,) = tmp_path.glob("model-*.safetensors")
    assert new != old and others["model_0001.safetensors"].exists() and Checkpoint.load(tmp_path).finished


def test_a_folder_that_cannot_be_written_is_a_sentence(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        fit(synthetic_zoo, tmp_path / "file" / "run")


def test_a_full_disk_leaves_the_old_checkpoint(
    synthetic_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = fit(synthetic_zoo, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.json").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lol_core.learning.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*Free some disk space"):
        checkpoint.save(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.json").read_bytes() == before and not list(tmp_path.glob("*.writing"))


KILLED = """
import os, sys
from pathlib import Path
from lol_core.learning.card import model_card
from lol_core.learning.checkpoint import Checkpoint

folder, step = Path(sys.argv[1]), 0
other = Checkpoint.load(sys.argv[2])
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
while True:
    step += 1
    if (child := os.fork()) == 0:
        left = step

        def killed(event, arguments):
            global left
            if event in STEPS and str(folder) in str(arguments):
                left -= 1
                if left == 0:
                    os._exit(9)

        sys.addaudithook(killed)
        other.save(folder)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    found = Checkpoint.load(folder)
    same = [bool((a == b).all()) for a, b in zip(found.model.parameters(), other.model.parameters())]
    card = folder / "README.md"
    print(found.config.seed, all(same), not card.exists() or card.read_text() == model_card(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_step_leaves_a_whole_checkpoint(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    """The first checkpoint (seed 1) is replaced by the second (seed 2), in a process that ends at each of its steps on
    the disk.
    """
    for seed in (1, 2):
        fit(synthetic_zoo, tmp_path / str(seed), replace(QUICK, seed=seed, epochs=1))
    folders = [str(tmp_path / "1"), str(tmp_path / "2")]
    done = subprocess.run([sys.executable, "-c", KILLED, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = done.stdout.splitlines()
    assert len(states) > 4 and set(states) == {"1 False True", "2 True True"}, states
    assert Checkpoint.load(tmp_path / "1").config.seed == 2
    assert sorted(path.suffix for path in (tmp_path / "1").iterdir()) == [
        ".json",
        ".md",
        ".safetensors",
        ".safetensors",
        ".safetensors",
    ]


def test_another_zoo_gets_predictions_where_it_can(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = fit(synthetic_zoo, tmp_path / "run", replace(QUICK, model="mlp"))
    other = tmp_path / "other"
    write_peft(other / "fits", random_lora(MODULES, 1))
    write_peft(other / "missing", random_lora(MODULES[:2], 2))
    write_peft(other / "shape", random_lora([(MODULES[0][0], 9, 6, 2), *MODULES[1:]], 3))
    write_peft(other / "rank", random_lora([(n, a, b, 3) for n, a, b, _ in MODULES], 4))
    nan = random_lora(MODULES, 5)
    nan.layers[0].U[0, 0] = float("nan")
    write_peft(other / "nan", nan)
    write_peft(other / "more", random_lora([*MODULES, ("extra", 4, 4, 2)], 6))
    zoo = Zoo.open(other)
    answers = Answers.of(checkpoint, zoo)
    table, refused = answers.values, answers.refused
    assert [id.split("/")[0] for id in table.index] == ["fits", "more"]
    reasons = {id.split("/")[0]: reason for id, reason in refused.items()}
    assert "1 of 3 modules are missing, first layer.1.attention.self.key" in reasons["missing"]
    assert "is 9 × 6; expected 8 × 6: another base model" in reasons["shape"]
    assert "rank 2 and takes no other" in reasons["rank"] and "NaN" in reasons["nan"]
    notes = checkpoint.compare(zoo)
    assert "not the collection it was trained on (synthetic)" in notes[0] and "2 of 6 LoRAs do not fit it" in notes[1]
    assert notes[2].startswith("1 of 6 LoRAs adapt more than the 3 modules that it reads, e.g. more/")
    assert checkpoint.compare(synthetic_zoo) == []
    doubts = {id: checkpoint.doubts(zoo.load(id)) for id in table.index}
    assert doubts[table.index[0]] == [] and "Of its 4 modules the model reads 3" in doubts[table.index[1]][0]


def test_a_checkpoint_without_parts_has_no_copies(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    """One that was made in Python, of a model that was trained elsewhere."""
    checkpoint = replace(fit(synthetic_zoo, tmp_path / "run"), split={}, digests={})
    checkpoint.save(tmp_path / "made")
    assert checkpoint.copies == checkpoint.recalled == 0
    assert "Copies of others" not in (tmp_path / "made" / "README.md").read_text()


def test_loras_that_name_another_base_of_the_same_shapes_are_told(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    fit(synthetic_zoo, tmp_path / "run")
    checkpoint = Checkpoint.load(tmp_path / "run")
    assert checkpoint.bases == ("synthetic/base",)
    names = {"same": "synthetic/base", "moved": "/home/me/models/Base.safetensors", "other": "another/thing"}
    for name, base in names.items():
        write_peft(tmp_path / "zoo" / name, random_lora(MODULES, 1))
        path = tmp_path / "zoo" / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    zoo = Zoo.open(tmp_path / "zoo")
    _, told = checkpoint.compare(zoo)
    assert told.startswith("1 of 3 LoRAs fit it and name another base model") and "another/thing" in told
    moved, other, same = (checkpoint.doubts(zoo.load(id)) for id in sorted(zoo.ids))
    assert moved == same == [] and "(synthetic/base): another/thing." in other[0]
    result = CliRunner().invoke(
        app, ["predict", "--checkpoint", str(tmp_path / "run"), str(tmp_path / "zoo" / "other")]
    )
    assert result.exit_code == 0 and other[0] in result.stderr
    assert other[0] in opinions({"it": checkpoint}, zoo.load("other/adapter_model.safetensors"))["remark"][0]


def test_states_are_safetensors_only(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    fit(synthetic_zoo, tmp_path / "run")
    for path in (tmp_path / "run").glob("*.safetensors"):
        assert load_file(path)
    save_file({"x": torch.zeros(1)}, tmp_path / "run" / "state.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        fit(synthetic_zoo, tmp_path / "run", resume=True)
