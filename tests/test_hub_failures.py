"""A hub that fails, hangs, changes or is not there: sentences, few waits, and nothing lost."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import torch
from huggingface_hub import constants

from lol_core.collections import http
from lol_core.collections.blob import RangeFile
from lol_core.collections.files import MOST_LATE
from lol_core.collections.opening import open_source
from lol_core.collections.remote_files import Budget, Kept
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError
from tests.builders import random_lora, write_peft
from tests.hub import Answer, Hub, hub, serving, use
from tests.test_hub import folder, organisation, reasons

__all__ = ["folder", "hub"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the program would have waited, which it does not here."""
    waited: list[float] = []
    monkeypatch.setattr(http, "wait", waited.append)
    return waited


def test_a_network_that_goes_away_meanwhile_leaves_what_was_read(
    hub: Hub, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    organisation(hub, tmp_path, 40)
    monkeypatch.setattr("lol_core.collections.hub.READERS", 1)
    served = itertools.count()
    hub.fail = lambda method, path: (
        Answer(429, {"Retry-After": "900"}) if "/resolve/" in path and next(served) > 20 else None
    )
    source = open_source("hf://many")
    assert 0 < len(source) < 40 and len(source) + len(source.refused) == 40
    assert "900 seconds" in source.remarks[0] and not waits
    asked = [a for a in hub.asked if a.status == 429]
    assert len(asked) == 1, "a server that wants to be left alone is left alone"
    hub.fail = lambda method, path: None
    assert len(open_source("hf://many")) == 40


FAILURES: dict[str, tuple[Answer, str]] = {
    "401": (Answer(401), "wants to know who asks"),
    "403": (Answer(403), r"may not read .* \(403\)"),
    "404": (Answer(404, {"X-Error-Code": "RepoNotFound"}), "There is no hf://someone/zoo on the hub, or it is private"),
    "gated": (Answer(403, {"X-Error-Code": "GatedRepo"}), "accept its terms"),
    "429": (Answer(429, {"Retry-After": "7000"}), "answers again in 7000 seconds"),
    "500": (Answer(500), "answered 500"),
    "503": (Answer(503), "answered 503"),
    "cut": (Answer(200, body=b"[" + b" " * 1000 + b"]", cut=True), "connection broke"),
    "nonsense": (Answer(200, body=b"<html>"), "makes no sense"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_hub_that_fails_says_what_to_do(hub: Hub, folder: Path, waits: list[float], what: str) -> None:
    answer, sentence = FAILURES[what]
    hub.fail = lambda method, path: answer
    with pytest.raises(ZooError, match=sentence) as caught:
        open_source("hf://someone/zoo")
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(waits) == (http.TRIES - 1 if what in ("500", "503", "cut", "nonsense") else 0)


@pytest.mark.parametrize("what", ["401", "404", "500", "cut"])
def test_one_file_that_fails_stops_no_collection(hub: Hub, folder: Path, waits: list[float], what: str) -> None:
    hub.add("models/someone/zoo", folder)
    answer, _ = FAILURES[what]
    hub.fail = lambda method, path: answer if "/resolve/" in path and "lora002/adapter_model" in path else None
    source = open_source("hf://someone/zoo")
    assert len(source) == 4 and [entry.path for entry in source.refused] == ["lora002/adapter_model.safetensors"]
    hub.fail = lambda method, path: None
    assert len(open_source("hf://someone/zoo")) == 5, "it is tried again"


def test_a_hub_that_hangs_is_waited_for_no_longer_than_allowed(
    hub: Hub, folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add("models/someone/zoo", folder)
    open_source("hf://someone/zoo")
    hub.fail = lambda method, path: Answer(hang=True)
    source = open_source("hf://someone/zoo")
    assert len(source) == 5 and "within the time" in source.remarks[0]
    hub.add("models/someone/other", folder)
    hung: list[str] = []

    def hang(method: str, path: str) -> Answer | None:
        if not path.endswith("labels.csv"):
            return None
        hung.append(path)
        return Answer(hang=True)

    hub.fail = hang
    other = open_source("hf://someone/other")
    assert len(other) == 5 and "within the time" in str(other.labels_problem)
    assert len(hung) == http.LATE_TRIES, "the hub library's own tries would be many"


def test_of_a_hub_that_hangs_a_few_files_are_asked_for_and_no_more(
    hub: Hub, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("lol_core.collections.hub.READERS", 2)
    organisation(hub, tmp_path, 40)
    hung: list[str] = []

    def hang(method: str, path: str) -> Answer | None:
        if "/resolve/" not in path:
            return None
        hung.append(path)
        return Answer(hang=True)

    hub.fail = hang
    source = open_source("hf://many")
    assert not len(source) and len(source.refused) == 40 and "within the time" in source.remarks[0]
    assert len(hung) <= http.LATE_TRIES * (MOST_LATE + 2)
    hub.fail = lambda method, path: None
    assert len(open_source("hf://many")) == 40


def test_a_wait_for_the_hub_ends_when_the_user_stops(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    pressed = threading.Event()

    def busy(method: str, path: str) -> Answer | None:
        if "lora002/adapter_model" not in path:
            return None
        pressed.set()
        return Answer(429, {"Retry-After": str(http.PATIENCE_S)})

    hub.fail = busy
    start = time.monotonic()
    with pytest.raises(Stopped, match="kept"):
        open_source("hf://someone/zoo", reporter=Reporter(stop=pressed.is_set))
    assert time.monotonic() - start < http.PATIENCE_S / 2
    hub.fail = lambda method, path: None
    assert len(open_source("hf://someone/zoo")) == 5


def test_a_hub_that_is_not_there(
    folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as hub:
        use(hub, monkeypatch, tmp_path / "hub")
    with pytest.raises(ZooError, match=r"127\.0\.0\.1 cannot be reached for hf://someone/zoo"):
        open_source("hf://someone/zoo")


def test_a_busy_hub_is_asked_again_when_it_says(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.add("models/someone/zoo", folder)
    busy = iter([Answer(429, {"Retry-After": "4"}), Answer(429, {"ratelimit": '"api";r=0;t=9'})])
    hub.fail = lambda method, path: next(busy, None)
    assert len(open_source("hf://someone/zoo")) == 5
    assert waits == [4, 9]


def test_a_body_that_was_cut_is_asked_for_again(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.add("models/someone/zoo", folder)
    cut = iter([Answer(206, {"Content-Range": "bytes 0-1999/2000"}, bytes(2000), cut=True)])
    hub.fail = lambda method, path: next(cut, None) if "/cdn/" in path else None
    assert len(open_source("hf://someone/zoo")) == 5 and len(waits) == 1


def test_a_file_that_changes_while_it_is_read_says_so(hub: Hub, tmp_path: Path, waits: list[float]) -> None:
    many = tuple((f"layer.{i}.attention.self.key", 16, 16, 2) for i in range(300))
    write_peft(tmp_path / "zoo" / "long", random_lora(many))
    hub.add("models/someone/zoo", tmp_path / "zoo")
    hub.etags["long/adapter_model.safetensors"] = iter(f"version {i}" for i in itertools.count())
    assert "has changed on the server" in reasons(open_source("hf://someone/zoo"))[0]


def test_downloads_that_fail_say_what_to_do(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    hub.add("models/someone/zoo", folder)
    source = open_source("hf://someone/zoo")
    budget = source.listing.files[source.ids[0]].budget  # type: ignore[attr-defined]  # the listing of a FileSource
    used = budget.used
    hub.fail = lambda method, path: Answer(404, {"X-Error-Code": "EntryNotFound"})
    with pytest.raises(ZooError, match="There is no someone/zoo/lora000/adapter_"):
        source.load(source.ids[0])
    hub.fail = lambda method, path: Answer(401)
    with pytest.raises(ZooError, match="hf auth login"):
        source.load(source.ids[0])
    assert budget.used == used, "what did not come is not counted"
    hub.fail = lambda method, path: None
    monkeypatch.setenv("LOL_CACHE_LIMIT_GB", "0.0001")
    with pytest.raises(ZooError, match="LOL_CACHE_LIMIT_GB"):
        open_source("hf://someone/zoo").load(source.ids[0])
    monkeypatch.setenv("LOL_CACHE_LIMIT_GB", "lots")
    with pytest.raises(ZooError, match="expected a number of gigabytes"):
        open_source("hf://someone/zoo")


def downloads(hub: Hub, start: int) -> list[str | None]:
    """The ranges of the weights that were asked for since; one byte is asked for to learn size and checksum."""
    ranges = [asked.range for asked in hub.asked[start:] if asked.method == "GET" and "/cdn/" in asked.path]
    return [asked for asked in ranges if asked != "bytes=0-0"]


@pytest.mark.parametrize("address", ["hf://someone/zoo", "hf://someone"])
def test_a_download_that_was_cut_goes_on_in_another_program(
    hub: Hub, folder: Path, waits: list[float], address: str
) -> None:
    hub.add("models/someone/zoo", folder)
    files = hub.repositories["models/someone/zoo"].files
    weights = files["lora000/adapter_model.safetensors"]
    source = open_source(address)
    before = len(hub.asked)
    hub.fail = lambda method, path: Answer(200, body=weights, cut=True) if method == "GET" and "/cdn/" in path else None
    with pytest.raises(ZooError, match="connection broke while someone/zoo/lora000"):
        source.load(source.ids[0])
    assert downloads(hub, before) == ["bytes=0-"] + [f"bytes={len(weights) // 2}-"] * (http.TRIES - 1)
    hub.fail = lambda method, path: None
    again, before = open_source(address), len(hub.asked)
    assert torch.equal(again.load(again.ids[0]).layers[0].U, Zoo.open(folder).load("lora000").layers[0].U)
    assert downloads(hub, before) == [f"bytes={len(weights) // 2}-"]
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.partial*")), "it took its place, and left nothing beside it"


def test_what_came_of_another_content_is_not_gone_on_with(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.add("models/someone/zoo", folder)
    files = hub.repositories["models/someone/zoo"].files
    weights, other = (files[f"lora00{i}/adapter_model.safetensors"] for i in range(2))
    hub.fail = lambda method, path: Answer(200, body=weights, cut=True) if method == "GET" and "/cdn/" in path else None
    source = open_source("hf://someone/zoo")
    with pytest.raises(ZooError, match="connection broke"):
        source.load(source.ids[0])
    hub.fail = lambda method, path: None
    part = next(Path(constants.HF_HUB_CACHE).rglob("*.partial"))
    part.write_bytes(bytes(part.stat().st_size))  # damaged where it lay
    with pytest.raises(ZooError, match="its checksum is another"):
        source.load(source.ids[0])
    assert not part.exists()
    part.write_bytes(weights[:1000])
    files["lora000/adapter_model.safetensors"] = other
    changed, before = open_source("hf://someone/zoo"), len(hub.asked)
    assert torch.equal(changed.load(source.ids[0]).layers[0].U, Zoo.open(folder).load(source.ids[1]).layers[0].U)
    assert downloads(hub, before) == ["bytes=0-"]


def test_a_part_of_an_archive_that_was_cut_goes_on(tmp_path: Path) -> None:
    content, asked = bytes(range(256)) * 2**15, list[int]()

    class Member:
        size, identity, sparing, whole = len(content), "one", True, False

        def open(self) -> BinaryIO:
            def fetch(start: int, stop: int) -> bytes:
                asked.append(start)
                if start and not self.whole:
                    raise http.NetworkError("cut")
                return content[start:stop]

            return cast(BinaryIO, RangeFile(fetch, self.size))

        glance = open

        def digest(self, file: BinaryIO) -> str:
            return ""

    member = Member()
    with pytest.raises(ZooError, match="cut"):
        Kept(member, "zoo.zip/a", tmp_path, Budget(10**9)).open()
    member.whole = True
    with Kept(member, "zoo.zip/a", tmp_path, Budget(10**9)).open() as file:
        assert file.read() == content
    assert asked == [0, 2**22, 2**22], "nothing came twice"
