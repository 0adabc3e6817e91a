"""Every command and every block of code in the README and the documents is run, in the order in which they stand; and
the site builds without a warning.

What would take minutes is made short by flags (`SHORTER`), and what needs data or models that are not here gets small
ones (`STAND_INS`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer

from lol_core.cli.commands import app
from lol_core.experiments import NAMES
from lol_core.experiments.search import SMALL
from tests.builders import random_lora, write_peft, write_zoo
from tests.forked import run_anew, run_forked
from tests.hub import serving
from tests.shell import run
from tests.test_finetuning_arc import write_arc, write_qwen
from tests.waiting import PATIENCE

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.xdist_group("documents")  # they share the stand-ins
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
SHORTER = {
    "train": ["--epochs", "2"],
    "crossvalidate": ["--epochs", "1", "--folds", "2"],
    "editor": ["--epochs", "1"],
    "experiment": ["--small"],
    "generate": ["--steps", "2"],
}
TINY = {
    "resolution": 64,
    "steps": [1],
    "batch_sizes": [1],
    "sampling_steps": 1,
    "score_prompts": ["a person"],
    "attributes": ["Eyeglasses"],
}
HALF_WRITTEN = shutil.ignore_patterns("*.pyc.*")  # whole bytecode is copied: it would be compiled for each document
UP_TO_THE_SERVER = """
import os, typer
from lol_core.cli.commands import app
def start(*_):
    raise typer.Exit
os.execve = start"""


@dataclass(frozen=True)
class Block:
    """A fenced block. before: the last line above it that is not empty."""

    language: str
    text: str
    before: str


def blocks(document: Path) -> Iterator[Block]:
    lines = document.read_text().splitlines()
    i = 0
    while i < len(lines):
        fence = re.match(r"(`{3,})(.*)", lines[i])
        if fence is None:
            i += 1
            continue
        end = next(k for k in range(i + 1, len(lines)) if lines[k].strip() == fence[1])
        before = next((line for line in reversed(lines[:i]) if line.strip()), "")
        yield Block(fence[2].strip(), "\n".join(lines[i + 1 : end]) + "\n", before)
        i = end + 1


CODE = [document for document in DOCUMENTS if any(block.language in ("", "python") for block in blocks(document))]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a document names → what is here: the small base for Stable Diffusion, drawn people for CelebA, and a Qwen2
    that knows sixteen words.
    """
    place = tmp_path_factory.mktemp("stand-ins")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(ROOT)
        patches.setattr(sys, "argv", sys.argv)
        for part, options in (("people", ["--count", "10", "--workers", "1"]), ("things", [])):
            run([sys.executable, "-m", "lol_core", "finetune", part, "--out", str(place / part), *options])
    return {
        "CompVis/stable-diffusion-v1-4": "sample_loras/small-diffusion",
        "openai/clip-vit-base-patch16": "sample_loras/small-clip",
        "CELEBA": str(place / "people"),
        "IMAGENETTE": str(place / "things"),
        "ARC": str(write_arc(place / "arc")),
        "Qwen/Qwen2-1.5B": str(write_qwen(place / "qwen")),
    }


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A copy of what the documents talk about, in which they may write."""
    for name in ("lol_core", "pages", "ui", "benchmarks", "docs/results"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=HALF_WRITTEN)
    for name in (
        "app.py",
        "requirements.txt",
        "requirements-notebooks.txt",
        "requirements-dev.txt",
        "requirements-cluster.txt",
        "Makefile",
        "pyproject.toml",
        "README.md",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "sample_loras").symlink_to(ROOT / "sample_loras")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "epochs.json").write_text(json.dumps({"epochs": [1]}))
    return tmp_path


def as_run(command: str, stand_ins: dict[str, str]) -> list[str]:
    """What is run for a line of a document."""
    words = [stand_ins.get(word, word) for word in shlex.split(command, comments=True)]
    if words[0] == "make":
        return ["make", "--dry-run", *words[1:]]
    if words[:2] == ["python3.11", "-m"]:
        return [sys.executable, "-m", "venv", "--without-pip", ".venv"]
    if words[:2] == ["pip", "install"]:
        return [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--no-index",
            "--no-deps",
            *(word for word in words[2:] if word not in ("-e", ".")),
        ]
    if words[0] == "streamlit":
        return [
            sys.executable,
            "-c",
            (
                f"from streamlit.testing.v1 import AppTest; assert not AppTest.from_file({words[2]!r},"
                f" default_timeout={PATIENCE}).run().exception"
            ),
        ]
    if words[:2] == ["ray", "start"]:  # its options are checked; a cluster is started by tests/test_cluster.py
        ask = f"from ray.scripts.scripts import start; start.make_context('start', {words[2:]!r})"
        return [sys.executable, "-c", ask]
    if words[:3] == ["python", "-m", "benchmarks.cost"]:
        return [sys.executable, *words[1:]]
    assert words[:3] == ["python", "-m", "lol_core"], f"no way to run {command!r} is known"
    if words[3] == "app":  # up to where the server would take the place of the process
        return [sys.executable, "-c", f"{UP_TO_THE_SERVER}\napp({words[3:]!r}, standalone_mode=False)"]
    if words[3:5] == ["finetune", "zoo"]:
        words[words.index("--mixed-precision") + 1] = "no"
        small = (
            ["--count", "2", "--settings", "epochs.json"]
            if "arc" in words
            else ["--count", "10", "--stack", "10", "--settings", "tiny.json"]
        )
        return [sys.executable, *words[1:], *small]
    if words[-2:] == ["--workers", "ray"]:  # the same by another executor
        words[-1] = "1"
    return [sys.executable, *words[1:], *SHORTER.get(words[3], [])]


@contextmanager
def on_the_hub(place: Path) -> Iterator[dict[str, str]]:
    """The settings under which the hub is a server of this test, with what `sources.md` opens on it."""
    with serving() as hub:
        write_zoo(place / "adapters", 3)
        hub.add("models/someone/adapters", place / "adapters")
        for i, licence in enumerate(("mit", "apache-2.0")):
            hub.add(f"models/someone/adapter{i}", place / "adapters" / f"lora00{i}")
            card = f"---\nlicense: {licence}\n---\n".encode()
            hub.repositories[f"models/someone/adapter{i}"].files["README.md"] = card
        for i in range(SMALL.loras or 0):
            folder = place / "celeba" / f"model_{i % 4}_0_0_0_{i}"
            write_peft(folder / "unet", random_lora((("mid_block.attentions.0.attn1.to_q", 24, 24, 4),), i), alpha=27)
            torch.save(27.0 + i, folder / "score")
        packed = Path(shutil.make_archive(str(place / "models_4"), "zip", place / "celeba"))
        hub.add("datasets/moeputterman/LearningOnLoRAs", {"celeba/models_4.zip": packed.read_bytes()})
        yield {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(place / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@pytest.mark.parametrize("document", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_shows_runs(
    document: Path,
    workplace: Path,
    stand_ins: dict[str, str],
    cache_of_the_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if document.name == "cluster.md":
        pytest.importorskip("ray", reason="Ray, an optional extra, is not installed")
    script = ["from tests.shell import run"]
    for block in blocks(document):
        named = re.search(r"`([\w/.]+\.py)`", block.before)
        if block.language == "python" and named and re.search(r"Save it as|add:$", block.before):
            mode = "a" if block.before.endswith("add:") else "w"
            script.append(f"open({named[1]!r}, {mode!r}).write({block.text!r})")
        elif block.language == "python":
            short = re.sub(r"epochs=\d+", "epochs=2", block.text)
            script.append(re.sub(r"TrainingConfig\((?!.*epochs)", "TrainingConfig(epochs=2, ", short))
        elif not block.language:
            script += [f"run({as_run(line, stand_ins)!r})" for line in block.text.splitlines() if line.strip()]
        else:
            assert block.language.startswith("{"), f"{document}: a block in {block.language!r}, which nothing runs"
    environment = os.environ | {
        "LOL_CACHE_DIR": str(cache_of_the_file),  # of one reader of all the documents
        "PYTHONPATH": f"{workplace}{os.pathsep}{ROOT}",
    }
    if document.name == "own_model.md":
        environment["LOL_MODELS"] = str(workplace / "rows.py")
    printed = tmp_path_factory.mktemp("printed")
    if document.name == "sources.md":
        with on_the_hub(tmp_path_factory.mktemp("hub")) as settings:  # which huggingface_hub reads as it is imported
            ended = run_anew("\n".join(script), workplace, environment | settings, printed / "document")
    else:
        ended = run_forked("\n".join(script), workplace, environment, printed / "document")
    assert ended == 0, (printed / "document").read_text()[-6000:]
    if document.name == "own_model.md":
        assert "Row norms" in (printed / "document").read_text()
        ask = f"""from streamlit.testing.v1 import AppTest
from tests.waiting import until
test = AppTest.from_file("app.py", default_timeout={PATIENCE}).run().switch_page("pages/Train.py")
until(lambda: test.run().multiselect, "the page, whose collection is opened beside it")
print(test.multiselect)"""
        run_forked(ask, workplace, environment, printed / "page")
        assert "Row norms" in (printed / "page").read_text(), "the sixth model stands in the app's picker"


def test_a_group_of_tests_is_sent_to_one_process(request: pytest.FixtureRequest) -> None:
    """By its name after each test's own; versions of pytest that pytest-xdist does not know send them anywhere."""
    if hasattr(request.config, "workerinput") and request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@documents")


def test_each_command_stands_in_a_document_with_an_example() -> None:
    """All but those that serve the app or make what is committed: zoos, and the archives of a release."""
    shown = {line for document in CODE for block in blocks(document) for line in block.text.splitlines()}

    def commands(name: str, command: object) -> Iterator[str]:
        parts = getattr(command, "commands", None)
        if parts is None:
            yield name
        for part, child in (parts or {}).items():
            yield from commands(f"{name} {part}".strip(), child)

    not_run = re.compile("app|store clear|zoo pack|finetune .*")
    ours = {name for name in commands("", typer.main.get_command(app)) if not not_run.fullmatch(name)}
    begun = [f"{line} ".removeprefix("python -m lol_core ") for line in shown]
    assert len(ours) > 20 and not {name for name in ours if not any(line.startswith(f"{name} ") for line in begun)}


def test_the_readme_names_every_experiment() -> None:
    (part,) = re.findall(r"`experiment` makes .+?\nWhat it fitted", (ROOT / "README.md").read_text(), re.DOTALL)
    numbered = re.compile(r"(table[2-4]|figure4)")
    listed = set(re.findall(r"\w+", re.sub(r"\(.*?\)|\*\*.*?\*\*", "", part)))
    assert not [name for name in NAMES if not numbered.match(name) and name not in listed]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    not_shown = ("*.pyc.*", "_build", ".ipynb_checkpoints", "loras", "previews", "checkpoints", "*.safetensors")
    for name in ("docs", "notebooks", "lol_core", "sample_loras"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(*not_shown))
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", "site"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {
        "index.html",
        "tutorial.html",
        "api.html",
        "results.html",
        "howto/own_model.html",
        "notebooks/01_what_a_lora_is.html",
    } <= pages


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if not re.match(r"https?:", target):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
