"""What is installed: a wheel that holds the app."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from playwright.sync_api import Page, expect

import lol_core
from lol_core.collections.samples import pack
from tests.browser import CHROMIUM, server, settled
from tests.conftest import EXPLORER, ROOT

pytestmark = pytest.mark.xdist_group("wheel")  # they share the built wheels, and a browser
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [
        line.split("==")
        for name in ("requirements.txt", "requirements-cluster.txt")
        for line in (ROOT / name).read_text().splitlines()
        if "==" in line
    ]
    return {Requirement(name).name.lower().replace("_", "-"): version for name, version in lines}


def test_the_versions_that_are_tested_lie_in_the_ranges_that_are_installed() -> None:
    extras = PROJECT["optional-dependencies"].values()
    for text in (*PROJECT["dependencies"], *(line for extra in extras for line in extra)):
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:
            continue
        assert wanted.specifier.contains(pins()[wanted.name.lower().replace("_", "-")]), text


def test_the_explorer_is_the_core_of_its_own_version_with_the_app() -> None:
    explorer = tomllib.loads((EXPLORER / "pyproject.toml").read_text())["project"]
    extras = explorer["optional-dependencies"]
    assert extras.keys() == PROJECT["optional-dependencies"].keys()
    assert explorer["version"] == PROJECT["version"] == lol_core.__version__
    for extra, (text,) in {"app": explorer["dependencies"], **extras}.items():
        wanted = Requirement(text)
        assert wanted.name == PROJECT["name"] and wanted.extras == {extra} <= PROJECT["optional-dependencies"].keys()
        assert str(wanted.specifier) == f"=={PROJECT['version']}"


def test_a_wheel_holds_the_library_and_the_app_and_no_zoo(installed: Path) -> None:
    held = {name for wheel in installed.parent.glob("*.whl") for name in ZipFile(wheel).namelist()}
    pages = {f"lol_explorer/pages/{page.name}" for page in (ROOT / "pages").glob("*.py")}
    browser = {f"lol_explorer/ui/webgl/{part.name}" for part in (ROOT / "ui" / "webgl").iterdir() if part.is_file()}
    assert (
        pages
        | browser
        | {
            "lol_core/py.typed",
            "lol_core/insight/mergers/faces.json",
            "lol_explorer/app.py",
            "lol_explorer/.streamlit/config.toml",
        }
        <= held
    )
    assert not any(name.endswith((".safetensors", ".pyc")) or name.startswith("tests") for name in held)


def settled_at(page: Page, address: str) -> None:
    page.goto(address)
    settled(page)


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_the_installed_command_opens_a_folder_in_the_app(
    installed: Path, synthetic_folder: Path, tmp_path: Path, page: Page
) -> None:
    command = ("-m", "lol_core", "app", str(synthetic_folder), "--port", "{port}", "--headless")
    cache, log = tmp_path / "cache", tmp_path / "log"
    with server(cache, log, command=command, code=installed, folder=tmp_path) as address:
        for place in ("", "Zoo", "Invariance", "Experiments"):
            settled_at(page, f"{address}/{place}")
            assert not page.get_by_test_id("stException").count()
            expect(page.get_by_test_id("stSidebar")).to_contain_text("LoRAs open")
    assert "Traceback" not in log.read_text()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_an_app_that_has_no_zoo_gets_one_at_a_click(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Page
) -> None:
    pack("glosses", ROOT / "sample_loras", tmp_path / "release")
    monkeypatch.setenv("LOL_RELEASE", str(tmp_path / "release"))
    command = ("-m", "lol_core", "app", "--port", "{port}", "--headless")
    with server(tmp_path / "cache", command=command, code=installed, folder=tmp_path) as address:
        settled_at(page, f"{address}/Map")
        expect(page.get_by_test_id("stAlert")).to_contain_text("Nothing is open. Open a collection on the page Home")
        settled_at(page, address)
        page.get_by_role("button", name="Get glosses (15 MB)").click()
        expect(page.get_by_text("318 LoRAs open, 0 files refused")).to_be_visible()
        expect(page.get_by_text("Trained models for this collection: 6.")).to_be_visible()
    assert [path.name for path in (tmp_path / "cache" / "sample_loras").glob("*.part*")] == []


APART = "streamlit plotly kaleido umap PIL huggingface_hub fsspec diffusers transformers peft accelerate ray faiss"
"""What extras bring."""
ASKING = (
    "app",
    "experiment table2 --out x",
    "finetune zoo --recipe celeba --data x --base b --out x",
    "generate --base b --prompt p --out p.png",
)
"""Commands that need some of it."""


def test_the_core_reads_and_trains_with_nothing_that_an_extra_brings(synthetic_folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({APART.split()!r}))
from pathlib import Path
from lol_core import TrainingConfig, Zoo
from lol_core.cli.commands import app
from lol_core.collections.opening import open_source
from lol_core.errors import DataMissingError
from lol_core.insight.merging import merge
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train
zoo = Zoo.open({str(synthetic_folder)!r})
config = TrainingConfig("gl_net", ModelConfig(width=8), epochs=1)
model = train(zoo, plan(zoo, ["size"], config), config, Path("model"))
loras = [zoo.load(id) for id in zoo.ids[:2]]
assert len(model.predict(loras)) == 2 and merge(loras, [1, 1]).lora.layers
try:
    open_source("hf://someone/zoo")
except DataMissingError as error:
    print(error)
for words in {ASKING!r}:
    try:
        app(words.split())
    except SystemExit as end:
        assert end.code == 1, words
app(["compare", *(str(zoo.path(id)) for id in zoo.ids[:2])], standalone_mode=False)
app(["audit", {str(synthetic_folder)!r}, "--checkpoint", "model"])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOL_CACHE_DIR": str(tmp_path / "cache"), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "pip install 'lol-explorer-core[hub]'" in done.stdout
    asked = re.findall(r"pip install 'lol-explorer-core\[(\w+)\]'", done.stderr)
    assert asked == ["app", "app", "images", "images"] and "Traceback" not in done.stderr
