from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test is one thread here and in what it starts; tests run side by side

import pytest
import torch
from hypothesis import settings

from lol_core.collections.zoo import Zoo
from tests import workers
from tests.builders import write_zoo
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
REAL_LORAS = ROOT.parent / "shared" / "real_loras"
EXPLORER = ROOT / "packaging" / "lol-explorer"
SAMPLE_ZOO = ROOT / "sample_loras" / "glosses"


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, since journeys wait for their browser; at most four, for their memory."""
    return min(4, (os.cpu_count() or 1) + 1)


# Groups of tests that share something, the longest first, so that none is waited for at the end.
LONGEST = ("browser", "documents", "experiments", "wheel", "notebooks", "umap")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        mark = item.get_closest_marker("xdist_group")
        return LONGEST.index(mark.args[0]) if mark and mark.args[0] in LONGEST else len(LONGEST)

    items.sort(key=place)


torch.set_num_threads(1)
torch.manual_seed(0)  # for what test modules draw when they are imported
# the same cases everywhere, on machines of any speed
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a generator of its own is the same on every machine, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """No test leaves more threads than it found: with those of the tests beside it they wait for each other, and what
    comes after takes up to thirty times as long.
    """
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1


@pytest.fixture(scope="module")
def cache_of_the_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def private_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexes and runs of a test never meet those of the user or of another test; those of a file that is marked
    `one_cache` meet each other, as one user's do.
    """
    shared = request.node.get_closest_marker("one_cache")
    place = request.getfixturevalue("cache_of_the_file") if shared else tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LOL_CACHE_DIR", str(place))


@pytest.fixture(autouse=True)
def same_main() -> Iterator[None]:
    """A page that a test has run is not the main module of the processes that later tests start."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(autouse=True, scope="session")
def components_are_looked_for_once() -> Iterator[None]:
    """Each `AppTest` looks through all installed packages for Streamlit's components, which takes most of its time."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


@pytest.fixture(autouse=True, scope="session")
def commands_are_built_once() -> Iterator[None]:
    """Each run of the command line builds all its commands from their signatures, which takes a tenth of a second."""
    import typer.testing

    with pytest.MonkeyPatch.context() as patch:
        built = cache(typer.main.get_command)
        patch.setattr(typer.main, "get_command", built)
        patch.setattr(typer.testing, "_get_command", built)
        yield


@pytest.fixture
def in_threads() -> Iterator[None]:
    """Workers that make a zoo are threads."""
    with workers.in_threads():
        yield


@pytest.fixture(autouse=True)
def few_trees(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forests of the controls that take no time: half of what a small training computes is theirs. As many as users
    have where a test is marked `whole_forests`.
    """
    if not request.node.get_closest_marker("whole_forests"):
        from lol_core.learning.tasks import classes, regression

        for module in (classes, regression):
            monkeypatch.setattr(module, "TREES", 3)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this process."""
    from tests.browser import chromium  # needs Playwright

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def tab(browser: Browser) -> Page:
    """The page that tests have one after the other: each would else compile the frontend anew, for three seconds."""
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    return page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    from tests.browser import cleared  # needs Playwright

    yield cleared(tab)
    cleared(tab)  # a page whose server has ended asks for it again and again, all through the other tests


@pytest.fixture(scope="session")
def real_loras() -> Path:
    """Published LoRA files, which are not part of the repository."""
    if not (REAL_LORAS / "INDEX.tsv").is_file():
        pytest.skip("the published LoRA files are not here")
    return REAL_LORAS


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "synthetic"
    write_zoo(folder, 60)
    return folder


@pytest.fixture
def synthetic_zoo(synthetic_folder: Path) -> Zoo:
    return Zoo.open(synthetic_folder)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pip has installed both wheels."""
    place = tmp_path_factory.mktemp("wheel")
    for folder in (ROOT, EXPLORER):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-index", "--no-compile", "--target", str(place / "site")]
    subprocess.run([*command, *map(str, place.glob("*.whl"))], check=True, capture_output=True)
    return place / "site"
