"""What a command or the first page imports before its work begins: PyTorch, pandas where there are tables, plotly where
there are figures, and nothing else that takes long to import. Held by names, as times differ between machines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from tests.builders import write_zoo
from tests.conftest import ROOT

SLOW = frozenset(
    {
        "accelerate",
        "diffusers",
        "numba",
        "peft",
        "plotly",
        "scipy.stats",
        "sklearn",
        "streamlit",
        "torch._dynamo",
        "torchmetrics",
        "transformers",
        "umap",
    }
)
"""Packages whose import takes a quarter of a second or more."""


def imported(code: str, *arguments: object, names: frozenset[str] = SLOW) -> set[str]:
    """Which of these packages a program imports, in a process of its own."""
    report = f"\nimport sys; print('imported:', *({set(names)!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", code + report, *map(str, arguments)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("imported:")[2].split())


RUN = """
import json, sys
from typer.testing import CliRunner
from lol_core.cli.commands import app
for words, code in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, (words, result.output)
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("startup") / "zoo"
    write_zoo(folder, 40)
    return folder


def test_help_imports_no_torch() -> None:
    words = [([*words, "--help"], 0) for words in ([], ["train"], ["experiment"], ["finetune"])]
    assert imported(RUN, json.dumps(words), names=SLOW | {"torch", "numpy", "pandas"}) == set()


def test_commands_import_only_what_they_use(zoo: Path, tmp_path: Path) -> None:
    lora, checkpoint = zoo / "lora000", tmp_path / "checkpoint"
    trained = ["train", "--zoo", zoo, "--target", "size", "--model", "gl_net", "--epochs", 1, "--out", checkpoint]
    assert CliRunner().invoke(app, list(map(str, trained))).exit_code == 0
    commands = [
        (["probe", lora], 0),
        (["scan", zoo], 0),
        (["survey", zoo], 0),
        (["duplicates", zoo], 0),
        (["predict", "--checkpoint", checkpoint, lora], 0),
        (["invariance", "--checkpoint", checkpoint, "--lora", lora], 0),
        (["train", "--zoo", zoo, "--target", "no such column", "--out", tmp_path / "none"], 1),
        (["crossvalidate", "--zoo", zoo, "--target", "no such column"], 1),
        (["generate", "--base", tmp_path, "--prompt", "a cat", "--out", tmp_path / "a.png", "--lora", "none"], 1),
    ]
    words = [([str(word) for word in command], code) for command, code in commands]
    assert imported(RUN, json.dumps(words)) == set()


def test_experiments_import_plotly_and_nothing_slower() -> None:
    code = """
from importlib import import_module
from lol_core.experiments.context import *
from lol_core.experiments import NAMES
for name in NAMES:
    import_module(f"lol_core.experiments.{name}")
"""
    assert imported(code) == {"plotly"}


def test_the_first_page_imports_what_draws_it() -> None:
    code = f"""
from streamlit.testing.v1 import AppTest
page = AppTest.from_file({str(ROOT / "app.py")!r}, default_timeout=600).run()
assert not page.exception and page.title
"""
    assert imported(code) == {"streamlit", "plotly"}
