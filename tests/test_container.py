"""The Dockerfile, of which a Space is built too, checked and run as far as that goes without Docker."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from packaging.specifiers import SpecifierSet
from playwright.sync_api import Browser, Page, expect

from lol_core.learning.checkpoint import Checkpoint
from tests.browser import CHROMIUM, downloaded, server, settled
from tests.conftest import ROOT
from tests.waiting import PATIENCE

pytestmark = pytest.mark.xdist_group("wheel")  # they share the built wheels, and a browser


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(word, re.sub(r"\s+", " ", rest).strip()) for word, _, rest in pairs]


def of(instruction: str) -> list[str]:
    return [rest for word, rest in steps() if word == instruction]


def environment() -> dict[str, str]:
    pairs = (word.partition("=") for rest in of("ENV") for word in shlex.split(rest))
    return {name: value for name, _, value in pairs}


def test_the_image_serves_others_as_nobody_with_one_volume() -> None:
    words = [word for word, _ in steps()]
    assert set(words) == {"FROM", "ENV", "RUN", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}
    assert all(words.count(word) == 1 for word in ("FROM", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"))
    (user,), (volume,), made = of("USER"), of("VOLUME"), environment()
    assert int(user) > 0 and f"--uid {user}" in " ".join(of("RUN")) and words.index("USER") > words.index("COPY")
    assert made["LOL_CACHE_DIR"] == volume and made["HF_HOME"].startswith(f"{volume}/") and made["LOL_SERVED"]
    assert f"--owner lol {volume}" in of("RUN")[-1], "which it may write to"
    (python,) = re.findall(r"python:(3\.\d+)-slim", of("FROM")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(python)
    assert all(f"/python{python}/" in target for target in (rest.split()[-1] for rest in of("COPY")))


def test_a_space_has_the_same_port_and_all_that_is_built_from() -> None:
    front = metadata_load(ROOT / "space" / "README.md") or {}
    (exposed,), command = of("EXPOSE"), json.loads(of("CMD")[0])
    assert front["sdk"] == "docker" and str(front["app_port"]) == exposed
    assert command[command.index("--port") + 1] == exposed and command[command.index("--address") + 1] == "0.0.0.0"
    assert f":{exposed}/" in of("HEALTHCHECK")[0]
    sources = {rest.split()[0] for rest in of("COPY")} | set(re.findall(r"source=([^,\s]+)", " ".join(of("RUN"))))
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    recipe = (ROOT / "Makefile").read_text().partition("\nspace: wheel")[2].partition("\n\n")[0]
    for source in sources:
        assert any(fnmatch(f"{source}/a.whl", line) or fnmatch(source, line) for line in allowed), source
        assert re.search(rf"\s{source}[\s/]", recipe), source
    assert sources == {"dist", "requirements.txt", "sample_loras"}


def test_pip_finds_what_the_image_installs(installed: Path) -> None:
    (command,) = re.findall(r"pip install (.*)", of("RUN")[0])
    command = command.replace("/dist/", f"{installed.parent}/").replace("/requirements.txt", f"{ROOT}/requirements.txt")
    pip = f"{sys.executable} -m pip install --dry-run --no-deps --no-index --ignore-installed"
    done = subprocess.run(["sh", "-c", f"{pip} {command}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install lol-explorer-0.1.0 lol-explorer-core-0.1.0" in done.stdout


def opened(page: Page, address: str) -> Page:
    page.goto(address)
    return settled(page)


def go(page: Page, name: str) -> Page:
    """By a link, which stays in the session."""
    page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name="LoL Explorer" if name == "Home" else name, level=1)).to_be_visible()
    return settled(page)


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_visitors_of_the_installed_app_see_nothing_of_the_machine_or_of_each_other(
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: Page,
    browser: Browser,
    request: pytest.FixtureRequest,
) -> None:
    (copied,) = of("COPY")
    source, target = copied.split()
    beside = installed / target.partition("/site-packages/")[2]
    beside.symlink_to(ROOT / source)
    request.addfinalizer(beside.unlink)
    for name, value in environment().items():
        monkeypatch.setenv(name, re.sub("^/cache", str(tmp_path / "cache"), value))
    script, *words = json.loads(of("CMD")[0])
    command = (str(installed / "bin" / script), *("{port}" if word == of("EXPOSE")[0] else word for word in words))
    log = tmp_path / "log"
    places = (str(tmp_path), str(ROOT), str(installed), sys.prefix, "site-packages")

    def shows_no_place(text: str) -> bool:
        return not any(place in text for place in places)

    with server(tmp_path / "cache", log, command=command, code=installed, folder=tmp_path) as address:
        check, *rest = json.loads(of("HEALTHCHECK")[0].partition(" CMD ")[2])
        rest = [word.replace(of("EXPOSE")[0], address.rpartition(":")[2]) for word in rest]
        assert check == "python" and subprocess.run([sys.executable, *rest], timeout=PATIENCE).returncode == 0
        first, second = page, browser.new_context().new_page()
        alert = opened(second, f"{address}/Zoo?collection=/etc").get_by_test_id("stAlert").first
        expect(alert).to_contain_text("not among what is served here")
        opened(first, f"{address}/Train")
        first.get_by_test_id("stMain").get_by_text("Settings").click()
        first.get_by_role("spinbutton", name="Epochs, at most").fill("2")
        first.keyboard.press("Enter")
        settled(first).get_by_role("button", name="Train", exact=True).click()
        expect(first.get_by_text("on its 48 test LoRAs").first).to_be_visible()
        with zipfile.ZipFile(downloaded(first, first.get_by_role("button", name="Download", exact=True))) as archive:
            archive.extractall(tmp_path / "taken")
        (taken,) = (tmp_path / "taken").iterdir()
        assert Checkpoint.load(taken).task.targets == ("validation_loss",)
        assert shows_no_place((taken / "checkpoint.json").read_text() + (taken / "README.md").read_text())
        go(first, "Predictions")
        button = page.locator("button[kind=secondary]").filter(has_text="Download as CSV")
        exported = downloaded(page, button).read_text()
        assert shows_no_place(page.content() + page.url)
        expect(opened(second, address).get_by_text("Trained models for this collection: 6.")).to_be_visible()
        go(first, "Home")
        expect(page.get_by_text("Trained models for this collection: 7.")).to_be_visible()
        assert shows_no_place(page.content() + second.content())
    assert exported.startswith("lora,") and shows_no_place(exported)
    assert shows_no_place(log.read_text()) and "Traceback" not in log.read_text()
