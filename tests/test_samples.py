"""Sample zoos from release archives, and the stops of the guided visit on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections import samples
from lol_core.collections.folder import Zoo
from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.errors import ZooError
from lol_core.insight.ranking import ways
from tests.conftest import ROOT
from tests.hub import Answer, Hub, hub
from ui.state import loaded_checkpoints
from ui.visit import ATTRIBUTES, SCORE, STOPS, ZOO

__all__ = ["hub"]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the archive of a small synthetic `glosses`; the program is no clone."""
    for path, size in (("glosses/labels.csv", 9), ("glosses/loras/a", 700_000), ("checkpoints/glosses-x/c.json", 9)):
        (tmp_path / "made" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / path).write_bytes(bytes(size))
    monkeypatch.setattr(samples, "CLONE", tmp_path / "no clone")
    monkeypatch.setattr(samples, "MANIFEST", tmp_path / "samples.json")
    monkeypatch.setenv("LOL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LOL_RELEASE", raising=False)
    archive = samples.pack("glosses", tmp_path / "made", tmp_path / "release")
    assert archive == samples.pack("glosses", tmp_path / "made", tmp_path / "again"), "the same files, the same archive"
    samples.write_manifest("", {"glosses": archive}, samples.MANIFEST)
    return tmp_path / "release"


def test_the_manifest_is_of_the_zoos_of_this_clone(tmp_path: Path) -> None:
    """All by the sizes that a stored zip of their files has, one by its checksum. `lol zoo pack` writes it anew."""
    listed = json.loads(samples.MANIFEST.read_text())["archives"]
    assert list(listed) == list(samples.SAMPLES)
    for name in listed:
        files = list(samples._files(name, samples.CLONE))
        names = sum(len(file.relative_to(samples.CLONE).as_posix().encode()) for file in files)
        size = 22 + (30 + 46) * len(files) + 2 * names + sum(file.stat().st_size for file in files)
        assert samples.archive_of(name).bytes == size, name
    assert samples.pack("glosses", samples.CLONE, tmp_path) == samples.archive_of("glosses")


def test_a_download_that_is_cut_goes_on(release: Path, hub: Hub) -> None:
    content = (release / "glosses.zip").read_bytes()
    hub.add("datasets/o/r", {"glosses.zip": content})
    cuts = iter([Answer(200, body=content, cut=True)])
    hub.fail = lambda method, path: next(cuts, None)
    seen: list[Progress] = []
    place = f"{hub.endpoint}/datasets/o/r/resolve/main"
    folder = samples.get("glosses", place, Reporter(seen.append))
    assert folder == samples.samples_folder() / "glosses" and (folder / "loras" / "a").stat().st_size == 700_000
    assert (samples.samples_folder() / "checkpoints" / "glosses-x" / "c.json").is_file()
    assert hub.asked[-1].range == f"bytes={len(content) // 2}-" and hub.asked[-1].sent < len(content)
    assert any("of 1 MB" in progress.message for progress in seen)
    asked = len(hub.asked)
    assert samples.get("glosses", place) == folder and len(hub.asked) == asked, "it is here"


def test_a_download_that_is_stopped_goes_on(release: Path, hub: Hub) -> None:
    hub.add("datasets/o/r", {"glosses.zip": (release / "glosses.zip").read_bytes()})
    place = f"{hub.endpoint}/datasets/o/r/resolve/main"
    with pytest.raises(Stopped, match="kept"):
        samples.get("glosses", place, Reporter(stop=lambda: True))
    (part,) = samples.samples_folder().glob("*.part")
    assert part.stat().st_size > 0 and samples.sample_zoos() == {}
    samples.get("glosses", place)
    assert hub.asked[-1].range != "bytes=0-" and list(samples.sample_zoos()) == ["glosses"]
    assert not part.exists()


def test_a_release_that_is_not_there_says_where_it_was_looked_for(release: Path, hub: Hub) -> None:
    with pytest.raises(ZooError, match=r"There is no http://127\.0\.0\.1:\d+/datasets/.*/glosses\.zip\. Check"):
        samples.get("glosses", f"{hub.endpoint}/datasets/o/r/resolve/main")
    with pytest.raises(ZooError, match=r"glosses\.zip cannot be read .* Name the folder"):
        samples.get("glosses", str(release.parent))


def test_another_file_than_was_published_is_refused(release: Path) -> None:
    with (release / "glosses.zip").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(ZooError, match=r"checksum .* removed"):
        samples.get("glosses", str(release))
    assert samples.sample_zoos() == {} and not list(samples.samples_folder().glob("*.part"))


def test_the_command_says_the_size_and_where_it_is(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = CliRunner().invoke(app, ["zoo", "get", "glosses"])
    assert nowhere.exit_code == 1 and "--from" in nowhere.output and "Downloading" not in nowhere.output
    unknown = CliRunner().invoke(app, ["zoo", "get", "gloses"])
    assert unknown.exit_code == 1 and "There are glosses" in unknown.output
    monkeypatch.setenv("LOL_RELEASE", str(release))
    done = CliRunner().invoke(app, ["zoo", "get", "glosses"])
    assert done.exit_code == 0 and "Downloading 1 MB" in done.output
    assert str(samples.samples_folder() / "glosses") in done.output.replace("\n", "")
    shutil.rmtree(release)
    assert "Downloading" not in CliRunner().invoke(app, ["zoo", "get", "glosses"]).output


def test_the_stops_of_the_visit_are_there() -> None:
    zoo = Zoo.open(ROOT / "sample_loras" / ZOO)
    models = loaded_checkpoints(zoo)
    assert {ATTRIBUTES, SCORE} <= set(models)
    fields = {name: value for stop in STOPS for name, value in stop.fields.items()}
    assert fields["rank_by"] in ways(zoo, models) and fields["colour"] in zoo.labels
