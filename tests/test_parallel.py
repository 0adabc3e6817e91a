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

TRAIN = "--epochs 4 --batch-size 7 --width 16 --device cpu --json"
LAUNCH = "-m torch.distributed.run --standalone --nproc-per-node 2 --no-python"


def trained(zoo: Path, out: Path, options: str, processes: int) -> str:
    """What is printed. Batches of 7, so that shares are unequal and the last one's LoRA is too few for two."""
    command = f"train --zoo {zoo} --out {out} {TRAIN} {options}".split()
    if processes == 1:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return result.stdout
    launch = [sys.executable, *LAUNCH.split(), sys.executable, "-m", "lol_core", *command]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("options", ["--target positive --class-weights", "--target size --model svd"])
def test_two_processes_have_the_loss_curve_of_one(options: str, tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 31)  # 22 of them to train on: batches of 7, 7, 7 and 1
    curves = []
    for processes in (1, 2):
        printed = trained(tmp_path / "zoo", tmp_path / str(processes), options, processes)
        assert json.loads(printed)["finished"], "and it is reported once"
        checkpoint = Checkpoint.load(tmp_path / str(processes))
        curves.append([[epoch["train_loss"], epoch["validation_loss"]] for epoch in checkpoint.history])
        assert len(checkpoint.split["train"]) % 7 == 1
    assert len(curves[0]) == 4
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
