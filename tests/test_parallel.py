"""One model trained by two processes on the CPU (gloo), as `accelerate launch` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.errors import ModelError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.parallel import Alone, first_here
from tests.builders import write_zoo
from tests.conftest import ROOT
from tests.waiting import PATIENCE

TRAIN = "--epochs 4 --batch-size 7 --width 16 --device cpu --json"
LAUNCH = "-m torch.distributed.run --standalone --nproc-per-node 2 --no-python"


QUESTIONS = ("--target positive --class-weights", "--target size --model svd")
IN_TURN = (
    "import sys; from lol_core.cli.commands import app; [app(c.split(), standalone_mode=False) for c in sys.argv[1:]]"
)


def trained(zoo: Path, out: Path, processes: int) -> list[dict[str, object]]:
    """What is printed of each question. Batches of 7, so that shares are unequal and the last one's LoRA is too few
    for two.
    """
    commands = [f"train --zoo {zoo} --out {out / str(i)} {TRAIN} {options}" for i, options in enumerate(QUESTIONS)]
    if processes == 1:
        results = [CliRunner().invoke(app, command.split()) for command in commands]
        assert all(result.exit_code == 0 for result in results), results
        printed = "".join(result.stdout for result in results)
    else:
        launch = [sys.executable, *LAUNCH.split(), sys.executable, "-c", IN_TURN, *commands]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-2000:]
        printed = done.stdout
    return list(json.loads("[" + printed.replace("}\n{", "},{") + "]"))


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 31)  # 22 of them to train on: batches of 7, 7, 7 and 1
    curves = []
    for processes in (1, 2):
        printed = trained(tmp_path / "zoo", tmp_path / str(processes), processes)
        assert [report["finished"] for report in printed] == [True, True], "and each is reported once"
        runs = [Checkpoint.load(tmp_path / str(processes) / str(i)) for i in range(len(QUESTIONS))]
        curves.append([[x["train_loss"], x["validation_loss"]] for run in runs for x in run.history])
        assert all(len(run.split["train"]) % 7 == 1 for run in runs)
    assert len(curves[0]) == 8
    assert [x for pair in curves[1] for x in pair] == pytest.approx([x for pair in curves[0] for x in pair], rel=1e-4)


class Other(Alone):
    """One of two processes. told: what the other one answers; asked: what this one has said, in turn."""

    def __init__(self, first: bool, told: bool = False):
        super().__init__(torch.device("cpu"))
        self.first, self.told, self.asked = first, told, list[bool]()

    def any(self, here: bool) -> bool:
        self.asked.append(here)
        return here or self.told


def test_the_first_process_works_before_the_others_and_tells_them_how_it_went() -> None:
    first, other = Other(first=True), Other(first=False)
    assert first_here(first, lambda: len(first.asked)) == 0 and first.asked == [False]
    assert first_here(other, lambda: len(other.asked)) == 1 and other.asked == [False]
    with pytest.raises(ZeroDivisionError):
        first_here(first, lambda: 1 // 0)
    assert first.asked == [False, True]
    with pytest.raises(ModelError, match="first process"):
        first_here(Other(first=False, told=True), lambda: 1)
