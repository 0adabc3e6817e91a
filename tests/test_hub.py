"""Collections on the hub, against a server on this machine that speaks its interface and fails on purpose."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections import http
from lol_core.collections.cache import cache_folder
from lol_core.collections.files import MOST_LATE
from lol_core.collections.hub_address import HubAddress, Kind, parse
from lol_core.collections.opening import open_source
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError
from tests.builders import random_lora, write_peft, write_zoo
from tests.hub import Answer, Hub, hub, serving, use

WIDE = (("layer.0.attention.self.key", 640, 320, 16), ("layer.0.attention.self.value", 640, 320, 16))
__all__ = ["hub"]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the program would have waited, which it does not here."""
    waited: list[float] = []
    monkeypatch.setattr(http, "wait", waited.append)
    return waited


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "zoo"
    write_zoo(folder, 5, WIDE)
    return folder


def reasons(source: Source) -> list[str]:
    return [entry.reason or "" for entry in source.refused]


def test_addresses() -> None:
    assert parse("hf://owner") == HubAddress(Kind.MODEL, "owner")
    assert parse("hf://owner/name") == HubAddress(Kind.MODEL, "owner", "name")
    assert parse("hf://datasets/o/n@v1.0/sub/folder") == HubAddress(Kind.DATASET, "o", "n", "v1.0", "sub/folder")
    assert parse("hf://o/n@refs%2Fpr%2F1").revision == "refs/pr/1"
    for address in ("hf://o", "hf://o/n", "hf://o/begin*", "hf://datasets/o/n@refs%2Fpr%2F1/a/b"):
        assert str(parse(address)) == address
    for wrong in ("hf://", "hf://datasets/o", "hf://o/n/../../x", "hf://o o/n", "hf://o/a*/sub"):
        with pytest.raises(ZooError, match="hf://"):
            parse(wrong)
    for secret in (f"hf://o/n@{TOKEN}", "https://me:secret@host/x.zip", "https://host/x.zip?token=abc"):
        with pytest.raises(ZooError, match="hf auth login") as caught:
            parse(secret)
        assert "secret" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_repository_is_the_folder_that_was_uploaded(hub: Hub, folder: Path, kind: str) -> None:
    hub.add(f"{kind}/someone/zoo", folder)
    address = f"hf://{'datasets/' if kind == 'datasets' else ''}someone/zoo"
    source, zoo = open_source(address), Zoo.open(folder)
    weights = sum(entry.size for entry in zoo.entries)
    assert hub.sent() < weights / 2, "headers come without the weights"
    assert source.ids == zoo.ids and source.address == address
    assert [e.headers for e in source.entries] == [e.headers for e in zoo.entries]
    assert [e.scales for e in source.entries] == [e.scales for e in zoo.entries]
    pd.testing.assert_frame_equal(source.labels, zoo.labels)
    assert any(" 0.0 MB are here" in remark for remark in source.remarks)
    before = len(hub.asked)
    for id in zoo.ids:
        for ours, theirs in zip(source.load(id).layers, zoo.load(id).layers, strict=True):
            assert torch.equal(ours.U, theirs.U) and torch.equal(ours.V, theirs.V) and ours.scale == theirs.scale
    assert hub.sent(before) >= weights
    before = len(hub.asked)
    source.load(zoo.ids[0])
    assert len(hub.asked) == before, "what was downloaded is not asked for again"


def test_a_folder_and_a_revision_of_a_repository(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    source = open_source("hf://someone/zoo/lora001")
    assert source.ids == ["adapter_model.safetensors"]
    commit = hub.repositories["models/someone/zoo"].commit
    assert len(open_source(f"hf://someone/zoo@{commit}")) == 5
    with pytest.raises(ZooError, match="no such revision"):
        open_source("hf://someone/zoo@v9")
    with pytest.raises(ZooError, match=r"There is no hf://someone/zoo/nowhere"):
        open_source("hf://someone/zoo/nowhere")


def organisation(hub: Hub, tmp_path: Path, count: int) -> int:
    """Adapters of one owner, a repository each; returns the bytes of their weights."""
    write_peft(tmp_path / "adapter", random_lora(WIDE))
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    for i in range(count):
        hub.add(f"models/many/adapter-{i:04d}", files | {"README.md": b"# An adapter"})
    hub.add("models/other/adapter", files)
    return count * len(files["adapter_model.safetensors"])


def test_a_thousand_adapters_open_without_their_weights(hub: Hub, tmp_path: Path) -> None:
    weights = organisation(hub, tmp_path, 1000)
    source = open_source("hf://many")
    assert len(source) == 1000 and not source.refused
    assert source.names[source.ids[7]] == "adapter-0007" and source.entries[0].alphas == (16.0, 16.0)
    listing = 10
    header, configuration = 2, 1  # a header stands behind a redirect
    assert len(hub.asked) == listing + 1000 * (header + configuration)
    listed = sum(asked.sent for asked in hub.asked if asked.path.startswith("/api"))
    assert hub.sent() - listed < 1000 * (http.BLOCK + 500) < weights / 3
    before = len(hub.asked)
    assert open_source("hf://many").fingerprint == source.fingerprint
    assert len(hub.asked) - before == listing, "headers are read once"


def test_the_adapters_whose_names_begin_alike(hub: Hub, tmp_path: Path) -> None:
    organisation(hub, tmp_path, 12)
    assert len(open_source("hf://many/adapter-000*")) == 10
    with pytest.raises(ZooError, match="no repository of that name"):
        open_source("hf://many/other*")


def test_what_was_opened_opens_again_without_a_network(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("models/someone/zoo", folder)
    online = open_source("hf://someone/zoo")
    online.load(online.ids[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    source = open_source("hf://someone/zoo")
    assert source.ids == online.ids and source.fingerprint == online.fingerprint
    pd.testing.assert_frame_equal(source.labels, online.labels)
    assert "without the hub" in source.remarks[0] and len(hub.asked) == before
    assert source.load(source.ids[0]).layers
    with pytest.raises(ZooError, match="HF_HUB_OFFLINE|not downloaded before"):
        source.load(source.ids[1])
    with pytest.raises(ZooError, match="HF_HUB_OFFLINE"):
        open_source("hf://someone/never-opened")


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


def test_a_server_without_ranges_still_gives_headers(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    hub.ranges = False
    assert len(open_source("hf://someone/zoo")) == 5


def test_downloads_that_fail_say_what_to_do(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    hub.add("models/someone/zoo", folder)
    source = open_source("hf://someone/zoo")
    budget = source.listing.files[source.ids[0]].budget  # type: ignore[attr-defined]
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


def test_a_download_that_was_cut_is_made_whole(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("models/someone/zoo", folder)
    source = open_source("hf://someone/zoo")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # in whose steps the hub library keeps what came
    weights = hub.repositories["models/someone/zoo"].files["lora000/adapter_model.safetensors"]
    cut = iter([Answer(200, {"ETag": '"x"'}, weights, cut=True)])
    hub.fail = lambda method, path: next(cut, None) if method == "GET" and "/cdn/" in path else None
    before = len(hub.asked)
    assert torch.equal(source.load(source.ids[0]).layers[0].U, Zoo.open(folder).load(source.ids[0]).layers[0].U)
    asked = [asked for asked in hub.asked[before:] if asked.method == "GET" and "/cdn/" in asked.path]
    assert len(asked) == 2 and asked[1].range == f"bytes={len(weights) // 2 // 1000 * 1000}-", "it goes on"


def test_a_token_goes_to_the_hub_alone(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not to where the hub sends one for the weights, and into no file and no log."""
    hub.add("models/someone/zoo", folder, private=True)
    with pytest.raises(ZooError, match="or it is private"):
        open_source("hf://someone/zoo")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG), serving(Hub(repositories=hub.repositories)) as elsewhere:
        hub.cdn = elsewhere.endpoint.replace("127.0.0.1", "localhost")
        source = open_source("hf://someone/zoo")
        source.load(source.ids[0])
        assert elsewhere.asked and not any(asked.token for asked in elsewhere.asked)
    assert all(asked.token == f"Bearer {TOKEN}" for asked in hub.asked if asked.status != 404)
    assert TOKEN not in caplog.text and TOKEN not in repr(source.address)
    for path in cache_folder().rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_old_files_and_scattered_alphas_cost_little(hub: Hub, tmp_path: Path) -> None:
    """A .bin's shapes, and the alphas of kohya files, are not at the start; most of the file is not read for them."""
    lora = random_lora(tuple((f"unet_block_{i}", 640, 320, 8) for i in range(40)))
    kohya: dict[str, torch.Tensor] = {}
    for y in lora.layers:
        name = f"lora_unet_{y.name.replace('.', '_')}"
        kohya |= {
            f"{name}.alpha": torch.tensor(4.0),
            f"{name}.lora_down.weight": y.V.T.float().contiguous(),
            f"{name}.lora_up.weight": y.U.float().contiguous(),
        }
    (tmp_path / "zoo").mkdir()
    save_file(kohya, tmp_path / "zoo" / "new.safetensors")
    torch.save(kohya, tmp_path / "zoo" / "old.bin")
    hub.add("models/someone/zoo", tmp_path / "zoo")
    source, zoo = open_source("hf://someone/zoo"), Zoo.open(tmp_path / "zoo")
    assert source.ids == zoo.ids == ["new.safetensors", "old.bin"], reasons(source)
    assert hub.sent() < sum(entry.size for entry in zoo.entries) / 8
    for ours, theirs in zip(source.entries, zoo.entries, strict=True):
        assert (ours.headers, ours.alphas, ours.scales) == (theirs.headers, theirs.alphas, theirs.scales)
    assert all(any("the first is taken for all" in note for note in entry.notes) for entry in source.entries)


def test_a_zip_on_the_hub_is_read_by_ranges(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as opened:
        for path in sorted(folder.rglob("*.*")):
            opened.write(path, f"zoo/{path.relative_to(folder).as_posix()}")
    hub.add("datasets/someone/zips", {"part/zoo.zip": (tmp_path / "zoo.zip").read_bytes()})
    whole = open_source("hf://datasets/someone/zips")
    assert not len(whole) and "holds 1 archives" in whole.remarks[-1]
    before = len(hub.asked)
    source, zoo = open_source("hf://datasets/someone/zips/part/zoo.zip"), Zoo.open(folder)
    assert hub.sent(before) < (tmp_path / "zoo.zip").stat().st_size * 2 / 3
    assert source.ids == zoo.ids
    pd.testing.assert_frame_equal(source.labels, zoo.labels)
    assert torch.equal(source.load(zoo.ids[3]).layers[0].U, zoo.load(zoo.ids[3]).layers[0].U)
    before = len(hub.asked)
    source.load(zoo.ids[3])
    assert len(hub.asked) == before


def test_the_listing_can_be_stopped(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    with pytest.raises(Stopped):
        open_source("hf://someone/zoo", reporter=Reporter(stop=lambda: True))


def test_a_file_whose_header_needs_most_of_it_is_refused_with_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lol_core.collections.remote_files.GLANCE_BYTES", 100_000)
    (tmp_path / "zoo").mkdir()
    weights = {"unet.a.lora_A.weight": torch.randn(16, 9000), "unet.a.lora_B.weight": torch.randn(9000, 16)}
    torch.save(weights, tmp_path / "zoo" / "older.bin", _use_new_zipfile_serialization=False)
    hub.add("models/someone/zoo", tmp_path / "zoo")
    source = open_source("hf://someone/zoo")
    assert "Download the file" in reasons(source)[0] and hub.sent() < 200_000


def test_an_archive_on_the_web_is_read_by_ranges(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as opened:
        for path in sorted(folder.rglob("*.*")):
            opened.write(path, path.relative_to(folder).as_posix())
    hub.add("models/some/site", {"zoo.zip": (tmp_path / "zoo.zip").read_bytes()})
    address = f"{hub.endpoint}/some/site/resolve/main/zoo.zip"
    source, zoo = open_source(address), Zoo.open(folder)
    assert source.ids == zoo.ids and source.name == "zoo" and source.address == address
    assert hub.sent() < (tmp_path / "zoo.zip").stat().st_size * 2 / 3
    assert torch.equal(source.load(zoo.ids[2]).layers[0].U, zoo.load(zoo.ids[2]).layers[0].U)
    with pytest.raises(ZooError, match="There is no http"):
        open_source(f"{hub.endpoint}/some/site/resolve/main/other.zip")
    with pytest.raises(ZooError, match=r"\.zip and \.tar"):
        open_source(f"{hub.endpoint}/some/page")


def test_a_file_on_the_web_is_a_collection_of_one(hub: Hub, folder: Path) -> None:
    (path,) = (folder / "lora002").glob("*.safetensors")
    hub.add("models/some/site", {"a style.safetensors": path.read_bytes()})
    source = open_source(f"{hub.endpoint}/some/site/resolve/main/a%20style.safetensors?download=true")
    assert source.ids == ["a style.safetensors"]
    there, here = source.load(source.ids[0]), Zoo.open(folder).load(f"lora002/{path.name}")
    assert torch.equal(there.layers[0].U, here.layers[0].U)


def test_pages_of_the_hub_are_its_addresses(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    hub.add("datasets/someone/zoo", folder)
    page = "https://huggingface.co/someone/zoo"
    assert open_source(page).address == "hf://someone/zoo"
    assert open_source(f"{page}/tree/main/lora001").address == "hf://someone/zoo/lora001"
    assert open_source("https://huggingface.co/datasets/someone/zoo").address == "hf://datasets/someone/zoo"


def test_what_fsspec_reaches(folder: Path, tmp_path: Path) -> None:
    source, zoo = open_source(folder.as_uri()), Zoo.open(folder)
    assert source.ids == zoo.ids and source.address.startswith("file://")
    pd.testing.assert_frame_equal(source.labels, zoo.labels)
    assert torch.equal(source.load(zoo.ids[2]).layers[0].U, zoo.load(zoo.ids[2]).layers[0].U)
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as opened:
        for path in sorted(folder.rglob("*.*")):
            opened.write(path, path.relative_to(folder).as_posix())
    assert open_source((tmp_path / "zoo.zip").as_uri()).ids == zoo.ids
    with pytest.raises(ZooError, match="Install s3fs"):
        open_source("s3://bucket/loras")
    with pytest.raises(ZooError, match="not known: nonsense"):
        open_source("nonsense://bucket/loras")
    with pytest.raises(ZooError, match="cannot be listed"):
        open_source((tmp_path / "nowhere").as_uri())
    with pytest.raises(ZooError, match="live in the program"):
        open_source("memory://mine")


def test_a_command_says_how_much_it_will_download(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    result = CliRunner().invoke(app, ["survey", "hf://someone/zoo", "--json"])
    assert "are here. Each comes when it is needed, up to 20 GB" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["finished"] and len(json.loads(result.stdout)["loras"]) == 5
