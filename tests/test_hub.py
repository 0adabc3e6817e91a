"""Collections on the hub, against a server on this machine that speaks its interface and fails on purpose."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import save_file
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.collections import http
from lol_core.collections.cache import cache_folder
from lol_core.collections.hub_address import HubAddress, Kind, parse
from lol_core.collections.opening import open_source
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError
from tests.builders import random_lora, write_peft, write_zoo
from tests.hub import Hub, hub, serving

WIDE = (("layer.0.attention.self.key", 640, 320, 16), ("layer.0.attention.self.value", 640, 320, 16))
__all__ = ["hub"]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWx"


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
    for wrong in (
        "hf://",
        "hf://datasets/o",
        "hf://o/n/../../x",
        "hf://o o/n",
        "hf://o/a*/sub",
        "hf://some--one/name",
        "hf://owner/name-",
        "hf://o/" + 97 * "n",
    ):
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


def test_a_server_without_ranges_still_gives_headers(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    hub.ranges = False
    assert len(open_source("hf://someone/zoo")) == 5


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
    assert "these 5 LoRAs are 0.6 MB there, of which 0.0 MB are here" in source.remarks[-1]
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


def test_without_a_network_the_folder_of_what_was_downloaded_is_named(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("models/someone/zoo", folder)
    kept = snapshot_download("someone/zoo")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ZooError, match=f"HF_HUB_OFFLINE.*lies in {re.escape(kept)}: open that folder"):
        open_source("hf://someone/zoo")
    assert len(open_source(kept)) == len(open_source(str(folder)))


def test_a_command_says_how_much_it_will_download(hub: Hub, folder: Path) -> None:
    hub.add("models/someone/zoo", folder)
    result = CliRunner().invoke(app, ["survey", "hf://someone/zoo", "--json"])
    assert "are here. Each comes when it is needed, up to 20 GB" in " ".join(result.stderr.split())
    assert json.loads(result.stdout)["finished"] and len(json.loads(result.stdout)["loras"]) == 5
